/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* listmount(2) of at most n ids: how many, or -errno. mnt_ns_fd and mnt_ns_id are 0 if unused. */
int tos_listmount(int mnt_ns_fd, uint64_t mnt_ns_id, uint64_t mnt_id, uint64_t last_mnt_id,
		  unsigned int flags, uint64_t *ids, size_t n);

/* The numbers that tos_statmounts() reports of each mount. */
enum {
	TOS_MASK,
	TOS_MNT_ID,
	TOS_MNT_PARENT_ID,
	TOS_MNT_ID_OLD,
	TOS_MNT_PARENT_ID_OLD,
	TOS_MNT_ATTR,
	TOS_MNT_PROPAGATION,
	TOS_MNT_PEER_GROUP,
	TOS_MNT_MASTER,
	TOS_PROPAGATE_FROM,
	TOS_MNT_NS_ID,
	TOS_SB_DEV_MAJOR,
	TOS_SB_DEV_MINOR,
	TOS_SB_MAGIC,
	TOS_SB_FLAGS,
	TOS_SUPPORTED_MASK,
	TOS_OPT_NUM,
	TOS_OPT_SEC_NUM,
	TOS_MNT_UIDMAP_NUM,
	TOS_MNT_GIDMAP_NUM,
	TOS_NUMBERS
};

/*
 * The texts of each mount, in this order; then, in an area of their own, the elements of its
 * opt_array, opt_sec_array, mnt_uidmap and mnt_gidmap. Each is ended by a NUL.
 */
enum {
	TOS_MNT_ROOT,
	TOS_MNT_POINT,
	TOS_FS_TYPE,
	TOS_MNT_OPTS,
	TOS_FS_SUBTYPE,
	TOS_SB_SOURCE,
	TOS_TEXTS
};

/* Where tos_statmounts() writes, and how far it came. */
struct tos_mount_batch {
	size_t capacity;	/* how many mounts at the most */
	uint64_t *numbers;	/* TOS_NUMBERS columns of capacity values */
	char *texts;
	size_t texts_size;
	char *lists;
	size_t lists_size;
	char *scratch;		/* for one struct statmount with its strings */
	size_t scratch_size;
	size_t consumed;	/* ids used up, those of vanished mounts included */
	size_t count;		/* mounts described */
	size_t texts_len;	/* bytes written */
	size_t lists_len;
};

/*
 * statmount(2) of n ids. A mount that does not exist is passed over. Stops early, with 0, where
 * anything else goes wrong after the first id; the next call then begins with the error.
 * -EOVERFLOW: an area is too small for the first mount.
 */
int tos_statmounts(int mnt_ns_fd, uint64_t mnt_ns_id, const uint64_t *ids, size_t n, uint64_t mask,
		   struct tos_mount_batch *batch);

/* The id of a mount namespace, by its descriptor: 0 or -errno. Linux 6.11. */
int tos_mnt_ns_id(int mnt_ns_fd, uint64_t *id);

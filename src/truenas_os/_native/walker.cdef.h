/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* What a walk is made of; see blocking/walk_options.py for the meaning of each. */
struct tos_walk_config {
	int root_fd;			/* a directory's, opened for reading; the walk's from then on */
	int open_flags;			/* of regular files; -1: nothing is opened */
	int include_symlinks;
	int include_mountpoints;
	int trusts_cookies;		/* d_off leads back to its entry, also in a new opening */
	int is_local;			/* to describe a file asks no server */
	int64_t btime_cutoff;
	const char *mark_name;		/* an xattr; NULL: no marks */
	const void *mark_data;
	size_t mark_size;
	uint32_t capacity;		/* of the ring, in entries; with descriptors also in descriptors */
	uint32_t max_dirs;		/* directories kept open */
	uint32_t helpers;		/* threads beside the producer that open and stat */
};

/* A directory on the path to where a walk goes on: the root first, whose name is "". */
struct tos_walk_level {
	const char *name;
	uint64_t ino;
	int64_t btime_sec;
	uint32_t btime_nsec;
	const void *handle;		/* a struct file_handle, or NULL */
	size_t handle_size;
	int64_t cookie;			/* of the last entry that was consumed; 0: none was */
	const char *after;		/* its name, where cookies are not trusted, or NULL */
	int unmarkable;			/* something in it went wrong before */
};

/* What a slot of the ring holds. LEAVE and DROPPED are never handed out. */
enum {
	TOS_WALK_ENTRY,
	TOS_WALK_ERROR,			/* a directory's contents end with this error */
	TOS_WALK_LOST,			/* the level of this depth was not found again; the end */
	TOS_WALK_FATAL,			/* the producer cannot go on; the end */
	TOS_WALK_END,
	TOS_WALK_LEAVE,
	TOS_WALK_DROPPED
};

/* What is said of an entry beside its name, its attributes and its handle. */
struct tos_walk_entry {
	uint64_t slot;			/* for tos_walk_skip() and the like */
	int64_t cookie;
	uint64_t bytes;			/* of regular files up to this one; all bits: they are too many */
	uint32_t depth;			/* 1: in the walk's root */
	int fd;
	int error;
	unsigned char kind;
	unsigned char type;		/* DT_*, with TOS_WALK_MOUNT set at a mountpoint */
	unsigned char handle_size;
	unsigned char unused;
};

/* Where tos_walk_take() writes. */
struct tos_walk_batch {
	size_t capacity;		/* in entries */
	struct tos_walk_entry *entries;
	unsigned char *statx;		/* TOS_WALK_STATX_SIZE bytes each */
	char *names;			/* each ended by a NUL */
	size_t names_size;
	unsigned char *handles;		/* of directories, one after the other */
	size_t handles_size;
	uint32_t *turns;		/* which entries are in another directory than the one before */
	size_t turn_count;
	size_t names_len;		/* bytes written */
	size_t handles_len;
	uint32_t depth;			/* of the last entry handed out; kept from call to call */
	uint64_t taken;			/* the first slot that was not looked at */
	int special;			/* an entry has an error, or is none */
};

enum {
	TOS_WALK_MOUNT = 0x80,
	TOS_WALK_STATX_SIZE = 192	/* of a struct statx, without what is reserved */
};

struct tos_walker;

/* A walk that has not begun, or -errno. Takes over config->root_fd in either case. */
int tos_walk_new(const struct tos_walk_config *config, struct tos_walker **out);

/* Adds a level of where to go on; the first is the root's. 0 or -errno. */
int tos_walk_level(struct tos_walker *w, const struct tos_walk_level *level);

/* Starts the threads: 0 or -errno. */
int tos_walk_start(struct tos_walker *w);

/* The eventfd that becomes readable when what tos_walk_take() was to wait for is there. */
int tos_walk_fd(const struct tos_walker *w);

/*
 * Hands out what is ready, at most batch->capacity: how many. If fewer than want are ready and more
 * may come, hands out nothing and arms the eventfd for that moment. What was left out is passed over:
 * batch->taken tells how far, and that is to be released before one waits. The batch is the same one
 * at every call. Of a walk that is closed there is nothing; what is closed meanwhile is handed out
 * whole.
 */
int tos_walk_take(struct tos_walker *w, uint32_t want, struct tos_walk_batch *batch);

/* Slots before this one are consumed: their descriptors are closed and their marks are written. */
void tos_walk_release(struct tos_walker *w, uint64_t slot);

/*
 * Drops what is in the directory whose entry stands in that slot, at that depth. What follows the
 * directory must not have been released.
 */
void tos_walk_skip(struct tos_walker *w, uint64_t slot, uint32_t depth);

/* Marks that could not be written. */
uint64_t tos_walk_unmarked(struct tos_walker *w);

/*
 * Ends the walk; only slots before this one count as consumed. The eventfd becomes readable once
 * every descriptor is closed.
 */
void tos_walk_close(struct tos_walker *w, uint64_t slot);

/* Whether every thread has ended. */
int tos_walk_ended(struct tos_walker *w);

/* Gives up the caller's reference, closing the walk if that has not been done. */
void tos_walk_free(struct tos_walker *w);

/* The UUID, of at most 16 bytes, of the filesystem that fd is on: its size, or -errno. Linux 6.9. */
int tos_walk_uuid(int fd, unsigned char *uuid);

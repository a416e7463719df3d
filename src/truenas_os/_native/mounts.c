/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <errno.h>
#include <string.h>

#include "sys.h"
#include "mounts.cdef.h"

int tos_listmount(int mnt_ns_fd, uint64_t mnt_ns_id, uint64_t mnt_id, uint64_t last_mnt_id,
		  unsigned int flags, uint64_t *ids, size_t n)
{
	struct tos_mnt_id_req req = {
		.size = sizeof(req),
		.mnt_ns_fd = (uint32_t)mnt_ns_fd,
		.mnt_id = mnt_id,
		.param = last_mnt_id,
		.mnt_ns_id = mnt_ns_id,
	};

	return (int)tos_syscall(TOS_SYS_listmount, TOS_ARG(&req), TOS_ARG(ids), TOS_ARG(n), flags, 0);
}

int tos_mnt_ns_id(int mnt_ns_fd, uint64_t *id)
{
	return (int)tos_syscall(TOS_SYS_ioctl, mnt_ns_fd, TOS_ARG(TOS_NS_GET_MNTNS_ID), TOS_ARG(id), 0, 0);
}

/* Copies count strings that follow each other to *len in an area, and moves *len. */
static int put(char *area, size_t size, size_t *len, const struct tos_statmount *sm, uint32_t offset,
	       uint64_t count)
{
	const char *end = (const char *)sm + sm->size;
	const char *from = sm->str + offset;
	const char *stop = from;

	for (; count > 0; count--) {
		const char *nul = stop < end ? memchr(stop, 0, (size_t)(end - stop)) : NULL;

		if (!nul)
			return -EPROTO;
		stop = nul + 1;
	}
	if ((size_t)(stop - from) > size - *len)
		return -EOVERFLOW;
	memcpy(area + *len, from, (size_t)(stop - from));
	*len += (size_t)(stop - from);
	return 0;
}

static int put_texts(const struct tos_statmount *sm, struct tos_mount_batch *to, size_t *len)
{
	const struct {
		uint64_t bit;
		uint32_t offset;
	} texts[TOS_TEXTS] = {
		[TOS_MNT_ROOT] = { TOS_STATMOUNT_MNT_ROOT, sm->mnt_root },
		[TOS_MNT_POINT] = { TOS_STATMOUNT_MNT_POINT, sm->mnt_point },
		[TOS_FS_TYPE] = { TOS_STATMOUNT_FS_TYPE, sm->fs_type },
		[TOS_MNT_OPTS] = { TOS_STATMOUNT_MNT_OPTS, sm->mnt_opts },
		[TOS_FS_SUBTYPE] = { TOS_STATMOUNT_FS_SUBTYPE, sm->fs_subtype },
		[TOS_SB_SOURCE] = { TOS_STATMOUNT_SB_SOURCE, sm->sb_source },
	};

	for (size_t i = 0; i < TOS_TEXTS; i++) {
		int ret = 0;

		if (sm->mask & texts[i].bit)
			ret = put(to->texts, to->texts_size, len, sm, texts[i].offset, 1);
		else if (*len < to->texts_size)
			to->texts[(*len)++] = 0;
		else
			ret = -EOVERFLOW;
		if (ret)
			return ret;
	}
	return 0;
}

static int put_lists(const struct tos_statmount *sm, struct tos_mount_batch *to, size_t *len)
{
	const struct {
		uint64_t bit;
		uint32_t offset;
		uint64_t count;
		int number;
	} lists[] = {
		{ TOS_STATMOUNT_OPT_ARRAY, sm->opt_array, sm->opt_num, TOS_OPT_NUM },
		{ TOS_STATMOUNT_OPT_SEC_ARRAY, sm->opt_sec_array, sm->opt_sec_num, TOS_OPT_SEC_NUM },
		{ TOS_STATMOUNT_MNT_UIDMAP, sm->mnt_uidmap, sm->mnt_uidmap_num, TOS_MNT_UIDMAP_NUM },
		{ TOS_STATMOUNT_MNT_GIDMAP, sm->mnt_gidmap, sm->mnt_gidmap_num, TOS_MNT_GIDMAP_NUM },
	};

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		uint64_t count = sm->mask & lists[i].bit ? lists[i].count : 0;
		int ret = put(to->lists, to->lists_size, len, sm, lists[i].offset, count);

		if (ret)
			return ret;
		to->numbers[lists[i].number * to->capacity + to->count] = count;
	}
	return 0;
}

static void put_numbers(const struct tos_statmount *sm, struct tos_mount_batch *to)
{
	uint64_t *column = to->numbers + to->count;
	const size_t next = to->capacity;

	column[TOS_MASK * next] = sm->mask;
	column[TOS_MNT_ID * next] = sm->mnt_id;
	column[TOS_MNT_PARENT_ID * next] = sm->mnt_parent_id;
	column[TOS_MNT_ID_OLD * next] = sm->mnt_id_old;
	column[TOS_MNT_PARENT_ID_OLD * next] = sm->mnt_parent_id_old;
	column[TOS_MNT_ATTR * next] = sm->mnt_attr;
	column[TOS_MNT_PROPAGATION * next] = sm->mnt_propagation;
	column[TOS_MNT_PEER_GROUP * next] = sm->mnt_peer_group;
	column[TOS_MNT_MASTER * next] = sm->mnt_master;
	column[TOS_PROPAGATE_FROM * next] = sm->propagate_from;
	column[TOS_MNT_NS_ID * next] = sm->mnt_ns_id;
	column[TOS_SB_DEV_MAJOR * next] = sm->sb_dev_major;
	column[TOS_SB_DEV_MINOR * next] = sm->sb_dev_minor;
	column[TOS_SB_MAGIC * next] = sm->sb_magic;
	column[TOS_SB_FLAGS * next] = sm->sb_flags;
	column[TOS_SUPPORTED_MASK * next] = sm->supported_mask;
}

static int pack(const struct tos_statmount *sm, struct tos_mount_batch *to)
{
	size_t texts_len = to->texts_len, lists_len = to->lists_len;
	int ret = put_texts(sm, to, &texts_len);

	if (!ret)
		ret = put_lists(sm, to, &lists_len);
	if (ret)
		return ret;
	put_numbers(sm, to);
	to->texts_len = texts_len;
	to->lists_len = lists_len;
	to->count++;
	return 0;
}

int tos_statmounts(int mnt_ns_fd, uint64_t mnt_ns_id, const uint64_t *ids, size_t n, uint64_t mask,
		   struct tos_mount_batch *batch)
{
	struct tos_mnt_id_req req = {
		.size = sizeof(req),
		.mnt_ns_fd = (uint32_t)mnt_ns_fd,
		.param = mask,
		.mnt_ns_id = mnt_ns_id,
	};

	batch->count = batch->texts_len = batch->lists_len = 0;
	for (batch->consumed = 0; batch->consumed < n && batch->count < batch->capacity;
	     batch->consumed++) {
		long ret;

		req.mnt_id = ids[batch->consumed];
		ret = tos_syscall(TOS_SYS_statmount, TOS_ARG(&req), TOS_ARG(batch->scratch),
				  TOS_ARG(batch->scratch_size), 0, 0);
		if (ret == -ENOENT)
			continue;
		if (!ret)
			ret = pack((const struct tos_statmount *)batch->scratch, batch);
		if (ret)
			return batch->consumed ? 0 : (int)ret;
	}
	return 0;
}

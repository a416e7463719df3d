/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* What stands at one name of a directory: opened and described without following or triggering. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "walker.h"

/* A name that something else is swapped in for again and again is given up after so many tries. */
#define TRIES 8

long tos_retried(long nr, long a, long b, long c, long d, long e)
{
	long ret;

	do
		ret = tos_syscall(nr, a, b, c, d, e);
	while (ret == -EINTR);
	return ret;
}

int tos_walk_open(int dirfd, const char *name, uint64_t flags, uint64_t resolve)
{
	struct tos_open_how how = {
		.flags = flags | O_CLOEXEC | (flags & O_PATH ? 0 : TOS_O_LARGEFILE),
		.resolve = resolve,
	};

	return (int)tos_retried(TOS_SYS_openat2, dirfd, TOS_ARG(name), TOS_ARG(&how), sizeof(how), 0);
}

/*
 * Of the file itself, or with an empty name of what the descriptor stands for. With
 * AT_STATX_DONT_SYNC nobody is asked, and what is known is told: the root of another mount is looked
 * at like this, as whoever serves it may never answer.
 */
int tos_walk_statx(int dirfd, const char *name, int sync, struct tos_statx *out)
{
	int flags = AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH) | sync;

	return (int)tos_retried(TOS_SYS_statx, dirfd, TOS_ARG(name), flags, TOS_WALK_STATX_MASK,
				TOS_ARG(out));
}

unsigned char tos_walk_type(const struct tos_statx *stx)
{
	return IFTODT(stx->stx_mode);
}

static bool is_gone(int error)
{
	return error == -ENOENT || error == -ESTALE;
}

/* Whether an open failed with what it says of something else than was expected there. */
static bool is_something_else(int error)
{
	return error == -ELOOP || error == -ENOTDIR || error == -EISDIR || error == -ENXIO;
}

static enum tos_slot_state dropped(struct tos_slot *slot)
{
	slot->kind = TOS_WALK_DROPPED;
	return TOS_SLOT_DONE;
}

static void close_fd(struct tos_slot *slot)
{
	if (slot->fd >= 0)
		tos_close(slot->fd);
	slot->fd = -1;
}

/* By name, which may be a mount point: only what turns out to be ours is asked about. */
static int statx_by_name(const struct tos_walker *w, int dirfd, const char *name,
			 struct tos_statx *stx)
{
	int ret = tos_walk_statx(dirfd, name, AT_STATX_DONT_SYNC, stx);

	if (!ret && !w->config.is_local && stx->stx_mnt_id == w->mnt_id)
		ret = tos_walk_statx(dirfd, name, 0, stx);
	return ret;
}

/*
 * Looks at what is there now, whatever it is, without opening it: in slot->fd a descriptor that
 * only names it (none in a walk without descriptors). Crosses a mount point.
 */
static int look(struct tos_walker *w, int dirfd, struct tos_slot *slot, struct tos_statx *stx)
{
	const char *name = tos_slot_name(slot);
	int sync = 0, ret;

	if (w->config.open_flags < 0)
		return statx_by_name(w, dirfd, name, stx);
	ret = tos_walk_open(dirfd, name, O_PATH | O_NOFOLLOW,
			    TOS_RESOLVE_NO_XDEV | TOS_RESOLVE_NO_SYMLINKS);
	if (ret == -EXDEV) {
		ret = tos_walk_open(dirfd, name, O_PATH | O_NOFOLLOW, TOS_RESOLVE_NO_SYMLINKS);
		sync = AT_STATX_DONT_SYNC;
	}
	if (ret < 0)
		return ret;
	slot->fd = ret;
	ret = tos_walk_statx(slot->fd, "", sync, stx);
	if (ret)
		close_fd(slot);
	return ret;
}

/* The entry is handed out with an error, and with what can be said of it without opening it. */
static enum tos_slot_state failed(struct tos_walker *w, int dirfd, struct tos_slot *slot,
				  struct tos_statx *stx, int error)
{
	int ret;

	close_fd(slot);
	ret = look(w, dirfd, slot, stx);
	if (ret && !is_gone(ret))
		ret = statx_by_name(w, dirfd, tos_slot_name(slot), stx);
	if (is_gone(ret))
		return dropped(slot);
	if (ret)
		memset(stx, 0, sizeof(*stx));
	else
		slot->type = tos_walk_type(stx);
	slot->error = -error;
	return TOS_SLOT_DONE;
}

static bool is_too_young(const struct tos_walker *w, const struct tos_statx *stx)
{
	return w->config.btime_cutoff && stx->stx_mask & TOS_STATX_BTIME &&
	       stx->stx_btime.tv_sec > w->config.btime_cutoff;
}

/* Opens a regular file as the caller wants it: 0, or -errno. */
static int open_regular(struct tos_walker *w, int dirfd, struct tos_slot *slot, struct tos_statx *stx)
{
	const int flags = w->config.open_flags;
	/* What might be swapped in, or has a lease, must neither hang nor become our terminal. */
	const int safe = flags & O_PATH ? 0 : O_NONBLOCK | O_NOCTTY;
	int ret = tos_walk_open(dirfd, tos_slot_name(slot), (uint64_t)(flags | safe | O_NOFOLLOW),
				TOS_RESOLVE_NO_XDEV | TOS_RESOLVE_NO_SYMLINKS);

	if (ret < 0)
		return ret;
	slot->fd = ret;
	ret = tos_walk_statx(slot->fd, "", 0, stx);
	if (!ret && !S_ISREG(stx->stx_mode))
		ret = -ENXIO;
	/* io_uring and some filesystems heed O_NONBLOCK: it is not what the caller asked for. */
	if (!ret && safe & ~flags & O_NONBLOCK)
		ret = (int)tos_retried(TOS_SYS_fcntl, slot->fd, F_SETFL, flags, 0, 0);
	if (ret)
		close_fd(slot);
	return ret;
}

/* What look() found is handed out as it is, unless it is a file to be opened or a directory. */
static enum tos_slot_state classified(struct tos_walker *w, struct tos_slot *slot,
				      struct tos_statx *stx)
{
	const bool mount = stx->stx_mnt_id != w->mnt_id;

	slot->type = tos_walk_type(stx);
	if (mount)
		slot->type |= TOS_WALK_MOUNT;
	else if (slot->type == DT_DIR)
		return TOS_SLOT_TURNED_DIR;
	else if (slot->type == DT_REG && w->config.open_flags >= 0)
		return TOS_SLOT_PENDING;
	if (mount ? !w->config.include_mountpoints
		  : slot->type == DT_LNK && !w->config.include_symlinks)
		return dropped(slot);
	if (!(mount && S_ISDIR(stx->stx_mode)) && is_too_young(w, stx))
		return dropped(slot);
	return TOS_SLOT_DONE;
}

static enum tos_slot_state looked_at(struct tos_walker *w, int dirfd, struct tos_slot *slot,
				     struct tos_statx *stx, bool last_try)
{
	int ret = look(w, dirfd, slot, stx);
	enum tos_slot_state state;

	if (is_gone(ret))
		return dropped(slot);
	if (tos_lacks_descriptors(ret) && !last_try)
		return TOS_SLOT_NEEDS_FD;
	if (ret)
		return failed(w, dirfd, slot, stx, ret);
	state = classified(w, slot, stx);
	if (state != TOS_SLOT_DONE || slot->kind == TOS_WALK_DROPPED)
		close_fd(slot);
	return state;
}

/* Fills the slot of what is listed as anything but a directory. */
enum tos_slot_state tos_walk_fill(struct tos_walker *w, int dirfd, struct tos_slot *slot,
				  struct tos_statx *stx, bool last_try)
{
	int ret = -EAGAIN;

	for (int i = 0; i < TRIES; i++) {
		enum tos_slot_state state;

		if (slot->type == DT_REG && w->config.open_flags >= 0) {
			ret = open_regular(w, dirfd, slot, stx);
			if (!ret && is_too_young(w, stx)) {
				close_fd(slot);
				return dropped(slot);
			}
			if (!ret)
				return TOS_SLOT_DONE;
			if (is_gone(ret))
				return dropped(slot);
			if (tos_lacks_descriptors(ret) && !last_try)
				return TOS_SLOT_NEEDS_FD;
			if (ret == -EXDEV && !w->config.include_mountpoints)
				return dropped(slot);
			if (ret != -EXDEV && !is_something_else(ret))
				return failed(w, dirfd, slot, stx, ret);
		}
		state = looked_at(w, dirfd, slot, stx, last_try);
		if (state != TOS_SLOT_PENDING)
			return state;
	}
	return failed(w, dirfd, slot, stx, ret);
}

/* Whether the directory carries the mark. One that cannot be read is none. */
bool tos_walk_is_marked(const struct tos_walker *w, int dir)
{
	char value[TOS_WALK_MARK_MAX];
	long ret;

	if (!w->config.mark_name)
		return false;
	ret = tos_retried(TOS_SYS_fgetxattr, dir, TOS_ARG(w->config.mark_name), TOS_ARG(value),
			  sizeof(value), 0);
	return ret == (long)w->config.mark_size && !memcmp(value, w->config.mark_data, (size_t)ret);
}

void tos_walk_identify(int fd, const struct tos_statx *stx, struct tos_dir_id *id)
{
	struct tos_file_handle *handle = (struct tos_file_handle *)id->handle;
	int mount_id;

	id->ino = stx->stx_ino;
	id->btime_sec = stx->stx_btime.tv_sec;
	id->btime_nsec = stx->stx_btime.tv_nsec;
	handle->handle_bytes = TOS_MAX_HANDLE_SZ;
	handle->handle_type = 0;
	id->handle_size = 0;
	if (!tos_retried(TOS_SYS_name_to_handle_at, fd, TOS_ARG(""), TOS_ARG(handle),
			 TOS_ARG(&mount_id), AT_EMPTY_PATH))
		id->handle_size = sizeof(*handle) + handle->handle_bytes;
}

static int open_dir(struct tos_walker *w, int dirfd, struct tos_slot *slot, struct tos_statx *stx,
		    int *dir)
{
	int ret = tos_walk_open(dirfd, tos_slot_name(slot), O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
				TOS_RESOLVE_NO_XDEV | TOS_RESOLVE_NO_SYMLINKS);

	if (ret < 0)
		return ret;
	*dir = ret;
	ret = tos_walk_statx(*dir, "", 0, stx);
	/* The one handed out has an offset of its own, so that listing it disturbs nothing. */
	if (!ret && w->config.open_flags >= 0)
		ret = tos_walk_open(*dir, ".", O_RDONLY | O_DIRECTORY, TOS_RESOLVE_NO_XDEV);
	if (ret < 0) {
		tos_close(*dir);
		*dir = -1;
		return ret;
	}
	if (w->config.open_flags >= 0)
		slot->fd = ret;
	return 0;
}

/* Fills the slot of what is listed as a directory; *dir is to be read next, or -1. */
enum tos_slot_state tos_walk_fill_dir(struct tos_walker *w, int dirfd, struct tos_slot *slot,
				      struct tos_statx *stx, bool last_try, int *dir)
{
	int ret = -EAGAIN;

	*dir = -1;
	for (int i = 0; i < TRIES; i++) {
		enum tos_slot_state state;

		slot->type = DT_DIR;
		ret = open_dir(w, dirfd, slot, stx, dir);
		if (!ret) {
			if (!tos_walk_is_marked(w, *dir))
				return TOS_SLOT_DONE;
			tos_close(*dir);
			*dir = -1;
			close_fd(slot);
			return dropped(slot);
		}
		if (is_gone(ret) || (ret == -EXDEV && !w->config.include_mountpoints))
			return dropped(slot);
		if (tos_lacks_descriptors(ret) && !last_try)
			return TOS_SLOT_NEEDS_FD;
		if (ret != -EXDEV && !is_something_else(ret))
			return failed(w, dirfd, slot, stx, ret);
		state = looked_at(w, dirfd, slot, stx, last_try);
		if (state == TOS_SLOT_PENDING)
			state = tos_walk_fill(w, dirfd, slot, stx, last_try);
		if (state != TOS_SLOT_TURNED_DIR)
			return state;
	}
	return failed(w, dirfd, slot, stx, ret);
}

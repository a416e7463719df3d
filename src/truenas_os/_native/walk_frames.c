/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * The stack of directories that are being read. All but the deepest may be parked, that is without
 * a descriptor: depth is bounded by memory alone. They are opened again by the ".." of the directory
 * below, by file handle or name by name from the root, and are verified to be the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "walker.h"

/* Bytes asked of one getdents64(2). */
#define READ_SIZE 32768

#define OPEN_DIR (O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
#define RESOLVE (TOS_RESOLVE_NO_XDEV | TOS_RESOLVE_NO_SYMLINKS)

static void drop_entries(struct tos_frame *frame)
{
	free(frame->entries);
	frame->entries = NULL;
	frame->size = frame->len = frame->pos = 0;
}

void tos_frame_clear(struct tos_frame *frame)
{
	if (frame->fd >= 0)
		tos_close(frame->fd);
	free(frame->name);
	free(frame->after);
	drop_entries(frame);
}

/* Adds a frame without a descriptor behind the last one. */
int tos_frames_add(struct tos_walker *w, const char *name, const struct tos_dir_id *id)
{
	struct tos_frame *frame;

	if (w->level_count == w->frame_size) {
		size_t size = w->frame_size ? 2 * w->frame_size : 16;
		struct tos_frame *frames = realloc(w->frames, size * sizeof(*frames));

		if (!frames)
			return -ENOMEM;
		w->frames = frames;
		w->frame_size = size;
	}
	frame = &w->frames[w->level_count];
	*frame = (struct tos_frame){ .fd = -1, .name = strdup(name), .id = *id };
	if (!frame->name)
		return -ENOMEM;
	w->level_count++;
	return 0;
}

static int seek(const struct tos_frame *frame, int64_t cookie)
{
#ifdef SYS__llseek
	int64_t result;

	return (int)tos_retried(TOS_SYS_lseek, frame->fd, (long)(cookie >> 32), (long)cookie,
				TOS_ARG(&result), SEEK_SET);
#else
	long ret = tos_retried(TOS_SYS_lseek, frame->fd, cookie, SEEK_SET, 0, 0);

	return ret < 0 ? (int)ret : 0;
#endif
}

/* getdents64(2) to the end of the buffer, which grows as needed: bytes, or -errno. */
static long read_more(struct tos_frame *frame)
{
	long ret;

	if (frame->size - frame->len < READ_SIZE) {
		size_t size = frame->size ? 2 * frame->size : READ_SIZE;
		char *entries = realloc(frame->entries, size);

		if (!entries)
			return -ENOMEM;
		frame->entries = entries;
		frame->size = size;
	}
	ret = tos_retried(TOS_SYS_getdents64, frame->fd, TOS_ARG(frame->entries + frame->len),
			  READ_SIZE, 0, 0);
	if (ret == -ENOENT || ret == -ESTALE) /* the directory was removed meanwhile */
		ret = 0;
	if (ret > 0)
		frame->len += (size_t)ret;
	return ret;
}

/* Passes over what stands up to and including the name after: whether it was found. */
static bool pass_over(struct tos_frame *frame)
{
	while (frame->pos < frame->len) {
		const struct tos_dirent64 *entry = (const void *)(frame->entries + frame->pos);

		frame->pos += entry->d_reclen;
		frame->cookie = entry->d_off;
		if (!strcmp(entry->d_name, frame->after)) {
			free(frame->after);
			frame->after = NULL;
			return true;
		}
	}
	return false;
}

/* What follows in the directory: 1 if there are entries, 0 at the end, or -errno. */
int tos_frame_read(struct tos_frame *frame)
{
	while (frame->pos == frame->len && !frame->at_end) {
		long ret = frame->seek ? seek(frame, frame->cookie) : 0;

		frame->seek = false;
		frame->pos = frame->len = 0;
		if (!ret)
			ret = read_more(frame);
		if (ret > 0 && (!frame->after || pass_over(frame)))
			continue;
		if (ret == 0 && frame->after) {
			/* It is gone: to begin again repeats entries, to go on might lose some. */
			free(frame->after);
			frame->after = NULL;
			frame->cookie = 0;
			frame->seek = true;
		} else if (ret <= 0) {
			frame->at_end = true;
			frame->error = (int)ret;
		}
	}
	if (frame->pos < frame->len)
		return 1;
	/* What is not needed below is not kept. */
	drop_entries(frame);
	return frame->error;
}

/* 0 if the descriptor is of the directory that has this identity, -ESTALE if not, or -errno. */
static int compare(int fd, const struct tos_dir_id *id)
{
	struct tos_dir_id found;
	struct tos_statx stx;
	int ret = tos_walk_statx(fd, "", 0, &stx);

	if (ret)
		return ret;
	tos_walk_identify(fd, &stx, &found);
	if (found.ino != id->ino || found.btime_sec != id->btime_sec ||
	    found.btime_nsec != id->btime_nsec)
		return -ESTALE;
	if (found.handle_size && id->handle_size &&
	    (found.handle_size != id->handle_size ||
	     memcmp(found.handle, id->handle, id->handle_size)))
		return -ESTALE;
	return 0;
}

/* The descriptor if it is the right one, else -ESTALE; an error stays one. */
static int verified(int fd, const struct tos_dir_id *id)
{
	int ret = fd < 0 ? fd : compare(fd, id);

	if (ret && fd >= 0)
		tos_close(fd);
	return ret ? ret : fd;
}

static int open_by_name(int dirfd, const struct tos_frame *frame)
{
	return verified(tos_walk_open(dirfd, frame->name, OPEN_DIR, RESOLVE), &frame->id);
}

/* Needs CAP_DAC_READ_SEARCH. */
static int open_by_handle(struct tos_walker *w, const struct tos_frame *frame)
{
	if (!frame->id.handle_size)
		return -EOPNOTSUPP;
	return verified((int)tos_retried(TOS_SYS_open_by_handle_at, w->frames[0].fd,
					 TOS_ARG(frame->id.handle), OPEN_DIR | O_CLOEXEC, 0, 0),
			&frame->id);
}

static int open_from_root(struct tos_walker *w, size_t depth)
{
	int fd = w->frames[0].fd;

	for (size_t i = 1; i <= depth && fd >= 0; i++) {
		int next = open_by_name(fd, &w->frames[i]);

		if (i > 1)
			tos_close(fd);
		fd = next;
	}
	return fd;
}

/* By the ".." of the directory below, or in whatever other way: the descriptor, or -errno. */
static int open_again(struct tos_walker *w, size_t depth, int child_fd)
{
	const struct tos_frame *frame = &w->frames[depth];
	int fd = -ESTALE;

	if (child_fd >= 0)
		fd = verified(tos_walk_open(child_fd, "..", OPEN_DIR, RESOLVE), &frame->id);
	if (fd < 0)
		fd = open_by_handle(w, frame);
	return fd < 0 ? open_from_root(w, depth) : fd;
}

/* Opens a parked frame; child_fd is that of the frame below, or -1. */
static void reopen(struct tos_walker *w, size_t depth, int child_fd)
{
	struct tos_frame *frame = &w->frames[depth];
	int fd = open_again(w, depth, child_fd);

	/* Those of what was handed out may be the last descriptors. */
	if (tos_lacks_descriptors(fd) && !tos_walk_wait_released(w, w->reserved))
		fd = open_again(w, depth, child_fd);
	if (fd < 0) {
		drop_entries(frame);
		frame->at_end = true;
		frame->error = fd;
	}
	frame->fd = fd < 0 ? -1 : fd;
	frame->seek = true;
	w->parked = depth - 1;
}

/* Gives up the descriptor of the frame nearest to the root that has one, beside the root's. */
static void park(struct tos_walker *w)
{
	struct tos_frame *frame = &w->frames[w->parked + 1];

	if (w->config.trusts_cookies) {
		drop_entries(frame);
	} else if (!frame->at_end && tos_frame_read(frame) > 0) {
		/* There is no way back into such a directory: what is left of it is read now. */
		long ret;

		do
			ret = read_more(frame);
		while (ret > 0);
		frame->at_end = true;
		frame->error = (int)ret;
	}
	if (frame->fd >= 0)
		tos_close(frame->fd);
	frame->fd = -1;
	w->parked++;
}

static void park_some(struct tos_walker *w)
{
	while (w->frame_count - w->parked > w->config.max_dirs && w->parked + 2 < w->frame_count)
		park(w);
}

int tos_frames_push(struct tos_walker *w, int fd, const char *name, const struct tos_dir_id *id)
{
	int ret = tos_frames_add(w, name, id);

	if (ret) {
		tos_close(fd);
		return ret;
	}
	w->frames[w->frame_count++].fd = fd;
	park_some(w);
	return 0;
}

/* Takes off the deepest frame, and makes the one above it ready: the descriptor it had, or -1. */
int tos_frames_pop(struct tos_walker *w)
{
	struct tos_frame *frame = &w->frames[--w->frame_count];
	int fd = frame->fd;

	w->level_count--;
	if (w->frame_count && w->parked == w->frame_count - 1 && w->parked > 0)
		reopen(w, w->parked, fd);
	frame->fd = -1;
	tos_frame_clear(frame);
	return fd;
}

/* Whether an error says that the directory is not there, and not that it cannot be opened now. */
static bool is_elsewhere(int error)
{
	return error == -ENOENT || error == -ENOTDIR || error == -ELOOP || error == -EXDEV ||
	       error == -ESTALE;
}

static bool may_pass(int error)
{
	return tos_lacks_descriptors(error) || error == -ENOMEM || error == -EIO;
}

/* By its name in the directory above or by its handle: the descriptor, or -errno. */
static int find(struct tos_walker *w, size_t depth)
{
	const struct tos_frame *frame = &w->frames[depth];
	int fd = open_by_name(w->frames[depth - 1].fd, frame);
	int by_handle;

	if (fd >= 0)
		return fd;
	by_handle = open_by_handle(w, frame);
	return by_handle >= 0 || (is_elsewhere(fd) && may_pass(by_handle)) ? by_handle : fd;
}

/*
 * Opens the directories on the path to where a walk goes on: 0, or the error of the one at depth *at,
 * which may be *lost. Where the last one is not, but cannot be opened, there is an error in the walk.
 */
int tos_frames_restore(struct tos_walker *w, size_t *at, bool *lost)
{
	const size_t count = w->level_count;

	for (size_t i = w->frame_count; i < count; i++) {
		struct tos_frame *frame = &w->frames[i];
		int fd = find(w, i);

		*at = i;
		*lost = is_elsewhere(fd);
		if (fd < 0 && (i + 1 < count || *lost))
			return fd;
		frame->fd = fd < 0 ? -1 : fd;
		frame->seek = true;
		frame->at_end = fd < 0;
		frame->error = fd < 0 ? fd : 0;
		w->frame_count++;
		park_some(w);
	}
	return 0;
}

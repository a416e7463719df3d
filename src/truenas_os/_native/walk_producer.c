/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* The producer, which reads directories and fills the ring in order, and its helpers. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "walker.h"

/* Entries that a thread opens and stats before it tells that they are there. */
#define CHUNK 4
/* Below so many, waking helpers costs more than it saves. */
#define WORTH_HELP 16

/*
 * How often a thread looks for what another one is about to do before it sleeps: to be woken takes as
 * long as to open and stat a dozen files, and slices follow each other closely.
 */
#define LOOKS 50

/* Called with the mutex held, for each slot that becomes visible: drops it if it was skipped. */
void tos_walk_settle(struct tos_walker *w, struct tos_slot *slot)
{
	if (slot->depth > w->skip_depth)
		slot->kind = TOS_WALK_DROPPED;
	else
		w->skipping = false;
}

/* Called with the mutex held: what is done, without a gap, becomes visible to the consumer. */
static void publish(struct tos_walker *w)
{
	while (w->ready < w->reserved && tos_slot_at(w, w->ready)->state == TOS_SLOT_DONE) {
		if (w->skipping)
			tos_walk_settle(w, tos_slot_at(w, w->ready));
		w->ready++;
	}
	if (w->want && w->ready - w->taken >= w->want)
		tos_walk_signal(w);
}

static void done(struct tos_walker *w, struct tos_slot *slot)
{
	pthread_mutex_lock(&w->mutex);
	slot->state = TOS_SLOT_DONE;
	publish(w);
	pthread_mutex_unlock(&w->mutex);
}

/* Writes the mark of a directory whose contents were consumed, unless something in it failed. */
static void leave(struct tos_walker *w, const struct tos_slot *slot)
{
	const int64_t depth = (int64_t)slot->depth - 1;
	long ret;

	if (w->dirty >= depth) {
		w->dirty = depth - 1;
		return;
	}
	if (slot->unmarkable)
		return;
	ret = tos_retried(TOS_SYS_fsetxattr, slot->fd, TOS_ARG(w->config.mark_name),
			  TOS_ARG(w->config.mark_data), (long)w->config.mark_size, 0);
	if (ret) {
		pthread_mutex_lock(&w->mutex);
		w->unmarked++;
		pthread_mutex_unlock(&w->mutex);
	}
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Closes what was gathered. Descriptors mostly follow each other, and go in one call then. */
static void close_gathered(struct tos_walker *w)
{
	qsort(w->doomed, w->doomed_count, sizeof(*w->doomed), by_number);
	for (size_t i = 0, next; i < w->doomed_count; i = next) {
		for (next = i + 1; next < w->doomed_count; next++)
			if (w->doomed[next] != w->doomed[next - 1] + 1)
				break;
		if (next > i + 1 && !tos_syscall(TOS_SYS_close_range, w->doomed[i], w->doomed[next - 1],
						 0, 0, 0))
			continue;
		for (size_t j = i; j < next; j++)
			tos_close(w->doomed[j]);
	}
	w->doomed_count = 0;
}

/*
 * Ends the use of a slot; its descriptor is to be closed. Marks follow the order of consumption, and
 * so does what blocks them.
 */
static void dispose(struct tos_walker *w, uint64_t number, bool consumed)
{
	struct tos_slot *slot = tos_slot_at(w, number);

	if (consumed && slot->error && slot->kind != TOS_WALK_DROPPED &&
	    (int64_t)slot->depth - 1 > w->dirty)
		w->dirty = (int64_t)slot->depth - 1;
	if (consumed && slot->kind == TOS_WALK_LEAVE)
		leave(w, slot);
	if (slot->fd >= 0)
		w->doomed[w->doomed_count++] = slot->fd;
	slot->fd = -1;
	free(slot->long_name);
	slot->long_name = NULL;
}

static void dispose_released(struct tos_walker *w, uint64_t released)
{
	for (; w->closed < released; w->closed++)
		dispose(w, w->closed, true);
	close_gathered(w);
}

/* Waits until the consumer has released so many slots: 0, or -ECANCELED when the walk is closed. */
int tos_walk_wait_released(struct tos_walker *w, uint64_t count)
{
	uint64_t released;
	bool closing;

	pthread_mutex_lock(&w->mutex);
	while (w->released < count && !w->closing) {
		w->full = true;
		if (w->want)
			tos_walk_signal(w);
		pthread_cond_wait(&w->producer_wakes, &w->mutex);
	}
	w->full = false;
	released = w->released;
	closing = w->closing;
	pthread_mutex_unlock(&w->mutex);
	dispose_released(w, released);
	return closing ? -ECANCELED : 0;
}

/* Free slots, at least one, once what was released is closed; or -ECANCELED. */
static int64_t wait_free(struct tos_walker *w)
{
	const uint64_t capacity = w->config.capacity;
	const uint64_t needed = w->reserved < capacity ? 0 : w->reserved - capacity + 1;
	int ret = tos_walk_wait_released(w, needed);

	return ret ? ret : (int64_t)(w->closed + capacity - w->reserved);
}

static int set_name(struct tos_slot *slot, const char *name)
{
	const size_t size = strlen(name) + 1;

	free(slot->long_name);
	slot->long_name = NULL;
	if (size > sizeof(slot->name) && !(slot->long_name = malloc(size)))
		return -ENOMEM;
	memcpy(slot->long_name ? slot->long_name : slot->name, name, size);
	return 0;
}

/* A slot that wait_free() has promised; reserve() makes it one that is waited for. */
static struct tos_slot *prepare(struct tos_walker *w, uint64_t number, unsigned char kind,
				uint32_t depth)
{
	struct tos_slot *slot = tos_slot_at(w, number);

	slot->state = TOS_SLOT_PENDING;
	slot->kind = kind;
	slot->type = DT_UNKNOWN;
	slot->unmarkable = false;
	slot->fd = -1;
	slot->error = 0;
	slot->depth = depth;
	slot->cookie = 0;
	slot->handle_size = 0;
	slot->name[0] = 0;
	return slot;
}

static void reserve(struct tos_walker *w, uint64_t end)
{
	pthread_mutex_lock(&w->mutex);
	w->reserved = end;
	pthread_mutex_unlock(&w->mutex);
}

/* Puts something that is no entry into the ring, with a descriptor that is closed in its turn. */
static int emit(struct tos_walker *w, unsigned char kind, uint32_t depth, int error, int fd,
		bool unmarkable)
{
	int64_t free_slots = wait_free(w);
	struct tos_slot *slot;

	if (free_slots < 0) {
		if (fd >= 0)
			tos_close(fd);
		return (int)free_slots;
	}
	slot = prepare(w, w->reserved, kind, depth);
	slot->error = -error;
	slot->fd = fd;
	slot->unmarkable = unmarkable;
	reserve(w, w->reserved + 1);
	done(w, slot);
	return 0;
}

/* Gives up the deepest directory, whose contents end with an error or without. */
static int end_dir(struct tos_walker *w, int error)
{
	const uint32_t depth = (uint32_t)w->frame_count; /* of what is in it */
	const bool unmarkable = w->frames[depth - 1].unmarkable;
	int ret = error ? emit(w, TOS_WALK_ERROR, depth, error, -1, false) : 0;
	int fd;

	if (ret)
		return ret;
	fd = tos_frames_pop(w);
	if (w->config.mark_name)
		return emit(w, TOS_WALK_LEAVE, depth, 0, fd, unmarkable);
	if (fd >= 0)
		tos_close(fd);
	return 0;
}

/* Works at the slice, a chunk at a time. Called with the mutex held. */
static void work(struct tos_walker *w)
{
	while (w->slice_next < w->slice_end) {
		const uint64_t first = w->slice_next;
		const uint64_t end = first + CHUNK < w->slice_end ? first + CHUNK : w->slice_end;
		const int dir = w->slice_dir;
		enum tos_slot_state states[CHUNK];

		w->slice_next = end;
		pthread_mutex_unlock(&w->mutex);
		for (uint64_t i = first; i < end; i++)
			states[i - first] = tos_walk_fill(w, dir, tos_slot_at(w, i), tos_statx_at(w, i), false);
		pthread_mutex_lock(&w->mutex);
		for (uint64_t i = first; i < end; i++)
			tos_slot_at(w, i)->state = states[i - first];
		w->slice_pending -= (uint32_t)(end - first);
		publish(w);
		if (!w->slice_pending)
			pthread_cond_signal(&w->producer_wakes);
	}
}

/* Called with the mutex held. */
static void wait_for_slice(struct tos_walker *w)
{
	const unsigned int seen = atomic_load(&w->slices);

	pthread_mutex_unlock(&w->mutex);
	for (int i = 0; i < LOOKS && atomic_load(&w->slices) == seen; i++)
		sched_yield();
	pthread_mutex_lock(&w->mutex);
	while (atomic_load(&w->slices) == seen && !w->closing && !w->ended)
		pthread_cond_wait(&w->helpers_wake, &w->mutex);
}

void *tos_walk_help(void *walker)
{
	struct tos_walker *w = walker;

	pthread_mutex_lock(&w->mutex);
	while (!w->closing && !w->ended) {
		work(w);
		wait_for_slice(w);
	}
	w->threads--;
	pthread_cond_signal(&w->producer_wakes);
	pthread_mutex_unlock(&w->mutex);
	tos_walk_unref(w);
	return NULL;
}

static void fill_slice(struct tos_walker *w, uint64_t first)
{
	pthread_mutex_lock(&w->mutex);
	w->slice_dir = w->frames[w->frame_count - 1].fd;
	w->slice_next = first;
	w->slice_end = w->reserved;
	w->slice_pending = (uint32_t)(w->reserved - first);
	if (w->slice_pending >= WORTH_HELP) {
		atomic_fetch_add(&w->slices, 1);
		pthread_cond_broadcast(&w->helpers_wake);
	}
	work(w);
	for (int i = 0; i < LOOKS && w->slice_pending; i++) {
		pthread_mutex_unlock(&w->mutex);
		sched_yield();
		pthread_mutex_lock(&w->mutex);
	}
	while (w->slice_pending)
		pthread_cond_wait(&w->producer_wakes, &w->mutex);
	pthread_mutex_unlock(&w->mutex);
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* The type that the directory tells, or else that statx tells; DT_UNKNOWN if neither does. */
static unsigned char type_of(const struct tos_frame *frame, const struct tos_dirent64 *entry)
{
	struct tos_statx stx;

	if (entry->d_type != DT_UNKNOWN ||
	    tos_walk_statx(frame->fd, entry->d_name, AT_STATX_DONT_SYNC, &stx))
		return entry->d_type;
	return tos_walk_type(&stx);
}

/*
 * Reserves slots for the entries up to the next directory, at most limit: how many. *dir is set if
 * a directory is what comes next.
 */
static int gather(struct tos_walker *w, struct tos_frame *frame, int64_t limit, bool *dir)
{
	int count = 0;

	*dir = false;
	while (frame->pos < frame->len && count < limit) {
		const struct tos_dirent64 *entry = (const void *)(frame->entries + frame->pos);

		if (!is_dots(entry->d_name)) {
			const unsigned char type = type_of(frame, entry);

			if (type == DT_DIR) {
				*dir = true;
				break;
			}
			if (type != DT_LNK || w->config.include_symlinks) {
				struct tos_slot *slot = prepare(w, w->reserved + (uint64_t)count,
								TOS_WALK_ENTRY, (uint32_t)w->frame_count);

				slot->type = type;
				slot->cookie = entry->d_off;
				slot->pos = frame->pos;
				if (set_name(slot, entry->d_name))
					return -ENOMEM;
				count++;
			}
		}
		frame->pos += entry->d_reclen;
		frame->cookie = entry->d_off;
	}
	if (count)
		reserve(w, w->reserved + (uint64_t)count);
	return count;
}

/* Enters the directory that comes next, or hands out what has come in its place. */
static int enter(struct tos_walker *w, struct tos_frame *frame)
{
	const struct tos_dirent64 *entry = (const void *)(frame->entries + frame->pos);
	const uint64_t number = w->reserved;
	struct tos_slot *slot = prepare(w, number, TOS_WALK_ENTRY, (uint32_t)w->frame_count);
	struct tos_statx *stx = tos_statx_at(w, number);
	struct tos_dir_id id;
	int dir, ret;

	reserve(w, number + 1);
	slot->cookie = entry->d_off;
	if (set_name(slot, entry->d_name))
		return -ENOMEM;
	if (tos_walk_fill_dir(w, frame->fd, slot, stx, false, &dir) == TOS_SLOT_NEEDS_FD) {
		/* Everything before it is to be released first: those descriptors may be the last. */
		ret = tos_walk_wait_released(w, number);
		if (ret)
			return ret;
		tos_walk_fill_dir(w, frame->fd, slot, stx, true, &dir);
	}
	if (dir >= 0) {
		tos_walk_identify(dir, stx, &id);
		slot->handle_size = (unsigned char)id.handle_size;
		memcpy(slot->handle, id.handle, id.handle_size);
	}
	frame->pos += entry->d_reclen;
	frame->cookie = entry->d_off;
	if (dir >= 0) {
		ret = tos_frames_push(w, dir, tos_slot_name(slot), &id);
		if (ret)
			return ret;
	}
	done(w, slot);
	return 0;
}

/*
 * Sees to the slots that a slice could not finish: those for which there was no descriptor, and
 * those that turned out to be directories, which are read again from there.
 */
static int finish_slice(struct tos_walker *w, struct tos_frame *frame, uint64_t first)
{
	for (uint64_t i = first; i < w->reserved; i++) {
		struct tos_slot *slot = tos_slot_at(w, i);

		if (slot->state == TOS_SLOT_NEEDS_FD) {
			int ret = tos_walk_wait_released(w, i);

			if (ret)
				return ret;
			slot->state = tos_walk_fill(w, frame->fd, slot, tos_statx_at(w, i), true);
		}
		if (slot->state == TOS_SLOT_TURNED_DIR) {
			struct tos_dirent64 *entry = (void *)(frame->entries + slot->pos);

			for (uint64_t j = i; j < w->reserved; j++)
				dispose(w, j, false);
			close_gathered(w);
			frame->pos = slot->pos;
			entry->d_type = DT_DIR;
			reserve(w, i);
			return 0;
		}
		done(w, slot);
	}
	return 0;
}

/* Goes on in the deepest directory. */
static int step(struct tos_walker *w)
{
	struct tos_frame *frame = &w->frames[w->frame_count - 1];
	const uint64_t first = w->reserved;
	int64_t limit;
	bool dir;
	int ret = tos_frame_read(frame);

	if (ret <= 0)
		return end_dir(w, ret);
	limit = wait_free(w);
	if (limit < 0)
		return (int)limit;
	/* A slice that fills the ring would leave the consumer without work meanwhile. */
	if (limit > w->config.capacity / 4 + 1)
		limit = w->config.capacity / 4 + 1;
	ret = gather(w, frame, limit, &dir);
	if (ret < 0)
		return ret;
	if (ret > 0) {
		fill_slice(w, first);
		return finish_slice(w, frame, first);
	}
	return dir ? enter(w, frame) : 0;
}

/* Leaves the directories below the one that the consumer has skipped, and that one. */
static void unwind(struct tos_walker *w)
{
	size_t depth = w->frame_count;

	pthread_mutex_lock(&w->mutex);
	if (w->skipping)
		depth = w->skip_depth;
	pthread_mutex_unlock(&w->mutex);
	while (w->frame_count > depth) {
		int fd = tos_frames_pop(w);

		if (fd >= 0)
			tos_close(fd);
	}
}

/* Lets what follows become visible past slots that will never be filled. */
static void drop_unfinished(struct tos_walker *w)
{
	pthread_mutex_lock(&w->mutex);
	for (uint64_t i = w->ready; i < w->reserved; i++) {
		tos_slot_at(w, i)->kind = TOS_WALK_DROPPED;
		tos_slot_at(w, i)->state = TOS_SLOT_DONE;
	}
	publish(w);
	pthread_mutex_unlock(&w->mutex);
}

static void walk(struct tos_walker *w)
{
	size_t at = 0;
	bool lost = false;
	int ret = tos_frames_restore(w, &at, &lost);

	if (ret) {
		/* What cannot be opened is named as with ERROR: by the depth of what is in it. */
		emit(w, lost ? TOS_WALK_LOST : TOS_WALK_FATAL, (uint32_t)at + !lost, ret, -1, false);
		return;
	}
	/* A root that carries the mark has been walked. */
	if (w->level_count == 1 && tos_walk_is_marked(w, w->frames[0].fd)) {
		emit(w, TOS_WALK_END, 0, 0, -1, false);
		return;
	}
	while (!ret && w->frame_count && !tos_walk_closing(w)) {
		ret = step(w);
		if (!ret)
			unwind(w);
	}
	if (!ret)
		ret = tos_walk_wait_released(w, w->reserved); /* with all marks, before the end is told */
	if (ret == -ECANCELED)
		return;
	if (ret)
		drop_unfinished(w);
	emit(w, ret ? TOS_WALK_FATAL : TOS_WALK_END, 0, ret, -1, false);
}

/* Closes everything that nobody reads any more, with the marks of what was consumed. */
static void close_all(struct tos_walker *w)
{
	uint64_t released;

	pthread_mutex_lock(&w->mutex);
	while (w->slice_pending || w->threads > 1 || w->taking)
		pthread_cond_wait(&w->producer_wakes, &w->mutex);
	released = w->released;
	pthread_mutex_unlock(&w->mutex);
	for (; w->closed < w->reserved; w->closed++)
		dispose(w, w->closed, w->closed < released);
	close_gathered(w);
	while (w->level_count)
		tos_frame_clear(&w->frames[--w->level_count]);
}

void *tos_walk_produce(void *walker)
{
	struct tos_walker *w = walker;

	walk(w);
	pthread_mutex_lock(&w->mutex);
	w->ended = true;
	if (w->want)
		tos_walk_signal(w);
	pthread_cond_broadcast(&w->helpers_wake);
	while (!w->closing)
		pthread_cond_wait(&w->producer_wakes, &w->mutex);
	pthread_mutex_unlock(&w->mutex);
	close_all(w);
	pthread_mutex_lock(&w->mutex);
	w->threads--;
	tos_walk_signal(w);
	pthread_mutex_unlock(&w->mutex);
	tos_walk_unref(w);
	return NULL;
}

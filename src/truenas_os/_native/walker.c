/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* A walk as its consumer has it: made, started, taken from, ended. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "walker.h"

/* Bytes of stack for each thread: nothing large is kept there. */
#define STACK_SIZE (128 * 1024)

static void free_walker(struct tos_walker *w)
{
	for (size_t i = 0; i < w->level_count; i++)
		tos_frame_clear(&w->frames[i]);
	free(w->frames);
	for (size_t i = 0; w->slots && i < w->config.capacity; i++)
		free(w->slots[i].long_name);
	free(w->slots);
	free(w->statx);
	free(w->doomed);
	free((void *)w->config.mark_name);
	free((void *)w->config.mark_data);
	if (w->event_fd >= 0)
		close(w->event_fd);
	pthread_mutex_destroy(&w->mutex);
	pthread_cond_destroy(&w->producer_wakes);
	pthread_cond_destroy(&w->helpers_wake);
	free(w);
}

void tos_walk_unref(struct tos_walker *w)
{
	int left;

	pthread_mutex_lock(&w->mutex);
	left = --w->references;
	pthread_mutex_unlock(&w->mutex);
	if (!left)
		free_walker(w);
}

/* Called with the mutex held. Not through the fault hook: a lost wake-up is not an error but a bug. */
void tos_walk_signal(struct tos_walker *w)
{
	const uint64_t one = 1;

	w->want = 0;
	while (write(w->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

bool tos_walk_closing(struct tos_walker *w)
{
	bool closing;

	pthread_mutex_lock(&w->mutex);
	closing = w->closing;
	pthread_mutex_unlock(&w->mutex);
	return closing;
}

/* Copies what belongs to the caller, and finds out what the root is. */
static int set_up(struct tos_walker *w, const struct tos_walk_config *given, struct tos_dir_id *id)
{
	struct tos_walk_config *config = &w->config;
	struct tos_statx stx;
	void *data;
	int ret;

	w->slots = calloc(config->capacity, sizeof(*w->slots));
	w->statx = calloc(config->capacity, sizeof(*w->statx));
	w->doomed = calloc(config->capacity, sizeof(*w->doomed));
	if (!w->slots || !w->statx || !w->doomed)
		return -ENOMEM;
	if (given->mark_name) {
		if (config->mark_size > TOS_WALK_MARK_MAX)
			return -EINVAL;
		config->mark_name = strdup(given->mark_name);
		data = malloc(config->mark_size + 1);
		if (data)
			memcpy(data, given->mark_data, config->mark_size);
		config->mark_data = data;
		if (!config->mark_name || !data)
			return -ENOMEM;
	}
	w->event_fd = (int)tos_retried(TOS_SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0, 0, 0);
	if (w->event_fd < 0)
		return w->event_fd;
	ret = tos_walk_statx(config->root_fd, "", 0, &stx);
	if (ret)
		return ret;
	w->mnt_id = stx.stx_mnt_id;
	tos_walk_identify(config->root_fd, &stx, id);
	return 0;
}

int tos_walk_new(const struct tos_walk_config *config, struct tos_walker **out)
{
	struct tos_walker *w = calloc(1, sizeof(*w));
	struct tos_dir_id id = { 0 };
	int ret;

	if (!w) {
		tos_close(config->root_fd);
		return -ENOMEM;
	}
	w->config = *config;
	w->config.mark_name = w->config.mark_data = NULL; /* the caller's, until they are copied */
	w->event_fd = -1;
	w->dirty = -1;
	w->references = 1;
	pthread_mutex_init(&w->mutex, NULL);
	pthread_cond_init(&w->producer_wakes, NULL);
	pthread_cond_init(&w->helpers_wake, NULL);
	ret = set_up(w, config, &id);
	if (ret)
		tos_close(config->root_fd);
	else
		ret = tos_frames_push(w, config->root_fd, "", &id); /* closes it if that fails */
	if (ret) {
		free_walker(w);
		return ret;
	}
	*out = w;
	return 0;
}

int tos_walk_level(struct tos_walker *w, const struct tos_walk_level *level)
{
	struct tos_dir_id id = {
		.ino = level->ino,
		.btime_sec = level->btime_sec,
		.btime_nsec = level->btime_nsec,
		.handle_size = level->handle_size,
	};
	struct tos_frame *frame = &w->frames[0];

	if (level->handle_size > sizeof(id.handle))
		return -EINVAL;
	if (level->handle_size)
		memcpy(id.handle, level->handle, level->handle_size);
	if (*level->name) {
		int ret = tos_frames_add(w, level->name, &id);

		if (ret)
			return ret;
		frame = &w->frames[w->level_count - 1];
	}
	frame->cookie = level->cookie;
	frame->seek = true;
	frame->unmarkable = level->unmarkable;
	if (level->after) {
		free(frame->after);
		frame->after = strdup(level->after);
		if (!frame->after)
			return -ENOMEM;
	}
	return 0;
}

static int start_thread(struct tos_walker *w, pthread_attr_t *attr, void *(*body)(void *))
{
	pthread_t thread;
	int ret;

	pthread_mutex_lock(&w->mutex);
	w->references++;
	w->threads++;
	pthread_mutex_unlock(&w->mutex);
	ret = pthread_create(&thread, attr, body, w);
	if (ret) {
		pthread_mutex_lock(&w->mutex);
		w->references--;
		w->threads--;
		pthread_mutex_unlock(&w->mutex);
	}
	return -ret;
}

int tos_walk_start(struct tos_walker *w)
{
	pthread_attr_t attr;
	sigset_t every, before;
	int ret;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_SIZE > PTHREAD_STACK_MIN ? STACK_SIZE : PTHREAD_STACK_MIN);
	/* Signals are Python's: they are never to interrupt these threads. */
	sigfillset(&every);
	pthread_sigmask(SIG_SETMASK, &every, &before);
	ret = start_thread(w, &attr, tos_walk_produce);
	/* Without helpers, it is only slower. */
	for (uint32_t i = 0; !ret && i < w->config.helpers; i++)
		if (start_thread(w, &attr, tos_walk_help))
			break;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return ret;
}

int tos_walk_fd(const struct tos_walker *w)
{
	return w->event_fd;
}

/* Whether there was room for one more entry. */
static bool hand_out(struct tos_walker *w, uint64_t number, struct tos_walk_batch *to, size_t i)
{
	struct tos_slot *slot = tos_slot_at(w, number);
	const char *name = tos_slot_name(slot);
	const size_t size = strlen(name) + 1;

	if (size > to->names_size - to->names_len || slot->handle_size > to->handles_size - to->handles_len)
		return false;
	memcpy(to->names + to->names_len, name, size);
	to->names_len += size;
	memcpy(to->handles + to->handles_len, slot->handle, slot->handle_size);
	to->handles_len += slot->handle_size;
	memcpy(to->statx + i * TOS_WALK_STATX_SIZE, tos_statx_at(w, number), TOS_WALK_STATX_SIZE);
	to->entries[i] = (struct tos_walk_entry){
		.slot = number,
		.cookie = slot->cookie,
		.bytes = i ? to->entries[i - 1].bytes : 0,
		.depth = slot->depth,
		.fd = slot->fd,
		.error = slot->error,
		.kind = slot->kind,
		.type = slot->type,
		.handle_size = slot->handle_size,
	};
	if (slot->kind == TOS_WALK_ENTRY && slot->type == DT_REG &&
	    __builtin_add_overflow(to->entries[i].bytes, tos_statx_at(w, number)->stx_size,
				   &to->entries[i].bytes))
		to->entries[i].bytes = UINT64_MAX;
	if (slot->depth != to->depth)
		to->turns[to->turn_count++] = (uint32_t)i;
	to->depth = slot->depth;
	to->special |= slot->error || slot->kind != TOS_WALK_ENTRY;
	return true;
}

/*
 * Up to where there is something to hand out; if that is too little, more is to be waited for. From
 * now on the slots are read, and of a closed walk there are none.
 */
static uint64_t begin_taking(struct tos_walker *w, uint32_t want)
{
	uint64_t ready;

	pthread_mutex_lock(&w->mutex);
	ready = w->closing ? w->taken : w->ready;
	w->want = 0;
	w->taking = true;
	if (w->closing)
		tos_walk_signal(w); /* nobody is to wait for more */
	else if (ready == w->taken || (ready - w->taken < want && !w->full && !w->ended)) {
		ready = w->taken;
		w->want = want;
	}
	pthread_mutex_unlock(&w->mutex);
	return ready;
}

static void end_taking(struct tos_walker *w, uint64_t taken)
{
	pthread_mutex_lock(&w->mutex);
	w->taken = taken;
	w->taking = false;
	if (w->closing)
		pthread_cond_signal(&w->producer_wakes);
	pthread_mutex_unlock(&w->mutex);
}

int tos_walk_take(struct tos_walker *w, uint32_t want, struct tos_walk_batch *to)
{
	uint64_t ready = begin_taking(w, want);
	size_t count = 0;

	to->names_len = to->handles_len = to->turn_count = 0;
	to->special = 0;
	for (; to->taken < ready && count < to->capacity; to->taken++) {
		const unsigned char kind = tos_slot_at(w, to->taken)->kind;

		if (kind == TOS_WALK_LEAVE || kind == TOS_WALK_DROPPED)
			continue;
		if (!hand_out(w, to->taken, to, count))
			break;
		count++;
	}
	end_taking(w, to->taken);
	return (int)count;
}

void tos_walk_release(struct tos_walker *w, uint64_t slot)
{
	pthread_mutex_lock(&w->mutex);
	if (slot > w->released) {
		w->released = slot;
		w->full = false;
		pthread_cond_signal(&w->producer_wakes);
	}
	pthread_mutex_unlock(&w->mutex);
}

/* What is ready and below the skipped directory is dropped here, what comes later as it comes. */
void tos_walk_skip(struct tos_walker *w, uint64_t number, uint32_t depth)
{
	uint64_t first = number + 1;

	pthread_mutex_lock(&w->mutex);
	w->skip_depth = depth;
	w->skipping = true;
	/* Slots that were released may have another use by now. */
	if (first < w->released)
		first = w->released;
	for (uint64_t i = first; i < w->ready && w->skipping; i++)
		tos_walk_settle(w, tos_slot_at(w, i));
	pthread_mutex_unlock(&w->mutex);
}

uint64_t tos_walk_unmarked(struct tos_walker *w)
{
	uint64_t unmarked;

	pthread_mutex_lock(&w->mutex);
	unmarked = w->unmarked;
	pthread_mutex_unlock(&w->mutex);
	return unmarked;
}

void tos_walk_close(struct tos_walker *w, uint64_t slot)
{
	pthread_mutex_lock(&w->mutex);
	if (!w->closing) {
		if (slot > w->released)
			w->released = slot;
		w->closing = true;
		pthread_cond_signal(&w->producer_wakes);
		pthread_cond_broadcast(&w->helpers_wake);
		tos_walk_signal(w);
	}
	pthread_mutex_unlock(&w->mutex);
}

int tos_walk_ended(struct tos_walker *w)
{
	int threads;

	pthread_mutex_lock(&w->mutex);
	threads = w->threads;
	pthread_mutex_unlock(&w->mutex);
	return !threads;
}

void tos_walk_free(struct tos_walker *w)
{
	tos_walk_close(w, 0);
	tos_walk_unref(w);
}

int tos_walk_uuid(int fd, unsigned char *uuid)
{
	struct tos_fsuuid2 answer = { 0 };
	long ret = tos_retried(TOS_SYS_ioctl, fd, TOS_ARG(TOS_FS_IOC_GETFSUUID), TOS_ARG(&answer), 0, 0);

	if (ret < 0)
		return (int)ret;
	memcpy(uuid, answer.uuid, sizeof(answer.uuid));
	return answer.len <= sizeof(answer.uuid) ? answer.len : -EPROTO;
}

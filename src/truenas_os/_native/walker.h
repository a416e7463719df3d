/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * The walker's own side. One producer thread reads directories depth first and fills the ring;
 * helper threads open and stat slices of a directory with it. The consumer takes entries in order.
 *
 * Slots are numbered from the beginning of the walk, and number n stands at n % capacity:
 *
 *   closed <= released <= taken <= ready <= reserved <= closed + capacity
 *
 * Every descriptor handed out is in a slot between closed and ready, so that the ring bounds them.
 * closed and reserved are the producer's alone; the others are guarded by the mutex.
 */
#ifndef TOS_WALKER_H
#define TOS_WALKER_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "sys.h"
#include "sys.cdef.h"
#include "walker.cdef.h"

/* What is asked of every file; kernels that lack the unique mount id (before 6.8) give the old one. */
#define TOS_WALK_STATX_MASK \
	(TOS_STATX_BASIC_STATS | TOS_STATX_BTIME | TOS_STATX_MNT_ID | TOS_STATX_MNT_ID_UNIQUE)

/* Bytes that a mark may have. */
#define TOS_WALK_MARK_MAX 64

/* What a directory is recognised by when it is opened again. */
struct tos_dir_id {
	uint64_t ino;
	int64_t btime_sec;
	uint32_t btime_nsec;
	size_t handle_size;
	unsigned char handle[sizeof(struct tos_file_handle) + TOS_MAX_HANDLE_SZ];
};

/* A directory that is being read. Its number in the stack is its depth; the root's is 0. */
struct tos_frame {
	int fd;			/* -1 while it is parked */
	char *name;		/* in the directory above */
	struct tos_dir_id id;
	char *entries;		/* what getdents64(2) gave, or NULL */
	size_t size, len, pos;
	int64_t cookie;		/* of the last entry that was taken out */
	char *after;		/* passes over what comes before, and this name; or NULL */
	bool at_end;		/* nothing follows what was read, but error */
	int error;
	bool seek;		/* the descriptor does not stand where the entries end */
	bool unmarkable;
};

enum tos_slot_state { TOS_SLOT_PENDING, TOS_SLOT_NEEDS_FD, TOS_SLOT_TURNED_DIR, TOS_SLOT_DONE };

/* What the consumer reads of most entries comes first: it comes from another processor's cache. */
struct tos_slot {
	enum tos_slot_state state;
	int fd;
	int error;
	uint32_t depth;
	int64_t cookie;
	char *long_name;	/* instead of name */
	unsigned char kind;
	unsigned char type;
	unsigned char handle_size;
	bool unmarkable;	/* LEAVE */
	char name[256];
	size_t pos;		/* where its entry stands in the directory's entries */
	unsigned char handle[sizeof(struct tos_file_handle) + TOS_MAX_HANDLE_SZ];
};

struct tos_walker {
	struct tos_walk_config config;
	uint64_t mnt_id;
	int event_fd;
	struct tos_slot *slots;
	struct tos_statx *statx;

	/* The producer's. */
	struct tos_frame *frames;
	size_t frame_count, frame_size;
	size_t level_count;	/* frames to begin with */
	size_t parked;		/* the frames from 1 to this one are */
	uint64_t closed, reserved;
	int *doomed;		/* descriptors that are to be closed together */
	size_t doomed_count;
	int64_t dirty;		/* frames up to this depth have seen an error; -1: none */

	/* Guarded by the mutex. */
	pthread_mutex_t mutex;
	pthread_cond_t producer_wakes, helpers_wake;
	int references;
	int threads;
	bool closing;		/* by the consumer */
	bool ended;		/* nothing more comes */
	uint64_t released, taken, ready;
	uint64_t unmarked;
	uint32_t want;		/* the consumer waits for so many; 0: it does not */
	bool full;		/* the producer waits for a slot */
	bool taking;		/* the consumer reads slots that are ready */
	bool skipping;		/* what comes next is below the skipped directory */
	uint32_t skip_depth;
	int slice_dir;		/* the slice that helpers work at, from one chunk to the next */
	uint64_t slice_next, slice_end;
	uint32_t slice_pending;

	atomic_uint slices;	/* that helpers were called for */
};

static inline struct tos_slot *tos_slot_at(struct tos_walker *w, uint64_t number)
{
	return &w->slots[number % w->config.capacity];
}

static inline struct tos_statx *tos_statx_at(struct tos_walker *w, uint64_t number)
{
	return &w->statx[number % w->config.capacity];
}

static inline const char *tos_slot_name(const struct tos_slot *slot)
{
	return slot->long_name ? slot->long_name : slot->name;
}

static inline bool tos_lacks_descriptors(int error)
{
	return error == -EMFILE || error == -ENFILE;
}

/* walker.c */
void tos_walk_signal(struct tos_walker *w);
bool tos_walk_closing(struct tos_walker *w);
void tos_walk_unref(struct tos_walker *w);

/* walk_entries.c: what stands at one name */
long tos_retried(long nr, long a, long b, long c, long d, long e);
int tos_walk_open(int dirfd, const char *name, uint64_t flags, uint64_t resolve);
int tos_walk_statx(int dirfd, const char *name, int sync, struct tos_statx *out);
unsigned char tos_walk_type(const struct tos_statx *stx);
enum tos_slot_state tos_walk_fill(struct tos_walker *w, int dirfd, struct tos_slot *slot,
				  struct tos_statx *stx, bool last_try);
enum tos_slot_state tos_walk_fill_dir(struct tos_walker *w, int dirfd, struct tos_slot *slot,
				      struct tos_statx *stx, bool last_try, int *dir);
bool tos_walk_is_marked(const struct tos_walker *w, int dir);
void tos_walk_identify(int fd, const struct tos_statx *stx, struct tos_dir_id *id);

/* walk_frames.c: the stack of directories */
int tos_frames_add(struct tos_walker *w, const char *name, const struct tos_dir_id *id);
int tos_frames_push(struct tos_walker *w, int fd, const char *name, const struct tos_dir_id *id);
int tos_frames_pop(struct tos_walker *w);
int tos_frames_restore(struct tos_walker *w, size_t *at, bool *lost);
int tos_frame_read(struct tos_frame *frame);
void tos_frame_clear(struct tos_frame *frame);

/* walk_producer.c: the threads */
void tos_walk_settle(struct tos_walker *w, struct tos_slot *slot);
int tos_walk_wait_released(struct tos_walker *w, uint64_t count);
void *tos_walk_produce(void *walker);
void *tos_walk_help(void *walker);

#endif

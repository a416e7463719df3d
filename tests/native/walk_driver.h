/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* What the scenarios share: a tree, a count that owes nothing to the walker, and a consumer. */
#ifndef WALK_DRIVER_H
#define WALK_DRIVER_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "sys.cdef.h"
#include "walker.cdef.h"

#define CHECK(condition) check(condition, #condition, __FILE__, __LINE__)
#define MOST_ENTRIES 2048
#define MARK_NAME "user.truenas_os.walk_driver"
#define MARK_SIZE 16

void check(bool good, const char *what, const char *file, int line);
uint32_t chance(uint32_t below);

/* walk_tree.c */
struct set {
	uint64_t keys[2 * MOST_ENTRIES]; /* inode numbers; 0: none */
	size_t count;
};

struct tally {
	size_t entries, dirs;
	uint64_t identities; /* a sum that tells one set of entries from another */
	uint64_t bytes;	     /* of regular files */
};

extern int tree;	/* where it stands */
extern struct set still; /* what never moves, in the big tree */

void make_big_tree(int at);
void make_small_tree(int at);
void make_file(int at, const char *name, size_t size);
int make_dir(int at, const char *name);
void set_add(struct set *set, uint64_t key);
bool set_has(const struct set *set, uint64_t key);
void tally_add(struct tally *tally, uint64_t ino, mode_t mode, uint64_t size, uint32_t depth);
struct tally counted(bool symlinks, const struct set *skipped);
void check_tally(const struct tally *got, const struct tally *expected);
bool has_mark(int dir, const unsigned char *mark);
void check_marks(const struct set *consumed, const struct set *skipped, const unsigned char *mark,
		 bool complete);
bool marks_work(void);
size_t open_fds(void);
void check_fds(size_t before);

/* walk_consumer.c */
struct options {
	uint32_t capacity, helpers, max_dirs;
	int open_flags;
	bool symlinks, trusts_cookies, marks;
	int64_t btime_cutoff;
};

struct consumer {
	struct tos_walker *walker;
	struct options options;
	unsigned char mark[MARK_SIZE];
	struct tos_walk_batch batch;
	uint32_t want;
	useconds_t delay; /* between release and take, in microseconds */
	int count, next;  /* of the batch in hand */
	uint32_t depth;	  /* of the entry before */
	bool was_dir, stopped;
	const struct tos_walk_entry *entry; /* the last one handed out, which is not consumed yet */
	const struct statx *stx;
	const char *name, *name_next;
	const unsigned char *handle, *handle_next;
	int end, error; /* the kind that ended it */
	size_t errors;
	struct tally tally;
	struct set consumed, skipped;
	struct tos_walk_entry entries[MOST_ENTRIES];
	unsigned char statx[MOST_ENTRIES * TOS_WALK_STATX_SIZE];
	struct statx unpacked; /* what stx points to */
	uint32_t turns[MOST_ENTRIES];
	char names[1 << 16];
	unsigned char handles[1 << 16];
};

struct options any_options(void);
struct consumer *new_consumer(const struct options *options);
int prepare(struct consumer *c);
void begin(struct consumer *c);
void fetch(struct consumer *c);
void fetch_all(struct consumer *c);
bool next_entry(struct consumer *c);
bool is_dir(const struct consumer *c);
void skip(struct consumer *c);
void finish(struct consumer *c, uint64_t slot);
void walk_through(struct consumer *c);
void walk_and_check(const struct options *options);

/* walk_failures.c */
enum { LONG_NAME = 300 };
extern atomic_bool long_names; /* directories list names of so many bytes, as no local ones do */

void allocations_that_fail(void);
void threads_that_cannot_be_made(void);
void calls_that_fail(void);
void calls_that_are_stuck(void);

#endif

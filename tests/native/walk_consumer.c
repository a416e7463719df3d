// SPDX-License-Identifier: LGPL-3.0-or-later
/* A consumer, which checks whatever it is handed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "walk_driver.h"

struct options any_options(void)
{
	static const uint32_t capacities[] = { 2, 3, 8, 77, 1024 };

	return (struct options){
		.capacity = capacities[chance(5)],
		.helpers = chance(4),
		.max_dirs = chance(2) ? 3 : 64,
		.open_flags = chance(2) ? O_RDONLY : -1,
		.symlinks = chance(2),
		.trusts_cookies = chance(2),
	};
}

struct consumer *new_consumer(const struct options *options)
{
	static atomic_ulong walks;
	const unsigned long number = ++walks;
	struct consumer *c = calloc(1, sizeof(*c));

	CHECK(c);
	c->options = *options;
	/* Each walk has its own mark, or it would find those of the walks before it. */
	memcpy(c->mark, &number, sizeof(number));
	c->want = 1 + chance(options->capacity);
	c->batch = (struct tos_walk_batch){
		.capacity = 1 + chance(options->capacity),
		.entries = c->entries,
		.statx = c->statx,
		.names = c->names,
		.names_size = sizeof(c->names),
		.handles = c->handles,
		.handles_size = sizeof(c->handles),
		.turns = c->turns,
		.depth = 1,
	};
	c->depth = 0;
	c->was_dir = true;
	return c;
}

/* A walker that was not started, or -errno. */
int prepare(struct consumer *c)
{
	const struct options *options = &c->options;
	struct tos_walk_config config = {
		.root_fd = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
		.open_flags = options->open_flags,
		.include_symlinks = options->symlinks,
		.trusts_cookies = options->trusts_cookies,
		.btime_cutoff = options->btime_cutoff,
		.mark_name = options->marks ? MARK_NAME : NULL,
		.mark_data = c->mark,
		.mark_size = sizeof(c->mark),
		.capacity = options->capacity,
		.max_dirs = options->max_dirs,
		.helpers = options->helpers,
	};

	CHECK(config.root_fd >= 0);
	return tos_walk_new(&config, &c->walker);
}

void begin(struct consumer *c)
{
	CHECK(!prepare(c));
	CHECK(!tos_walk_start(c->walker));
}

/* No limit of time: a wake-up that is lost is for the watchdog. */
static void wait_event(struct consumer *c)
{
	struct pollfd readable = { .fd = tos_walk_fd(c->walker), .events = POLLIN };
	eventfd_t value;

	while (poll(&readable, 1, -1) < 0)
		CHECK(errno == EINTR);
	CHECK(!eventfd_read(readable.fd, &value));
}

/* The next batch, which gives up the one before. */
void fetch(struct consumer *c)
{
	uint64_t consumed;

	while (true) {
		consumed = c->batch.taken;
		tos_walk_release(c->walker, consumed);
		if (c->delay)
			usleep(c->delay);
		c->next = 0;
		c->name_next = c->names;
		c->handle_next = c->handles;
		c->count = tos_walk_take(c->walker, c->want, &c->batch);
		if (c->count)
			return;
		if (c->batch.taken == consumed) /* or something was left out */
			wait_event(c);
	}
}

/* Takes everything, once the producer can do nothing more. */
void fetch_all(struct consumer *c)
{
	c->batch.capacity = MOST_ENTRIES;
	c->count = tos_walk_take(c->walker, UINT32_MAX, &c->batch);
	if (c->count)
		return;
	wait_event(c);
	c->count = tos_walk_take(c->walker, UINT32_MAX, &c->batch);
}

bool is_dir(const struct consumer *c)
{
	return c->entry->type == DT_DIR;
}

/* The depth of each entry follows from the one before; its descriptor is of what statx says. */
static void check_entry(struct consumer *c)
{
	const struct tos_walk_entry *entry = c->entry;
	struct statx stx;

	CHECK(entry->depth >= 1 && entry->depth <= c->depth + c->was_dir);
	CHECK(*c->name && !strchr(c->name, '/'));
	CHECK((entry->fd >= 0) == (c->options.open_flags >= 0) || entry->error);
	if (entry->fd >= 0)
		CHECK(!statx(entry->fd, "", AT_EMPTY_PATH, STATX_INO, &stx) &&
		      stx.stx_ino == c->stx->stx_ino);
	c->depth = entry->depth;
	c->was_dir = is_dir(c);
}

/* Takes the next thing out of the batch: whether it is an entry. */
static bool unpack(struct consumer *c)
{
	c->entry = &c->entries[c->next];
	memcpy(&c->unpacked, c->statx + TOS_WALK_STATX_SIZE * (size_t)c->next++, TOS_WALK_STATX_SIZE);
	c->stx = &c->unpacked;
	c->name = c->name_next;
	c->name_next += strlen(c->name) + 1;
	c->handle = c->handle_next;
	c->handle_next += c->entry->handle_size;
	if (c->entry->error)
		c->errors++;
	if (c->entry->kind == TOS_WALK_ENTRY)
		return true;
	if (c->entry->kind != TOS_WALK_ERROR) {
		c->end = c->entry->kind;
		c->error = c->entry->error;
		c->stopped = true;
	}
	return false;
}

/* Whether there was one more entry before the end. */
bool next_entry(struct consumer *c)
{
	if (c->stx && c->entry->kind == TOS_WALK_ENTRY)
		set_add(&c->consumed, c->stx->stx_ino);
	while (!c->stopped) {
		if (c->next == c->count)
			fetch(c);
		if (!unpack(c))
			continue;
		check_entry(c);
		tally_add(&c->tally, c->stx->stx_ino, c->stx->stx_mode, c->stx->stx_size, c->depth);
		return true;
	}
	return false;
}

/* Skips the directory that was handed out last, also what is in hand of it. */
void skip(struct consumer *c)
{
	const uint32_t depth = c->depth;

	set_add(&c->skipped, c->stx->stx_ino);
	tos_walk_skip(c->walker, c->entry->slot, depth);
	while (c->next < c->count && c->entries[c->next].depth > depth) {
		c->name_next += strlen(c->name_next) + 1;
		c->handle_next += c->entries[c->next++].handle_size;
	}
	c->was_dir = false;
}

/* Closes the walk; waits until it has ended. */
void finish(struct consumer *c, uint64_t slot)
{
	tos_walk_close(c->walker, slot);
	while (!tos_walk_ended(c->walker))
		wait_event(c);
	tos_walk_free(c->walker);
	c->walker = NULL;
}

void walk_through(struct consumer *c)
{
	while (next_entry(c))
		;
	finish(c, c->batch.taken);
}

void walk_and_check(const struct options *options)
{
	const struct tally expected = counted(options->symlinks, NULL);
	struct consumer *c = new_consumer(options);

	begin(c);
	walk_through(c);
	CHECK(c->end == TOS_WALK_END);
	check_tally(&c->tally, &expected);
	free(c);
}

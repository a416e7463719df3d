// SPDX-License-Identifier: LGPL-3.0-or-later
/*
 * Runs the walker's producer without Python, so that the sanitizers see all of it:
 *
 *	walk_driver DIRECTORY [SCENARIO [SEED]]
 *
 * Each scenario has a tree of its own in the directory, and a process of its own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "walk_driver.h"

/* Seconds for a scenario, which takes one or two. */
#define AMPLE 60
#define MOST_LEVELS 64

static const char *current = "walk_driver";
static uint64_t seed;

void check(bool good, const char *what, const char *file, int line)
{
	if (good)
		return;
	fprintf(stderr, "%s: %s:%d: not so: %s (%s)\n", current, file, line, what, strerror(errno));
	_exit(1);
}

static void hangs(int signal)
{
	static const char message[] = ": this hangs\n";

	(void)signal;
	if (write(STDERR_FILENO, current, strlen(current)) < 0 ||
	    write(STDERR_FILENO, message, sizeof(message) - 1) < 0)
		_exit(3);
	_exit(2);
}

uint32_t chance(uint32_t below)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	uint32_t drawn;

	pthread_mutex_lock(&mutex);
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	drawn = (uint32_t)(seed >> 32) % below;
	pthread_mutex_unlock(&mutex);
	return drawn;
}

static void walks_are_complete(void)
{
	static const uint32_t capacities[] = { 2, 3, 8, 77, 1024 };

	for (uint32_t helpers = 0; helpers <= 3; helpers++)
		for (size_t i = 0; i < 10; i++)
			walk_and_check(&(struct options){
				.capacity = capacities[i / 2],
				.helpers = helpers,
				.max_dirs = 3,
				.open_flags = i % 2 ? O_RDONLY : -1,
				.symlinks = chance(2),
				.trusts_cookies = helpers % 2,
			});
}

static void skipped_directories_are_left_out(void)
{
	for (int i = 0; i < 40; i++) {
		struct options options = any_options();
		struct consumer *c = new_consumer(&options);
		struct tally expected;

		c->delay = chance(2) * 20;
		begin(c);
		while (next_entry(c)) {
			if (!is_dir(c) || chance(3))
				continue;
			usleep(chance(2) * 500); /* that it may be read ahead */
			skip(c);
		}
		finish(c, c->batch.taken);
		CHECK(c->end == TOS_WALK_END);
		expected = counted(options.symlinks, &c->skipped);
		check_tally(&c->tally, &expected);
		free(c);
	}
}

static void closing_at_any_point_leaves_nothing(void)
{
	for (uint32_t i = 0; i < 120; i++) {
		struct options options = any_options();
		struct consumer *c = new_consumer(&options);
		const size_t before = open_fds();
		uint32_t stop = chance(4) ? chance(700) : 0;

		options.marks = chance(2);
		CHECK(!prepare(c));
		if (i % 8)
			CHECK(!tos_walk_start(c->walker));
		else
			stop = 0;
		while (stop && next_entry(c))
			stop--;
		if (chance(2))
			finish(c, c->entry ? c->entry->slot : 0);
		else
			tos_walk_free(c->walker);
		check_fds(before);
		free(c);
	}
}

struct closer {
	struct tos_walker *walker;
	atomic_uint batches; /* that were asked for */
	uint32_t after;
};

static void *close_meanwhile(void *arg)
{
	struct closer *closer = arg;

	while (closer->batches < closer->after)
		sched_yield();
	tos_walk_close(closer->walker, 0);
	return NULL;
}

static void check_whole(const struct consumer *c)
{
	const char *name = c->names;

	for (int i = 0; i < c->count; i++, name += strlen(name) + 1) {
		const struct tos_walk_entry *entry = &c->entries[i];

		if (entry->kind != TOS_WALK_ENTRY)
			continue;
		CHECK(strlen(name) == LONG_NAME);
		CHECK((entry->fd >= 0) == (c->options.open_flags >= 0) || entry->error);
	}
}

static void what_is_taken_while_another_thread_closes_is_whole(void)
{
	long_names = true;
	for (uint32_t i = 0; i < 200; i++) {
		struct options options = any_options();
		struct closer closer = { .after = 1 + chance(4) };
		const size_t before = open_fds();
		struct consumer *c;
		pthread_t thread;

		options.capacity = 1024;
		c = new_consumer(&options);
		begin(c);
		fetch_all(c);
		closer.walker = c->walker;
		CHECK(!pthread_create(&thread, NULL, close_meanwhile, &closer));
		while (!tos_walk_ended(c->walker)) {
			check_whole(c);
			tos_walk_release(c->walker, c->batch.taken);
			closer.batches++;
			c->count = tos_walk_take(c->walker, 1, &c->batch);
		}
		CHECK(!tos_walk_take(c->walker, 1, &c->batch));
		CHECK(!pthread_join(thread, NULL));
		tos_walk_free(c->walker);
		check_fds(before);
		free(c);
	}
}

/* In the middle of a walk, and at its end, where it waits for all to be released. */
static void closing_a_producer_that_waits(void)
{
	for (int i = 0; i < 40; i++) {
		struct options options = any_options();
		const struct tally expected = counted(options.symlinks, NULL);
		const size_t before = open_fds();
		struct consumer *c = new_consumer(&options);

		begin(c);
		fetch_all(c);
		CHECK(c->count && (uint32_t)c->count <= options.capacity);
		CHECK(options.capacity < 1024 || (size_t)c->count == expected.entries);
		CHECK(open_fds() <= before + options.capacity + options.max_dirs + 3);
		CHECK(!tos_walk_ended(c->walker));
		if (i % 2)
			finish(c, c->batch.taken);
		else
			tos_walk_free(c->walker);
		check_fds(before);
		free(c);
	}
}

static void a_consumer_that_pauses_holds_up_the_producer(void)
{
	for (int i = 0; i < 6; i++) {
		struct options options = any_options();
		struct consumer *c = new_consumer(&options);
		const size_t before = open_fds();

		begin(c);
		for (uint32_t n = chance(300); n && next_entry(c); n--)
			;
		usleep(30000);
		CHECK(open_fds() <= before + options.capacity + options.max_dirs + 3);
		while (next_entry(c))
			;
		CHECK(c->end == TOS_WALK_END);
		finish(c, c->batch.taken);
		check_fds(before);
		free(c);
	}
}

/* Whatever fills the ring, if none of it is for the consumer the walk goes on. */
static void entries_that_are_not_handed_out(void)
{
	const struct tally expected = counted(false, NULL);

	for (uint32_t i = 0; i < 12; i++) {
		struct options options = any_options();
		struct consumer *c;

		options.capacity = 2 + i % 4;
		options.btime_cutoff = i % 2;
		options.marks = i % 3 && marks_work();
		c = new_consumer(&options);
		c->want = 1;
		c->delay = 100;
		begin(c);
		walk_through(c);
		CHECK(c->end == TOS_WALK_END && c->tally.dirs == expected.dirs);
		free(c);
	}
}

static void marks_are_of_what_was_consumed(void)
{
	for (uint32_t i = 0; i < 40 && marks_work(); i++) {
		struct options options = any_options();
		uint32_t stop = i % 2 ? UINT32_MAX : chance(600);
		struct consumer *c;

		options.marks = options.symlinks = true;
		c = new_consumer(&options);
		begin(c);
		for (; next_entry(c) && stop; stop--)
			if (is_dir(c) && !chance(5))
				skip(c);
		finish(c, c->entry->slot);
		check_marks(&c->consumed, &c->skipped, c->mark, c->end == TOS_WALK_END && !c->errors);
		CHECK(!c->errors || !has_mark(tree, c->mark));
		free(c);
	}
}

/* Walks that break off, each with the marks of those before it, see everything in the end. */
static void marks_lead_on(void)
{
	struct options options = any_options();
	struct consumer *first, *c;
	bool complete = !marks_work();

	options.marks = options.symlinks = true;
	first = new_consumer(&options);
	for (uint32_t stop = 50; !complete; stop += 50) {
		c = new_consumer(&options);
		memcpy(c->mark, first->mark, sizeof(c->mark));
		begin(c);
		for (uint32_t n = stop; n && next_entry(c); n--)
			set_add(&first->consumed, c->stx->stx_ino);
		complete = c->end == TOS_WALK_END;
		CHECK(!c->errors || stop < 2000);
		finish(c, c->entry ? c->entry->slot : 0);
		free(c);
	}
	check_marks(&first->consumed, &first->skipped, first->mark, false);
	free(first);
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

	CHECK(!syscall(SYS_capset, &header, none, 0, 0, 0, 0));
}

static void an_unreadable_directory_is_reported_and_blocks_marks(void)
{
	drop_capabilities();
	for (int i = 0; i < 10; i++) {
		struct options options = any_options();
		const struct tally expected = counted(options.symlinks, NULL);
		struct consumer *c;
		int wide = openat(tree, "wide", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		options.marks = marks_work();
		c = new_consumer(&options);
		begin(c);
		walk_through(c);
		CHECK(c->end == TOS_WALK_END && c->errors == 1);
		check_tally(&c->tally, &expected);
		CHECK(!has_mark(tree, c->mark) && has_mark(wide, c->mark) == options.marks);
		close(wide);
		free(c);
	}
}

static void *walk_often(void *options)
{
	for (int i = 0; i < 10; i++)
		walk_and_check(options);
	return NULL;
}

static void two_walks_at_once(void)
{
	struct options options[2] = { any_options(), any_options() };
	pthread_t thread;

	options[1].open_flags = O_RDONLY;
	CHECK(!pthread_create(&thread, NULL, walk_often, &options[1]));
	walk_often(&options[0]);
	CHECK(!pthread_join(thread, NULL));
}

struct swapper {
	pthread_t thread;
	atomic_bool stop;
	int at;
};

static void *swap(void *arg)
{
	static const char *const pairs[][2] = {
		{ "file", "dir" }, { "dir/inner", "dir/inner file" }, { "dir", "other" }, { "other", "fifo" }
	};
	struct swapper *swapper = arg;
	const int at = swapper->at;

	/* What was swapped away by one pair is missing for the next: they fail as often as not. */
	for (size_t i = 0; !swapper->stop; i = (i + 1) % 4) {
		renameat2(at, pairs[i][0], at, pairs[i][1], RENAME_EXCHANGE);
		renameat2(at, "other/inner", at, "moved", RENAME_NOREPLACE);
		renameat2(at, "moved", at, "dir/inner", RENAME_NOREPLACE);
	}
	return NULL;
}

static void begin_swapping(struct swapper *swapper)
{
	static const char *const dirs[] = { "dir", "other", "dir/inner", "other/inner",
					    "dir/inner/a", "dir/inner/a/b", "other/inner/c" };

	swapper->stop = false;
	swapper->at = make_dir(tree, "moving");
	for (size_t i = 0; i < sizeof(dirs) / sizeof(*dirs); i++) {
		int dir = make_dir(swapper->at, dirs[i]);

		for (char name[] = "f0"; name[1] <= '9'; name[1]++)
			make_file(dir, name, 1);
		close(dir);
	}
	make_file(swapper->at, "file", 1);
	make_file(swapper->at, "dir/inner file", 1);
	CHECK(!mkfifoat(swapper->at, "fifo", 0600));
	CHECK(!pthread_create(&swapper->thread, NULL, swap, swapper));
}

static void what_is_swapped_meanwhile_harms_nothing_else(void)
{
	const size_t before = open_fds();
	struct swapper swapper;

	begin_swapping(&swapper);
	for (int i = 0; i < 30; i++) {
		struct options options = any_options();
		struct consumer *c;
		size_t count = 0;

		options.symlinks = true;
		options.max_dirs = 3;
		c = new_consumer(&options);
		begin(c);
		while (next_entry(c))
			count += set_has(&still, c->stx->stx_ino);
		CHECK(c->end == TOS_WALK_END && count == still.count + 1); /* one is a hard link */
		finish(c, c->batch.taken);
		free(c);
	}
	swapper.stop = true;
	CHECK(!pthread_join(swapper.thread, NULL));
	close(swapper.at);
	check_fds(before);
}

/* Where a consumer stands: the directories from the root down, as resuming needs them. */
struct standing {
	size_t count;
	struct {
		struct tos_walk_level level;
		char name[256], after[256];
		unsigned char handle[256];
	} levels[MOST_LEVELS];
};

static void note(struct standing *at, const struct consumer *c)
{
	const size_t depth = c->depth;

	CHECK(depth + 1 < MOST_LEVELS);
	at->levels[depth - 1].level.cookie = c->entry->cookie;
	strcpy(at->levels[depth - 1].after, c->name);
	at->count = depth;
	if (!is_dir(c) || c->entry->error)
		return;
	at->count++;
	at->levels[depth].level = (struct tos_walk_level){
		.ino = c->stx->stx_ino,
		.btime_sec = c->stx->stx_btime.tv_sec,
		.btime_nsec = c->stx->stx_btime.tv_nsec,
		.handle_size = c->entry->handle_size,
	};
	strcpy(at->levels[depth].name, c->name);
	at->levels[depth].after[0] = 0;
	memcpy(at->levels[depth].handle, c->handle, c->entry->handle_size);
}

static void give_levels(struct consumer *c, const struct standing *at)
{
	for (size_t i = 0; i < at->count; i++) {
		struct tos_walk_level level = at->levels[i].level;

		level.name = at->levels[i].name;
		level.handle = at->levels[i].handle;
		if (!c->options.trusts_cookies) {
			level.after = at->levels[i].after[0] ? at->levels[i].after : NULL;
			level.cookie = 0;
		}
		CHECK(!tos_walk_level(c->walker, &level));
	}
	c->depth = (uint32_t)at->count - 1;
}

/* Walks up to some entry: where it stands then. */
static struct consumer *break_off(const struct options *options, struct standing *at)
{
	struct consumer *c = new_consumer(options);

	memset(at, 0, sizeof(*at));
	begin(c);
	for (uint32_t stop = chance(450); next_entry(c); stop--) {
		note(at, c);
		if (!stop)
			break;
	}
	finish(c, c->entry->slot);
	return c;
}

static void a_walk_goes_on_where_another_stood(void)
{
	static struct standing at;

	for (int i = 0; i < 30; i++) {
		const struct options options = any_options();
		const struct tally expected = counted(options.symlinks, NULL);
		struct consumer *c = break_off(&options, &at), *next = new_consumer(&options);

		CHECK(!prepare(next));
		give_levels(next, &at);
		next->tally = c->tally;
		CHECK(!tos_walk_start(next->walker));
		walk_through(next);
		CHECK(next->end == TOS_WALK_END);
		check_tally(&next->tally, &expected);
		free(c);
		free(next);
	}
}

static void a_directory_that_is_not_found_again_ends_the_walk(void)
{
	static struct standing at;

	for (int i = 0; i < 10; i++) {
		const struct options options = any_options();
		struct consumer *c;

		do
			free(break_off(&options, &at));
		while (at.count < 2);
		c = new_consumer(&options);
		at.levels[at.count - 1].level.ino++;
		CHECK(!prepare(c));
		give_levels(c, &at);
		CHECK(!tos_walk_start(c->walker));
		CHECK(!next_entry(c) && c->end == TOS_WALK_LOST && c->error == ESTALE);
		CHECK(c->entry->depth == at.count - 1);
		finish(c, 0);
		free(c);
	}
}

struct scenario {
	const char *name;
	void (*run)(void);
	void (*make_tree)(int at);
};

#define SCENARIO(name, tree) { #name, name, make_##tree##_tree }

static const struct scenario scenarios[] = {
	SCENARIO(walks_are_complete, big),
	SCENARIO(skipped_directories_are_left_out, big),
	SCENARIO(closing_at_any_point_leaves_nothing, big),
	SCENARIO(what_is_taken_while_another_thread_closes_is_whole, big),
	SCENARIO(closing_a_producer_that_waits, big),
	SCENARIO(a_consumer_that_pauses_holds_up_the_producer, big),
	SCENARIO(entries_that_are_not_handed_out, big),
	SCENARIO(marks_are_of_what_was_consumed, big),
	SCENARIO(marks_lead_on, big),
	SCENARIO(an_unreadable_directory_is_reported_and_blocks_marks, big),
	SCENARIO(two_walks_at_once, big),
	SCENARIO(what_is_swapped_meanwhile_harms_nothing_else, big),
	SCENARIO(a_walk_goes_on_where_another_stood, big),
	SCENARIO(a_directory_that_is_not_found_again_ends_the_walk, big),
	SCENARIO(allocations_that_fail, small),
	SCENARIO(threads_that_cannot_be_made, small),
	SCENARIO(calls_that_fail, small),
	SCENARIO(calls_that_are_stuck, big),
};

static void run(const struct scenario *scenario, int at)
{
	const size_t before = open_fds();

	current = scenario->name;
	signal(SIGALRM, hangs);
	alarm(AMPLE);
	tree = make_dir(at, current);
	scenario->make_tree(tree);
	scenario->run();
	check_fds(before + 1);
	fchmodat(tree, "locked", 0700, 0); /* for whoever removes the trees, if it is there */
	CHECK(!close(tree));
	exit(EXIT_SUCCESS); /* with what sanitizers do there */
}

/* Whether it succeeded. */
static bool succeeds(const struct scenario *scenario, int at)
{
	struct timespec begun, ended;
	int status;
	pid_t pid;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	pid = fork();
	if (!pid)
		run(scenario, at);
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%-60s %6.2f s%s\n", scenario->name,
	       (double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9,
	       status ? "  FAILED" : "");
	fflush(stdout);
	return !status;
}

int main(int argc, char **argv)
{
	int failures = 0, at;

	CHECK(argc > 1);
	at = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(at >= 0);
	seed = argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)time(NULL) * 0x9e3779b97f4a7c15;
	printf("seed %#llx\n", (unsigned long long)seed);
	fflush(stdout);
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++)
		if (argc < 3 || !strcmp(argv[2], scenarios[i].name))
			failures += !succeeds(&scenarios[i], at);
	close(at);
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

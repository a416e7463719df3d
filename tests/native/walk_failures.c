// SPDX-License-Identifier: LGPL-3.0-or-later
/* What goes wrong below the walker: memory, threads and system calls. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "walk_driver.h"

/* The linker leads every call of NAME to __wrap_NAME, which gets at NAME itself as __real_NAME. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*body)(void *),
			  void *arg);
long __real_syscall(long nr, long a, long b, long c, long d, long e, long f);

/* How many go well before some fail. */
static atomic_long allocations = LONG_MAX, threads = LONG_MAX;
static atomic_long failures;

static bool fails(atomic_long *successes)
{
	const long left = atomic_fetch_sub(successes, 1);

	return left <= 0 && left > -failures;
}

void *__wrap_malloc(size_t size)
{
	return fails(&allocations) ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return fails(&allocations) ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	return fails(&allocations) ? NULL : __real_realloc(old, size);
}

char *__wrap_strdup(const char *text)
{
	return fails(&allocations) ? NULL : __real_strdup(text);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*body)(void *),
			  void *arg)
{
	return fails(&threads) ? EAGAIN : __real_pthread_create(thread, attr, body, arg);
}

atomic_bool long_names;

/* getdents64(2), with "\1" and more behind each name. */
static long list_long_names(long fd, char *to, size_t size)
{
	const size_t needed = offsetof(struct dirent64, d_name) + LONG_NAME + 1;
	const size_t shortest = offsetof(struct dirent64, d_name) + sizeof("a");
	char from[4096];
	long at, len, written = 0;

	CHECK(size / needed * shortest < sizeof(from));
	len = __real_syscall(SYS_getdents64, fd, (long)from, size / needed * shortest, 0, 0, 0);
	for (at = 0; at < len; at += ((const struct dirent64 *)(from + at))->d_reclen) {
		const struct dirent64 *entry = (const void *)(from + at);
		struct dirent64 *longer = (void *)(to + written);
		const size_t name = strlen(entry->d_name);

		memcpy(longer, entry, offsetof(struct dirent64, d_name));
		memset(longer->d_name, 'x', LONG_NAME);
		memcpy(longer->d_name, entry->d_name, name + 1);
		if (*entry->d_name != '.') {
			longer->d_name[name] = '\1';
			longer->d_name[LONG_NAME] = 0;
		}
		longer->d_reclen = (unsigned short)(needed + 7) / 8 * 8;
		written += longer->d_reclen;
	}
	return len < 0 ? len : written;
}

/* In every scenario: no descriptor is closed that is closed already, or might be another's. */
long __wrap_syscall(long nr, ...)
{
	char real_name[LONG_NAME];
	long arguments[6], ret;
	va_list list;

	va_start(list, nr);
	for (int i = 0; i < 6; i++)
		arguments[i] = va_arg(list, long);
	va_end(list);
	if (long_names && nr == SYS_getdents64)
		return list_long_names(arguments[0], (char *)arguments[1], (size_t)arguments[2]);
	if (long_names && (nr == SYS_openat2 || nr == SYS_statx)) {
		const char *name = (const char *)arguments[1];

		snprintf(real_name, sizeof(real_name), "%.*s", (int)strcspn(name, "\1"), name);
		arguments[1] = (long)real_name;
	}
	ret = __real_syscall(nr, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
			     arguments[5]);
	if (nr == SYS_close)
		CHECK(!ret);
	return ret;
}

static struct options small_options(void)
{
	return (struct options){
		.capacity = 5,
		.helpers = 1,
		.max_dirs = 3,
		.open_flags = chance(2) ? O_RDONLY : -1,
		.trusts_cookies = chance(2),
		.marks = marks_work(),
	};
}

/* Walks while something fails: what is missing was reported, and blocks marks. */
static void walk_despite(struct consumer *c, const struct tally *expected, bool may_lose)
{
	if (prepare(c))
		return;
	if (tos_walk_start(c->walker)) {
		tos_walk_free(c->walker);
		return;
	}
	while (next_entry(c))
		;
	finish(c, c->batch.taken);
	CHECK(c->end == TOS_WALK_END || c->end == TOS_WALK_FATAL);
	if (c->end == TOS_WALK_END && !c->errors && !may_lose)
		check_tally(&c->tally, expected);
	if (c->end != TOS_WALK_END || c->errors)
		CHECK(!has_mark(tree, c->mark));
	if (!may_lose)
		check_marks(&c->consumed, &c->skipped, c->mark, false);
}

void allocations_that_fail(void)
{
	const struct tally expected = counted(false, NULL);
	bool reached = true;

	for (long n = 0; reached; n++) {
		const size_t before = open_fds();
		struct options options = small_options();
		struct consumer *c = new_consumer(&options);

		failures = n % 2 ? LONG_MAX : 1;
		allocations = n / 2;
		walk_despite(c, &expected, false);
		reached = allocations < 0;
		allocations = LONG_MAX;
		check_fds(before);
		free(c);
	}
}

void threads_that_cannot_be_made(void)
{
	const struct tally expected = counted(false, NULL);

	for (long n = 0; n < 5; n++) {
		const size_t before = open_fds();
		struct options options = small_options();
		struct consumer *c = new_consumer(&options);

		options.helpers = 3;
		failures = 1;
		threads = n;
		walk_despite(c, &expected, false);
		CHECK((c->end == TOS_WALK_END) == (n > 0) && !c->errors);
		threads = LONG_MAX;
		check_fds(before);
		free(c);
	}
}

/* Makes the call after so many others fail: whether it was made. */
static bool walk_with_fault(long nr, long n, int error)
{
	const bool is_gone = error == ENOENT || error == ESTALE || error == EXDEV;
	const struct tally expected = counted(false, NULL);
	struct options options = small_options();
	struct consumer *c = new_consumer(&options);
	const size_t before = open_fds();
	long seen;

	tos_fault_arm(nr, n, chance(4) ? 1 : 3, error, -1, -1);
	walk_despite(c, &expected, is_gone);
	seen = tos_fault_disarm();
	check_fds(before);
	free(c);
	return seen > n;
}

void calls_that_fail(void)
{
	static const long calls[] = { SYS_eventfd2, SYS_openat2, SYS_statx, SYS_getdents64, SYS_lseek,
				      SYS_fcntl, SYS_fgetxattr, SYS_fsetxattr, SYS_close_range,
				      SYS_name_to_handle_at, SYS_open_by_handle_at };
	static const int errors[] = { EIO, EACCES, ENOENT, EMFILE, ENOMEM, ESTALE, ELOOP, EXDEV, EINTR };

	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		for (size_t j = 0; j < sizeof(errors) / sizeof(*errors); j++)
			for (long n = 0; walk_with_fault(calls[i], n, errors[j]); n++)
				;
}

/* Takes entries until a system call of the walker's has stopped; false if none does. */
static bool walk_until_stuck(struct consumer *c, int reached)
{
	struct pollfd stuck = { .fd = reached, .events = POLLIN };

	while (!poll(&stuck, 1, 0)) {
		struct pollfd both[] = { stuck, { .fd = tos_walk_fd(c->walker), .events = POLLIN } };

		const uint64_t consumed = c->batch.taken;

		tos_walk_release(c->walker, consumed);
		c->count = tos_walk_take(c->walker, 1, &c->batch);
		if (c->count && c->entries[c->count - 1].kind == TOS_WALK_END)
			return false;
		if (c->batch.taken == consumed)
			CHECK(poll(both, 2, -1) > 0);
	}
	return true;
}

static void walk_with_stuck_call(long nr, bool free_at_once)
{
	const size_t before = open_fds();
	struct options options = any_options();
	struct consumer *c;
	int reached[2], go[2];
	bool stuck;

	options.marks = marks_work();
	c = new_consumer(&options);
	CHECK(!pipe2(reached, O_CLOEXEC) && !pipe2(go, O_CLOEXEC));
	CHECK(!prepare(c));
	tos_fault_arm(nr, chance(2), 1, 0, reached[1], go[0]);
	CHECK(!tos_walk_start(c->walker));
	stuck = walk_until_stuck(c, reached[0]);
	CHECK(stuck || nr == SYS_close); /* most descriptors are closed by close_range(2) */
	if (free_at_once)
		tos_walk_free(c->walker);
	else
		tos_walk_close(c->walker, c->batch.taken);
	usleep(500);
	CHECK(free_at_once || !stuck || !tos_walk_ended(c->walker));
	CHECK(write(go[1], "", 1) == 1);
	if (!free_at_once)
		finish(c, 0);
	check_fds(before + 4);
	tos_fault_disarm();
	for (int i = 0; i < 2; i++)
		CHECK(!close(reached[i]) && !close(go[i]));
	free(c);
}

void calls_that_are_stuck(void)
{
	static const long calls[] = { SYS_openat2, SYS_statx, SYS_getdents64, SYS_close, SYS_fsetxattr };
	const size_t count = sizeof(calls) / sizeof(*calls) - !marks_work();

	for (size_t i = 0; i < 20 * count; i++)
		walk_with_stuck_call(calls[i % count], chance(2));
}

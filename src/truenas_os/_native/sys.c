/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "sys.h"
#include "sys.cdef.h"

/*
 * What the tests armed. This is the native layer's only global state, and it exists so that the
 * library that ships is the library whose error paths are tested; unarmed it costs one relaxed load.
 */
static struct {
	atomic_int armed;
	pthread_mutex_t mutex;
	long nr;
	long skip;
	long times;
	long seen;
	int error;
	int reached_fd;
	int go_fd;
} fault = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static void hold(int reached_fd, int go_fd)
{
	char byte = 0;

	while (write(reached_fd, &byte, 1) < 0 && errno == EINTR)
		;
	while (read(go_fd, &byte, 1) < 0 && errno == EINTR)
		;
}

/* 0, or the -errno with which the call that is about to be made must fail. */
static int injected(long nr)
{
	int hit = 0, error = 0, reached_fd = -1, go_fd = -1;

	pthread_mutex_lock(&fault.mutex);
	if (atomic_load(&fault.armed) && (fault.nr < 0 || fault.nr == nr)) {
		long n = fault.seen++;

		hit = n >= fault.skip && n - fault.skip < fault.times;
		error = fault.error;
		reached_fd = fault.reached_fd;
		go_fd = fault.go_fd;
	}
	pthread_mutex_unlock(&fault.mutex);
	if (!hit)
		return 0;
	if (go_fd >= 0)
		hold(reached_fd, go_fd);
	return -error;
}

void tos_fault_arm(long nr, long skip, long times, int error, int reached_fd, int go_fd)
{
	pthread_mutex_lock(&fault.mutex);
	fault.nr = nr;
	fault.skip = skip;
	fault.times = times;
	fault.seen = 0;
	fault.error = error;
	fault.reached_fd = reached_fd;
	fault.go_fd = go_fd;
	atomic_store(&fault.armed, 1);
	pthread_mutex_unlock(&fault.mutex);
}

long tos_fault_disarm(void)
{
	long seen;

	pthread_mutex_lock(&fault.mutex);
	atomic_store(&fault.armed, 0);
	seen = fault.seen;
	pthread_mutex_unlock(&fault.mutex);
	return seen;
}

long tos_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;

	if (atomic_load_explicit(&fault.armed, memory_order_relaxed)) {
		int error = injected(nr);

		if (error)
			return error;
	}
	ret = syscall(nr, a, b, c, d, e, f);
	return ret < 0 ? -errno : ret;
}

int tos_close(int fd)
{
	return (int)tos_syscall(TOS_SYS_close, fd, 0, 0, 0, 0);
}

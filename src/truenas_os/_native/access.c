/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "sys.h"
#include "access.cdef.h"

/*
 * In the child, a copy of one thread of a process that may have many: nothing but system calls,
 * because another thread may have held any lock.
 */

static int become(unsigned int uid, unsigned int gid, const unsigned int *groups, size_t n_groups)
{
	struct tos_cap_header header = { .version = TOS_CAPABILITY_VERSION_3 };
	struct tos_cap_data none[2] = { { 0 } };

	if (syscall(TOS_SYS_setgroups, n_groups, groups) || syscall(TOS_SYS_setresgid, gid, gid, gid) ||
	    syscall(TOS_SYS_setresuid, uid, uid, uid))
		return errno;
	/* Secure bits may have kept what the change of the user id takes from others. */
	return uid && syscall(SYS_capset, &header, none) ? errno : 0;
}

static void ask(const char *paths, size_t count, int mode, int *errors)
{
	for (size_t i = 0; i < count; i++) {
		errors[i] = syscall(SYS_faccessat, AT_FDCWD, paths, mode) ? errno : 0;
		paths += strlen(paths) + 1;
	}
}

/*
 * A child that ends without a signal. It shares the table of descriptors: a copy would keep open what
 * this process closes, for as long as a server lets the child wait.
 */
static long start(void)
{
#ifdef __s390__
	return tos_syscall(TOS_SYS_clone, 0, CLONE_FILES, 0, 0, 0);
#else
	return tos_syscall(TOS_SYS_clone, CLONE_FILES, 0, 0, 0, 0);
#endif
}

int tos_access_as(unsigned int uid, unsigned int gid, const unsigned int *groups, size_t n_groups,
		  const char *paths, size_t count, int mode, int *errors)
{
	sigset_t all, old;
	long pid;

	/* A signal to the whole process group must not run this process's handlers in the child. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = start();
	if (!pid) {
		errors[0] = become(uid, gid, groups, n_groups);
		if (!errors[0])
			ask(paths, count, mode, errors + 1);
		for (;;)
			syscall(SYS_exit_group, 0);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return (int)pid;
}

int tos_wait_for(int pid)
{
	int status = 0;
	long ret = tos_syscall(TOS_SYS_wait4, pid, TOS_ARG(&status), TOS_WALL, 0, 0);

	return ret < 0 ? (int)ret : status;
}

/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include <errno.h>
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

	/* The real and the saved ids stay: who is asked about may not signal or trace this process. */
	if (syscall(TOS_SYS_setgroups, n_groups, groups) || syscall(TOS_SYS_setresgid, -1, gid, -1) ||
	    syscall(TOS_SYS_setresuid, -1, uid, -1))
		return errno;
	/* Secure bits may have kept what the change of the user id takes from others. */
	return uid && syscall(SYS_capset, &header, none) ? errno : 0;
}

static int ask(const char *paths, size_t count, int mode, int *errors)
{
	for (size_t i = 0; i < count; i++) {
		errors[i] = syscall(TOS_SYS_faccessat2, AT_FDCWD, paths, mode, AT_EACCESS) ? errno : 0;
		if (errors[i] == ENOSYS)
			return ENOSYS;
		paths += strlen(paths) + 1;
	}
	return 0;
}

int tos_access_as(unsigned int uid, unsigned int gid, const unsigned int *groups, size_t n_groups,
		  const char *paths, size_t count, int mode, int *errors, int *pidfd)
{
	/*
	 * It ends without a signal, and shares the table of descriptors: a copy would keep open what this
	 * process closes, for as long as a server lets the child wait. This process's signal handlers are
	 * not for it.
	 */
	struct tos_clone_args args = {
		.flags = TOS_CLONE_PIDFD | TOS_CLONE_FILES | TOS_CLONE_CLEAR_SIGHAND,
		.pidfd = (uint64_t)(uintptr_t)pidfd,
	};
	long pid = tos_syscall(TOS_SYS_clone3, TOS_ARG(&args), sizeof(args), 0, 0, 0);

	if (!pid) {
		int failed = become(uid, gid, groups, n_groups);

		errors[0] = failed ? failed : ask(paths, count, mode, errors + 1);
		for (;;)
			syscall(SYS_exit_group, 0);
	}
	return (int)pid;
}

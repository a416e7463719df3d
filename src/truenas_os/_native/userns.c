/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "sys.h"
#include "userns.cdef.h"

/* In the child of a process with threads: nothing but system calls. */
static void wait_to_be_killed(long parent)
{
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	/* Who died before that has sent nothing. (0: the parent is in another pid namespace.) */
	for (;;) {
		long now = syscall(SYS_getppid);

		if (now != parent && now != 0)
			syscall(SYS_exit_group, 0);
		syscall(SYS_ppoll, 0, 0, 0, 0, 0);
	}
}

int tos_userns_child(int *pidfd)
{
	/*
	 * The table of descriptors is shared, so that the child's end closes nothing: with copies, it
	 * would flush files, which can hang. Its exit signal is 0, so that no SIGCHLD is sent and no
	 * wait() of the program meets it.
	 */
	struct tos_clone_args args = {
		.flags = TOS_CLONE_NEWUSER | TOS_CLONE_PIDFD | TOS_CLONE_FILES | TOS_CLONE_CLEAR_SIGHAND,
		.pidfd = (uint64_t)(uintptr_t)pidfd,
	};
	long parent = getpid();
	long pid = tos_syscall(TOS_SYS_clone3, TOS_ARG(&args), sizeof(args), 0, 0, 0);

	if (pid == 0)
		wait_to_be_killed(parent);
	return (int)pid;
}

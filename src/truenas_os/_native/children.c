/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <errno.h>
#include <signal.h>

#include "sys.h"
#include "children.cdef.h"

int tos_wait_child(int pidfd)
{
	/* Children that end without a signal are waited for only with __WALL. */
	long ret = tos_syscall(TOS_SYS_waitid, TOS_P_PIDFD, pidfd, 0, TOS_WEXITED | TOS_WALL, 0);

	return ret == -ECHILD ? 0 : (int)ret;
}

int tos_end_child(int pidfd)
{
	long ret = tos_syscall(TOS_SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0, 0);

	return ret < 0 ? (int)ret : tos_wait_child(pidfd);
}

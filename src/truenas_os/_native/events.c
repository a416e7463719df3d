/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <errno.h>

#include "sys.h"
#include "events.cdef.h"

int tos_mount_events_open(void)
{
	return (int)tos_syscall(TOS_SYS_fanotify_init,
				TOS_FAN_REPORT_MNT | TOS_FAN_CLOEXEC | TOS_FAN_NONBLOCK, 0, 0, 0, 0);
}

int tos_mount_events_mark(int fanotify_fd, int mnt_ns)
{
	uint64_t mask = TOS_FAN_MNT_ATTACH | TOS_FAN_MNT_DETACH;

	/* Where a long has 32 bits, the mask would take two arguments, in an order of its own. */
	if (sizeof(long) < sizeof(mask))
		return -ENOSYS;
	return (int)tos_syscall(TOS_SYS_fanotify_mark, fanotify_fd, TOS_FAN_MARK_ADD | TOS_FAN_MARK_MNTNS,
				TOS_ARG(mask), mnt_ns, 0);
}

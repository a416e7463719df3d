/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include "sys.h"
#include "fuse.cdef.h"

int tos_syncfs(int fd)
{
	return (int)tos_syscall(TOS_SYS_syncfs, fd, 0, 0, 0, 0);
}

/* SPDX-License-Identifier: LGPL-3.0-or-later */
/* The one door to the kernel: every system call of the native layer goes through tos_syscall(). */
#ifndef TOS_SYS_H
#define TOS_SYS_H

#include "uapi.h"

/* The system call's result, or -errno. Never retried: Python decides, so that signal handlers run. */
long tos_syscall6(long nr, long a, long b, long c, long d, long e, long f);

static inline long tos_syscall(long nr, long a, long b, long c, long d, long e)
{
	return tos_syscall6(nr, a, b, c, d, e, 0);
}

#define TOS_ARG(x) ((long)(x))

#endif

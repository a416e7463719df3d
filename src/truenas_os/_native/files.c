/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include "sys.h"
#include "files.cdef.h"

int tos_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct tos_open_how how = {
		.flags = flags | TOS_O_CLOEXEC | (flags & TOS_O_PATH ? 0 : TOS_O_LARGEFILE),
		.mode = mode,
		.resolve = resolve,
	};

	return (int)tos_syscall(TOS_SYS_openat2, dirfd, TOS_ARG(path), TOS_ARG(&how), sizeof(how), 0);
}

int tos_statx(int dirfd, const char *path, int flags, unsigned int mask, void *out)
{
	return (int)tos_syscall(TOS_SYS_statx, dirfd, TOS_ARG(path), flags, mask, TOS_ARG(out));
}

int tos_renameat2(int olddirfd, const char *oldpath, int newdirfd, const char *newpath,
		  unsigned int flags)
{
	return (int)tos_syscall(TOS_SYS_renameat2, olddirfd, TOS_ARG(oldpath), newdirfd,
				TOS_ARG(newpath), flags);
}

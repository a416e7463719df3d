/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "sys.h"
#include "files.cdef.h"
#include "safefiles.cdef.h"
#include "sys.cdef.h"

/* 0 if fd is a regular file, else -errno. */
static int refused(int fd)
{
	struct tos_statx found;
	int ret = tos_statx(fd, "", AT_EMPTY_PATH, TOS_STATX_TYPE, &found);

	if (ret)
		return ret;
	switch (found.stx_mode & S_IFMT) {
	case S_IFREG:
		return 0;
	case S_IFDIR:
		return -EISDIR;
	default:
		return -ENOTSUP;
	}
}

/* What was a regular file may be a FIFO by now: opens without waiting, and looks again. */
static int open_again(int dirfd, const char *path, uint64_t flags, uint64_t resolve)
{
	int fd = tos_openat2(dirfd, path, flags | O_NONBLOCK, 0, resolve);
	int ret = fd < 0 ? fd : refused(fd);

	if (!ret && !(flags & O_NONBLOCK))
		ret = (int)tos_syscall(TOS_SYS_fcntl, fd, F_SETFL, TOS_ARG(flags), 0, 0);
	if (ret < 0 && fd >= 0)
		tos_close(fd);
	return ret < 0 ? ret : fd;
}

int tos_open_regular(int dirfd, const char *path, uint64_t flags, uint64_t resolve)
{
	char link[sizeof("/proc/self/fd/-2147483648")];
	int pin = tos_openat2(dirfd, path, O_PATH, 0, resolve);
	int ret;

	if (pin < 0)
		return pin;
	ret = refused(pin);
	if (!ret)
		ret = open_again(dirfd, path, flags, resolve);
	if (ret == -EAGAIN && !(flags & O_NONBLOCK)) {
		/* Somebody has a lease on the file, and is told to give it up while this waits. */
		snprintf(link, sizeof(link), "/proc/self/fd/%d", pin);
		ret = tos_openat2(-1, link, flags, 0, 0);
	}
	tos_close(pin);
	return ret;
}

int tos_linkat(int olddirfd, const char *oldpath, int newdirfd, const char *newpath, int flags)
{
	return (int)tos_syscall(TOS_SYS_linkat, olddirfd, TOS_ARG(oldpath), newdirfd,
				TOS_ARG(newpath), flags);
}

int tos_unlinkat(int dirfd, const char *path, int flags)
{
	return (int)tos_syscall(TOS_SYS_unlinkat, dirfd, TOS_ARG(path), flags, 0, 0);
}

int tos_fsync(int fd)
{
	return (int)tos_syscall(TOS_SYS_fsync, fd, 0, 0, 0, 0);
}

int tos_flock(int fd, int operation)
{
	return (int)tos_syscall(TOS_SYS_flock, fd, operation, 0, 0, 0);
}

int tos_fchmod(int fd, unsigned int mode)
{
	return (int)tos_syscall(TOS_SYS_fchmod, fd, mode, 0, 0, 0);
}

int tos_fchown(int fd, unsigned int uid, unsigned int gid)
{
	return (int)tos_syscall(TOS_SYS_fchown, fd, uid, gid, 0, 0);
}

/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <errno.h>

#include "sys.h"
#include "xattrs.cdef.h"

int tos_getxattrat(int dirfd, const char *path, int at_flags, const char *name, void *value,
		   size_t size)
{
	struct tos_xattr_args args = { .value = (uintptr_t)value, .size = (uint32_t)size };

	return (int)tos_syscall6(TOS_SYS_getxattrat, dirfd, TOS_ARG(path), at_flags, TOS_ARG(name),
				 TOS_ARG(&args), sizeof(args));
}

int tos_listxattrat(int dirfd, const char *path, int at_flags, char *list, size_t size)
{
	return (int)tos_syscall(TOS_SYS_listxattrat, dirfd, TOS_ARG(path), at_flags, TOS_ARG(list),
				TOS_ARG(size));
}

int tos_setxattrat(int dirfd, const char *path, int at_flags, const char *name, const void *value,
		   size_t size, int flags)
{
	struct tos_xattr_args args = {
		.value = (uintptr_t)value,
		.size = (uint32_t)size,
		.flags = (uint32_t)flags,
	};

	if (size > UINT32_MAX)
		return -E2BIG;
	return (int)tos_syscall6(TOS_SYS_setxattrat, dirfd, TOS_ARG(path), at_flags, TOS_ARG(name),
				 TOS_ARG(&args), sizeof(args));
}

int tos_removexattrat(int dirfd, const char *path, int at_flags, const char *name)
{
	return (int)tos_syscall(TOS_SYS_removexattrat, dirfd, TOS_ARG(path), at_flags, TOS_ARG(name),
				0);
}

int tos_getxattr(const char *path, const char *name, void *value, size_t size)
{
	return (int)tos_syscall(TOS_SYS_getxattr, TOS_ARG(path), TOS_ARG(name), TOS_ARG(value),
				TOS_ARG(size), 0);
}

int tos_listxattr(const char *path, char *list, size_t size)
{
	return (int)tos_syscall(TOS_SYS_listxattr, TOS_ARG(path), TOS_ARG(list), TOS_ARG(size), 0, 0);
}

int tos_setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
	return (int)tos_syscall(TOS_SYS_setxattr, TOS_ARG(path), TOS_ARG(name), TOS_ARG(value),
				TOS_ARG(size), flags);
}

int tos_removexattr(const char *path, const char *name)
{
	return (int)tos_syscall(TOS_SYS_removexattr, TOS_ARG(path), TOS_ARG(name), 0, 0, 0);
}

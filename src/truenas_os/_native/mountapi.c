/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <errno.h>

#include "sys.h"
#include "mountapi.cdef.h"

int tos_fsopen(const char *fs_name, unsigned int flags)
{
	return (int)tos_syscall(TOS_SYS_fsopen, TOS_ARG(fs_name), flags | TOS_FSOPEN_CLOEXEC, 0, 0, 0);
}

int tos_fsconfig(int fs_fd, unsigned int cmd, const char *key, const void *value, int aux)
{
	return (int)tos_syscall(TOS_SYS_fsconfig, fs_fd, cmd, TOS_ARG(key), TOS_ARG(value), aux);
}

int tos_fsmount(int fs_fd, unsigned int flags, unsigned int attr_flags)
{
	return (int)tos_syscall(TOS_SYS_fsmount, fs_fd, flags | TOS_FSMOUNT_CLOEXEC, attr_flags, 0, 0);
}

int tos_fspick(int dirfd, const char *path, unsigned int flags)
{
	return (int)tos_syscall(TOS_SYS_fspick, dirfd, TOS_ARG(path), flags | TOS_FSPICK_CLOEXEC, 0, 0);
}

int tos_fscontext_check(int fs_fd)
{
	/* The kernel looks at the descriptor first: only a context gets as far as to a key nowhere. */
	int ret = fs_fd < 0 ? -EBADF : tos_fsconfig(fs_fd, 0, (const char *)1, NULL, 0);

	return ret == -EFAULT ? 0 : ret;
}

int tos_fscontext_read(int fs_fd, char *line, size_t size)
{
	return (int)tos_syscall(TOS_SYS_read, fs_fd, TOS_ARG(line), TOS_ARG(size), 0, 0);
}

int tos_open_tree(int dirfd, const char *path, unsigned int flags)
{
	return (int)tos_syscall(TOS_SYS_open_tree, dirfd, TOS_ARG(path), flags | TOS_O_CLOEXEC, 0, 0);
}

int tos_open_tree_attr(int dirfd, const char *path, unsigned int flags, uint64_t attr_set,
		       uint64_t attr_clr, uint64_t propagation, uint64_t userns_fd)
{
	struct tos_mount_attr attr = { attr_set, attr_clr, propagation, userns_fd };

	return (int)tos_syscall(TOS_SYS_open_tree_attr, dirfd, TOS_ARG(path), flags | TOS_O_CLOEXEC,
				TOS_ARG(&attr), sizeof(attr));
}

int tos_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path,
		   unsigned int flags)
{
	return (int)tos_syscall(TOS_SYS_move_mount, from_dirfd, TOS_ARG(from_path), to_dirfd,
				TOS_ARG(to_path), flags);
}

int tos_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t attr_set,
		      uint64_t attr_clr, uint64_t propagation, uint64_t userns_fd)
{
	struct tos_mount_attr attr = { attr_set, attr_clr, propagation, userns_fd };

	return (int)tos_syscall(TOS_SYS_mount_setattr, dirfd, TOS_ARG(path), flags, TOS_ARG(&attr),
				sizeof(attr));
}

int tos_umount2(const char *target, int flags)
{
	return (int)tos_syscall(TOS_SYS_umount2, TOS_ARG(target), flags, 0, 0, 0);
}

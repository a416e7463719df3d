/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <errno.h>

#include "sys.h"
#include "attributes.cdef.h"

int tos_file_getattr(int dirfd, const char *path, void *attr, int at_flags)
{
	return (int)tos_syscall(TOS_SYS_file_getattr, dirfd, TOS_ARG(path), TOS_ARG(attr),
				sizeof(struct tos_file_attr), at_flags);
}

int tos_file_setattr(int dirfd, const char *path, const void *attr, int at_flags)
{
	return (int)tos_syscall(TOS_SYS_file_setattr, dirfd, TOS_ARG(path), TOS_ARG(attr),
				sizeof(struct tos_file_attr), at_flags);
}

int tos_fsgetxattr(int fd, void *attr)
{
	struct tos_fsxattr fsx = { 0 };
	struct tos_file_attr *fa = attr;
	long ret = tos_syscall(TOS_SYS_ioctl, fd, TOS_ARG(TOS_FS_IOC_FSGETXATTR), TOS_ARG(&fsx), 0, 0);

	if (!ret)
		*fa = (struct tos_file_attr){
			.fa_xflags = fsx.fsx_xflags,
			.fa_extsize = fsx.fsx_extsize,
			.fa_nextents = fsx.fsx_nextents,
			.fa_projid = fsx.fsx_projid,
			.fa_cowextsize = fsx.fsx_cowextsize,
		};
	return (int)ret;
}

int tos_fssetxattr(int fd, const void *attr)
{
	const struct tos_file_attr *fa = attr;
	struct tos_fsxattr fsx = {
		.fsx_xflags = (uint32_t)fa->fa_xflags,
		.fsx_extsize = fa->fa_extsize,
		.fsx_projid = fa->fa_projid,
		.fsx_cowextsize = fa->fa_cowextsize,
	};

	if (fa->fa_xflags > UINT32_MAX)
		return -EINVAL;
	return (int)tos_syscall(TOS_SYS_ioctl, fd, TOS_ARG(TOS_FS_IOC_FSSETXATTR), TOS_ARG(&fsx), 0, 0);
}

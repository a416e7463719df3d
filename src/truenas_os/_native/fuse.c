/* SPDX-License-Identifier: LGPL-3.0-or-later */
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>

#include "sys.h"
#include "fuse.cdef.h"

int tos_syncfs(int fd)
{
	return (int)tos_syscall(TOS_SYS_syncfs, fd, 0, 0, 0, 0);
}

int tos_fuse_backing_open(int device, int fd, uint32_t dropped)
{
	struct tos_cap_header header = { .version = TOS_CAPABILITY_VERSION_3 };
	struct tos_cap_data own[2], fewer[2];
	struct tos_fuse_backing_map map = { .fd = fd };
	int id, ret = (int)tos_syscall(SYS_capget, TOS_ARG(&header), TOS_ARG(own), 0, 0, 0);

	if (ret < 0)
		return ret;
	memcpy(fewer, own, sizeof(own));
	fewer[0].effective &= ~dropped;
	ret = (int)tos_syscall(SYS_capset, TOS_ARG(&header), TOS_ARG(fewer), 0, 0, 0);
	if (ret < 0)
		return ret;
	id = (int)tos_syscall(TOS_SYS_ioctl, device, TOS_FUSE_DEV_IOC_BACKING_OPEN, TOS_ARG(&map), 0, 0);
	ret = (int)tos_syscall(SYS_capset, TOS_ARG(&header), TOS_ARG(own), 0, 0, 0);
	if (ret < 0 && id > 0)
		tos_fuse_backing_close(device, id);
	return ret < 0 ? ret : id;
}

int tos_fuse_backing_close(int device, int id)
{
	uint32_t number = (uint32_t)id;

	return (int)tos_syscall(TOS_SYS_ioctl, device, TOS_FUSE_DEV_IOC_BACKING_CLOSE, TOS_ARG(&number),
				0, 0);
}

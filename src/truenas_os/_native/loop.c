/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include <string.h>

#include "sys.h"
#include "loop.cdef.h"

int tos_loop_get_free(int control_fd)
{
	return (int)tos_syscall(TOS_SYS_ioctl, control_fd, TOS_LOOP_CTL_GET_FREE, 0, 0, 0);
}

int tos_loop_configure(int loop_fd, int backing_fd, uint32_t block_size, uint64_t offset,
		       uint32_t flags, const char *file_name)
{
	struct tos_loop_config config = {
		.fd = (uint32_t)backing_fd,
		.block_size = block_size,
		.info = { .lo_offset = offset, .lo_flags = flags },
	};
	size_t length = strnlen(file_name, sizeof(config.info.lo_file_name) - 1);

	/* For people to read, in losetup's list: it may be cut. */
	memcpy(config.info.lo_file_name, file_name, length);
	return (int)tos_syscall(TOS_SYS_ioctl, loop_fd, TOS_LOOP_CONFIGURE, TOS_ARG(&config), 0, 0);
}

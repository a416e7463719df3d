/* SPDX-License-Identifier: LGPL-3.0-or-later */
#include "sys.h"
#include "filehandle.cdef.h"

int tos_name_to_handle_at(int dirfd, const char *path, void *handle, uint64_t *mount_id, int flags)
{
	struct tos_file_handle *fh = handle;
	int old_id = 0;
	int unique = flags & TOS_AT_HANDLE_MNT_ID_UNIQUE;
	long ret;

	fh->handle_bytes = TOS_MAX_HANDLE_SZ;
	fh->handle_type = 0;
	ret = tos_syscall(TOS_SYS_name_to_handle_at, dirfd, TOS_ARG(path), TOS_ARG(fh),
			  unique ? TOS_ARG(mount_id) : TOS_ARG(&old_id), flags);
	if (ret < 0)
		return (int)ret;
	if (!unique)
		*mount_id = (uint64_t)old_id;
	return (int)(sizeof(*fh) + fh->handle_bytes);
}

int tos_open_by_handle_at(int mount_fd, const void *handle, int flags)
{
	return (int)tos_syscall(TOS_SYS_open_by_handle_at, mount_fd, TOS_ARG(handle),
				flags | TOS_O_CLOEXEC, 0, 0);
}

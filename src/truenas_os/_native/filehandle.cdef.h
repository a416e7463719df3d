/* SPDX-License-Identifier: LGPL-3.0-or-later */

/*
 * name_to_handle_at(2) into handle, which holds 8 + 128 bytes: the handle's size in bytes, or
 * -errno. mount_id gets the unique id if flags ask for it, else the old one.
 */
int tos_name_to_handle_at(int dirfd, const char *path, void *handle, uint64_t *mount_id, int flags);

/* open_by_handle_at(2) of a whole struct file_handle: a close-on-exec descriptor, or -errno. */
int tos_open_by_handle_at(int mount_fd, const void *handle, int flags);

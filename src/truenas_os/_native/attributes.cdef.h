/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* file_getattr(2), file_setattr(2) of a struct file_attr (24 bytes): 0 or -errno. Linux 6.17. */
int tos_file_getattr(int dirfd, const char *path, void *attr, int at_flags);
int tos_file_setattr(int dirfd, const char *path, const void *attr, int at_flags);

/* The same of an open file, by FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR: 0 or -errno. */
int tos_fsgetxattr(int fd, void *attr);
int tos_fssetxattr(int fd, const void *attr);

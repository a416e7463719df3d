/* SPDX-License-Identifier: LGPL-3.0-or-later */

/*
 * getxattrat(2), listxattrat(2): the size in bytes (of what was written, unless size is 0), or
 * -errno; setxattrat(2), removexattrat(2): 0 or -errno. Linux 6.13.
 */
int tos_getxattrat(int dirfd, const char *path, int at_flags, const char *name, void *value,
		   size_t size);
int tos_listxattrat(int dirfd, const char *path, int at_flags, char *list, size_t size);
int tos_setxattrat(int dirfd, const char *path, int at_flags, const char *name, const void *value,
		   size_t size, int flags);
int tos_removexattrat(int dirfd, const char *path, int at_flags, const char *name);

/* getxattr(2), listxattr(2), setxattr(2), removexattr(2): the same of a path that is followed. */
int tos_getxattr(const char *path, const char *name, void *value, size_t size);
int tos_listxattr(const char *path, char *list, size_t size);
int tos_setxattr(const char *path, const char *name, const void *value, size_t size, int flags);
int tos_removexattr(const char *path, const char *name);

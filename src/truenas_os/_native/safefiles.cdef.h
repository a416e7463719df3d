/* SPDX-License-Identifier: LGPL-3.0-or-later */

/*
 * openat2(2) of a regular file: a close-on-exec descriptor, or -errno. Anything else is -EISDIR or
 * -ENOTSUP, and is not opened even for a moment, because a device's open can do something.
 */
int tos_open_regular(int dirfd, const char *path, uint64_t flags, uint64_t resolve);

/* linkat(2), unlinkat(2), fsync(2), flock(2), fchmod(2), fchown(2): 0 or -errno. */
int tos_linkat(int olddirfd, const char *oldpath, int newdirfd, const char *newpath, int flags);
int tos_unlinkat(int dirfd, const char *path, int flags);
int tos_fsync(int fd);
int tos_flock(int fd, int operation);
int tos_fchmod(int fd, unsigned int mode);
int tos_fchown(int fd, unsigned int uid, unsigned int gid);

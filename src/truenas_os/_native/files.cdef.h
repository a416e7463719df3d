/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* openat2(2): a close-on-exec descriptor, or -errno. */
int tos_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);

/* statx(2) into out, which holds a struct statx (256 bytes): 0 or -errno. */
int tos_statx(int dirfd, const char *path, int flags, unsigned int mask, void *out);

/* renameat2(2): 0 or -errno. */
int tos_renameat2(int olddirfd, const char *oldpath, int newdirfd, const char *newpath,
		  unsigned int flags);

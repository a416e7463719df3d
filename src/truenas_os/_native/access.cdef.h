/* SPDX-License-Identifier: LGPL-3.0-or-later */

/*
 * Starts a child process that becomes (uid, gid, groups) and asks faccessat2(2), for mode, about
 * count paths, which stand in paths one after the other, each ended by a NUL: its pid, and a
 * close-on-exec descriptor for it in *pidfd, or -errno. The child writes to errors, which must be
 * shared memory: one for each path from the second on, then, at the end, what kept it from asking
 * to the first; each 0 or an errno. It makes no sound when it ends.
 */
int tos_access_as(unsigned int uid, unsigned int gid, const unsigned int *groups, size_t n_groups,
		  const char *paths, size_t count, int mode, int *errors, int *pidfd);

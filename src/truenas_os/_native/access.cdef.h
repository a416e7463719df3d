/* SPDX-License-Identifier: LGPL-3.0-or-later */

/*
 * Starts a child process that becomes (uid, gid, groups) and asks access(2), for mode, about count
 * paths, which stand in paths one after the other, each ended by a NUL: its pid, or -errno. The
 * child writes to errors, which must be shared memory: first what became of the change of identity,
 * then one for each path, 0 or an errno. It ends without a signal to this process.
 */
int tos_access_as(unsigned int uid, unsigned int gid, const unsigned int *groups, size_t n_groups,
		  const char *paths, size_t count, int mode, int *errors);

/* wait4(2) for such a child: its wait status, or -errno. */
int tos_wait_for(int pid);

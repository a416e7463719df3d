/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* Waits for the end of a child: 0, also if somebody else has reaped it, or -errno. */
int tos_wait_child(int pidfd);

/* Kills a child and waits for its end: 0, or -errno (-EINTR: call again). */
int tos_end_child(int pidfd);

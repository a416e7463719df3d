/* SPDX-License-Identifier: LGPL-3.0-or-later */

/*
 * Starts a child in a user namespace of its own: its pid, and a close-on-exec descriptor for it in
 * *pidfd, or -errno. The child shares the descriptors, makes no sound when it ends, and does nothing
 * but wait to be killed; it dies with the thread that made it.
 */
int tos_userns_child(int *pidfd);

/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* syncfs(2): 0 or -errno. */
int tos_syncfs(int fd);

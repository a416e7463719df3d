/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* close(2). After -EINTR the descriptor is gone all the same: never call it again. */
int tos_close(int fd);

/*
 * For tests only. From the (skip+1)th call on that has this number (any number if nr is -1), and
 * for so many times: if go_fd >= 0, write a byte to reached_fd and wait for one from go_fd; then
 * fail with -error, or make the call if error is 0.
 */
void tos_fault_arm(long nr, long skip, long times, int error, int reached_fd, int go_fd);

/* Ends it; how many calls had the number since it was armed. */
long tos_fault_disarm(void);

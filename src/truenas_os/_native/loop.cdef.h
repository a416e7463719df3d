/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* The number of a loop device that was free a moment ago, or -errno. */
int tos_loop_get_free(int control_fd);

/*
 * Makes the loop device loop_fd show backing_fd from offset on, in blocks of block_size bytes (0: the
 * kernel chooses); flags are LO_FLAGS_*. 0 or -errno: -EBUSY, somebody else has taken the device.
 */
int tos_loop_configure(int loop_fd, int backing_fd, uint32_t block_size, uint64_t offset,
		       uint32_t flags, const char *file_name);

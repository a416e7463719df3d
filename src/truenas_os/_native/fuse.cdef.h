/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* syncfs(2): 0 or -errno. */
int tos_syncfs(int fd);

/*
 * FUSE_DEV_IOC_BACKING_OPEN: the id of a backing file, or -errno. The kernel will use it with the
 * credentials of this moment, but for the capabilities of the first 32 that are in the mask dropped.
 */
int tos_fuse_backing_open(int device, int fd, uint32_t dropped);

/* FUSE_DEV_IOC_BACKING_CLOSE: 0 or -errno. */
int tos_fuse_backing_close(int device, int id);

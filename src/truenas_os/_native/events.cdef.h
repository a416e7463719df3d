/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* A non-blocking, close-on-exec fanotify group that can report mounts, or -errno. */
int tos_mount_events_open(void);

/* Has the group report what is attached and detached in the mount namespace mnt_ns: 0 or -errno. */
int tos_mount_events_mark(int fanotify_fd, int mnt_ns);

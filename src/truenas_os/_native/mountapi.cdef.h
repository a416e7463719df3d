/* SPDX-License-Identifier: LGPL-3.0-or-later */

/* Those that return a descriptor return a close-on-exec one, or -errno; the others 0 or -errno. */

/* fsopen(2). */
int tos_fsopen(const char *fs_name, unsigned int flags);

/* fsconfig(2); what a command does not take is NULL or 0. */
int tos_fsconfig(int fs_fd, unsigned int cmd, const char *key, const void *value, int aux);

/* fsmount(2). */
int tos_fsmount(int fs_fd, unsigned int flags, unsigned int attr_flags);

/* fspick(2). */
int tos_fspick(int dirfd, const char *path, unsigned int flags);

/* 0 if fs_fd is a filesystem context, else -errno (-EINVAL: something else). */
int tos_fscontext_check(int fs_fd);

/* One line of the log of a filesystem context: its length, or -errno (-ENODATA: no more). */
int tos_fscontext_read(int fs_fd, char *line, size_t size);

/* open_tree(2). */
int tos_open_tree(int dirfd, const char *path, unsigned int flags);

/* open_tree_attr(2). */
int tos_open_tree_attr(int dirfd, const char *path, unsigned int flags, uint64_t attr_set,
		       uint64_t attr_clr, uint64_t propagation, uint64_t userns_fd);

/* move_mount(2). */
int tos_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path,
		   unsigned int flags);

/* mount_setattr(2). */
int tos_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t attr_set,
		      uint64_t attr_clr, uint64_t propagation, uint64_t userns_fd);

/* umount2(2). */
int tos_umount2(const char *target, int flags);

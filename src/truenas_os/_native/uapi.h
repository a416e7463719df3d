/* SPDX-License-Identifier: LGPL-3.0-or-later */
/*
 * The kernel's side of every call made here: structures and system call numbers as of Linux 6.18.
 * They are our own so that a build on a distribution whose headers are years older than its kernel
 * serves the kernel that runs. Flag values live in Python (blocking/flags.py); only those that C
 * itself needs stand here.
 */
#ifndef TOS_UAPI_H
#define TOS_UAPI_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#if defined(__alpha__) || defined(__mips__) || defined(__ia64__) || \
	(defined(__x86_64__) && defined(__ILP32__))
#error "this architecture does not use the common system call table"
#endif

/*
 * The common table gives a call of Linux 5.1 or later one number everywhere. The older calls used
 * here are numbered by architecture, and every C library that can build this knows them as SYS_*.
 */
#define TOS_SYS_close SYS_close
#define TOS_SYS_fanotify_init SYS_fanotify_init
#define TOS_SYS_fanotify_mark SYS_fanotify_mark
#define TOS_SYS_eventfd2 SYS_eventfd2
#define TOS_SYS_fchmod SYS_fchmod
#define TOS_SYS_fgetxattr SYS_fgetxattr
#define TOS_SYS_flock SYS_flock
#define TOS_SYS_fsetxattr SYS_fsetxattr
#define TOS_SYS_fsync SYS_fsync
#define TOS_SYS_getdents64 SYS_getdents64
#define TOS_SYS_getxattr SYS_getxattr
#define TOS_SYS_ioctl SYS_ioctl
#define TOS_SYS_linkat SYS_linkat
/* With 64 bits of offset everywhere: see walk_frames.c. */
#ifdef SYS__llseek
#define TOS_SYS_lseek SYS__llseek
#else
#define TOS_SYS_lseek SYS_lseek
#endif
#define TOS_SYS_listxattr SYS_listxattr
#define TOS_SYS_name_to_handle_at SYS_name_to_handle_at
#define TOS_SYS_open_by_handle_at SYS_open_by_handle_at
#define TOS_SYS_read SYS_read
#define TOS_SYS_removexattr SYS_removexattr
#define TOS_SYS_renameat2 SYS_renameat2
#define TOS_SYS_setxattr SYS_setxattr
#define TOS_SYS_statx SYS_statx
#define TOS_SYS_syncfs SYS_syncfs
#define TOS_SYS_umount2 SYS_umount2
#define TOS_SYS_unlinkat SYS_unlinkat
#define TOS_SYS_waitid SYS_waitid
#define TOS_SYS_pidfd_send_signal 424
#define TOS_SYS_open_tree 428
#define TOS_SYS_move_mount 429
#define TOS_SYS_fsopen 430
#define TOS_SYS_fsconfig 431
#define TOS_SYS_fsmount 432
#define TOS_SYS_fspick 433
#define TOS_SYS_clone3 435
#define TOS_SYS_close_range 436
#define TOS_SYS_openat2 437
#define TOS_SYS_faccessat2 439
#define TOS_SYS_mount_setattr 442
#define TOS_SYS_statmount 457
#define TOS_SYS_listmount 458
#define TOS_SYS_setxattrat 463
#define TOS_SYS_getxattrat 464
#define TOS_SYS_listxattrat 465
#define TOS_SYS_removexattrat 466
#define TOS_SYS_open_tree_attr 467
#define TOS_SYS_file_getattr 468
#define TOS_SYS_file_setattr 469

/* Where these once were too small, the calls that are not have names of their own. */
#ifdef SYS_fcntl64
#define TOS_SYS_fcntl SYS_fcntl64
#else
#define TOS_SYS_fcntl SYS_fcntl
#endif
#ifdef SYS_fchown32
#define TOS_SYS_fchown SYS_fchown32
#define TOS_SYS_setgroups SYS_setgroups32
#define TOS_SYS_setresgid SYS_setresgid32
#define TOS_SYS_setresuid SYS_setresuid32
#else
#define TOS_SYS_fchown SYS_fchown
#define TOS_SYS_setgroups SYS_setgroups
#define TOS_SYS_setresgid SYS_setresgid
#define TOS_SYS_setresuid SYS_setresuid
#endif

/* openat2(2) */
struct tos_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};
_Static_assert(sizeof(struct tos_open_how) == 24, "struct open_how");

#define TOS_O_CLOEXEC O_CLOEXEC
/* The C library shows these to sources that define _GNU_SOURCE. */
#define TOS_O_PATH O_PATH
#define TOS_O_LARGEFILE O_LARGEFILE

/* statx(2) */
struct tos_statx_timestamp {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};
_Static_assert(sizeof(struct tos_statx_timestamp) == 16, "struct statx_timestamp");

struct tos_statx {
	uint32_t stx_mask;
	uint32_t stx_blksize;
	uint64_t stx_attributes;
	uint32_t stx_nlink;
	uint32_t stx_uid;
	uint32_t stx_gid;
	uint16_t stx_mode;
	uint16_t spare0;
	uint64_t stx_ino;
	uint64_t stx_size;
	uint64_t stx_blocks;
	uint64_t stx_attributes_mask;
	struct tos_statx_timestamp stx_atime;
	struct tos_statx_timestamp stx_btime;
	struct tos_statx_timestamp stx_ctime;
	struct tos_statx_timestamp stx_mtime;
	uint32_t stx_rdev_major;
	uint32_t stx_rdev_minor;
	uint32_t stx_dev_major;
	uint32_t stx_dev_minor;
	uint64_t stx_mnt_id;
	uint32_t stx_dio_mem_align;
	uint32_t stx_dio_offset_align;
	uint64_t stx_subvol;
	uint32_t stx_atomic_write_unit_min;
	uint32_t stx_atomic_write_unit_max;
	uint32_t stx_atomic_write_segments_max;
	uint32_t stx_dio_read_offset_align;
	uint32_t stx_atomic_write_unit_max_opt;
	uint32_t spare2;
	uint64_t spare3[8];
};
_Static_assert(sizeof(struct tos_statx) == 256, "struct statx");
_Static_assert(offsetof(struct tos_statx, stx_mnt_id) == 0x90, "struct statx");
_Static_assert(offsetof(struct tos_statx, stx_subvol) == 0xa0, "struct statx");
_Static_assert(offsetof(struct tos_statx, spare3) == 0xc0, "struct statx");

#define TOS_STATX_TYPE 1
#define TOS_STATX_BASIC_STATS 0x07ff
#define TOS_STATX_BTIME 0x0800
#define TOS_STATX_MNT_ID 0x1000
#define TOS_STATX_MNT_ID_UNIQUE 0x4000

#define TOS_RESOLVE_NO_XDEV 0x01
#define TOS_RESOLVE_NO_SYMLINKS 0x04

/* getdents64(2) */
struct tos_dirent64 {
	uint64_t d_ino;
	int64_t d_off;
	uint16_t d_reclen;
	uint8_t d_type;
	char d_name[];
};
_Static_assert(offsetof(struct tos_dirent64, d_name) == 19, "struct linux_dirent64");

/* listmount(2), statmount(2). mnt_ns_fd is Linux 6.18, mnt_ns_id 6.11; both are 0 if unused. */
struct tos_mnt_id_req {
	uint32_t size;
	uint32_t mnt_ns_fd;
	uint64_t mnt_id;
	uint64_t param;
	uint64_t mnt_ns_id;
};
_Static_assert(sizeof(struct tos_mnt_id_req) == 32, "struct mnt_id_req");

/* String members are offsets into str. */
struct tos_statmount {
	uint32_t size;
	uint32_t mnt_opts;
	uint64_t mask;
	uint32_t sb_dev_major;
	uint32_t sb_dev_minor;
	uint64_t sb_magic;
	uint32_t sb_flags;
	uint32_t fs_type;
	uint64_t mnt_id;
	uint64_t mnt_parent_id;
	uint32_t mnt_id_old;
	uint32_t mnt_parent_id_old;
	uint64_t mnt_attr;
	uint64_t mnt_propagation;
	uint64_t mnt_peer_group;
	uint64_t mnt_master;
	uint64_t propagate_from;
	uint32_t mnt_root;
	uint32_t mnt_point;
	uint64_t mnt_ns_id;
	uint32_t fs_subtype;
	uint32_t sb_source;
	uint32_t opt_num;
	uint32_t opt_array;
	uint32_t opt_sec_num;
	uint32_t opt_sec_array;
	uint64_t supported_mask;
	uint32_t mnt_uidmap_num;
	uint32_t mnt_uidmap;
	uint32_t mnt_gidmap_num;
	uint32_t mnt_gidmap;
	uint64_t spare[43];
	char str[];
};
_Static_assert(sizeof(struct tos_statmount) == 512, "struct statmount");
_Static_assert(offsetof(struct tos_statmount, mnt_ns_id) == 112, "struct statmount");
_Static_assert(offsetof(struct tos_statmount, supported_mask) == 144, "struct statmount");
_Static_assert(offsetof(struct tos_statmount, spare) == 168, "struct statmount");

#define TOS_STATMOUNT_MNT_ROOT 0x0008ULL
#define TOS_STATMOUNT_MNT_POINT 0x0010ULL
#define TOS_STATMOUNT_FS_TYPE 0x0020ULL
#define TOS_STATMOUNT_MNT_OPTS 0x0080ULL
#define TOS_STATMOUNT_FS_SUBTYPE 0x0100ULL
#define TOS_STATMOUNT_SB_SOURCE 0x0200ULL
#define TOS_STATMOUNT_OPT_ARRAY 0x0400ULL
#define TOS_STATMOUNT_OPT_SEC_ARRAY 0x0800ULL
#define TOS_STATMOUNT_MNT_UIDMAP 0x2000ULL
#define TOS_STATMOUNT_MNT_GIDMAP 0x4000ULL

/* ioctl(2) on a mount namespace */
#define TOS_NS_GET_MNTNS_ID _IOR(0xb7, 5, uint64_t)

/* name_to_handle_at(2), open_by_handle_at(2) */
struct tos_file_handle {
	uint32_t handle_bytes;
	int32_t handle_type;
	unsigned char f_handle[];
};
_Static_assert(sizeof(struct tos_file_handle) == 8, "struct file_handle");

#define TOS_MAX_HANDLE_SZ 128
#define TOS_AT_HANDLE_MNT_ID_UNIQUE 0x1

/* fsopen(2), fsmount(2), fspick(2), whose close-on-exec flags are not O_CLOEXEC */
#define TOS_FSOPEN_CLOEXEC 1
#define TOS_FSMOUNT_CLOEXEC 1
#define TOS_FSPICK_CLOEXEC 1

/* mount_setattr(2), open_tree_attr(2) */
struct tos_mount_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};
_Static_assert(sizeof(struct tos_mount_attr) == 32, "struct mount_attr");

/* ioctl(2) on /dev/loop-control and on a loop device */
struct tos_loop_info64 {
	uint64_t lo_device;
	uint64_t lo_inode;
	uint64_t lo_rdevice;
	uint64_t lo_offset;
	uint64_t lo_sizelimit;
	uint32_t lo_number;
	uint32_t lo_encrypt_type;
	uint32_t lo_encrypt_key_size;
	uint32_t lo_flags;
	uint8_t lo_file_name[64];
	uint8_t lo_crypt_name[64];
	uint8_t lo_encrypt_key[32];
	uint64_t lo_init[2];
};
_Static_assert(sizeof(struct tos_loop_info64) == 232, "struct loop_info64");

struct tos_loop_config {
	uint32_t fd;
	uint32_t block_size;
	struct tos_loop_info64 info;
	uint64_t reserved[8];
};
_Static_assert(sizeof(struct tos_loop_config) == 304, "struct loop_config");

#define TOS_LOOP_CTL_GET_FREE 0x4C82
#define TOS_LOOP_CONFIGURE 0x4C0A

/* fanotify_init(2), fanotify_mark(2), as far as they are about mounts; Linux 6.15 */
#define TOS_FAN_CLOEXEC 0x00000001
#define TOS_FAN_NONBLOCK 0x00000002
#define TOS_FAN_REPORT_MNT 0x00004000
#define TOS_FAN_MARK_ADD 0x00000001
#define TOS_FAN_MARK_MNTNS 0x00000110
#define TOS_FAN_MNT_ATTACH 0x01000000
#define TOS_FAN_MNT_DETACH 0x02000000

/* clone3(2) */
struct tos_clone_args {
	uint64_t flags;
	uint64_t pidfd;
	uint64_t child_tid;
	uint64_t parent_tid;
	uint64_t exit_signal;
	uint64_t stack;
	uint64_t stack_size;
	uint64_t tls;
};
_Static_assert(sizeof(struct tos_clone_args) == 64, "struct clone_args");

#define TOS_CLONE_FILES 0x00000400ULL
#define TOS_CLONE_PIDFD 0x00001000ULL
#define TOS_CLONE_NEWUSER 0x10000000ULL
#define TOS_CLONE_CLEAR_SIGHAND 0x100000000ULL

/* waitid(2): TOS_WALL is for children of every kind, also those that end without a signal */
#define TOS_P_PIDFD 3
#define TOS_WEXITED 0x00000004
#define TOS_WALL 0x40000000

/* setxattrat(2), getxattrat(2) */
struct tos_xattr_args {
	uint64_t value;
	uint32_t size;
	uint32_t flags;
};
_Static_assert(sizeof(struct tos_xattr_args) == 16, "struct xattr_args");

/* file_getattr(2), file_setattr(2) */
struct tos_file_attr {
	uint64_t fa_xflags;
	uint32_t fa_extsize;
	uint32_t fa_nextents;
	uint32_t fa_projid;
	uint32_t fa_cowextsize;
};
_Static_assert(sizeof(struct tos_file_attr) == 24, "struct file_attr");

/* The same by ioctl(2) on the file */
struct tos_fsxattr {
	uint32_t fsx_xflags;
	uint32_t fsx_extsize;
	uint32_t fsx_nextents;
	uint32_t fsx_projid;
	uint32_t fsx_cowextsize;
	unsigned char fsx_pad[8];
};
_Static_assert(sizeof(struct tos_fsxattr) == 28, "struct fsxattr");

#define TOS_FS_IOC_FSGETXATTR _IOR('X', 31, struct tos_fsxattr)
#define TOS_FS_IOC_FSSETXATTR _IOW('X', 32, struct tos_fsxattr)

struct tos_fsuuid2 {
	uint8_t len;
	uint8_t uuid[16];
};

#define TOS_FS_IOC_GETFSUUID _IOR(0x15, 0, struct tos_fsuuid2)

/* capget(2), capset(2) */
struct tos_cap_header {
	uint32_t version;
	int32_t pid;
};
struct tos_cap_data {
	uint32_t effective;
	uint32_t permitted;
	uint32_t inheritable;
};

#define TOS_CAPABILITY_VERSION_3 0x20080522

/* ioctl(2) of /dev/fuse */
struct tos_fuse_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

#define TOS_FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, struct tos_fuse_backing_map)
#define TOS_FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

#endif

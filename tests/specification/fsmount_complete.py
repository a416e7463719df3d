import truenas_os
import os

# 1. Create filesystem context
fs_fd = truenas_os.fsopen(fs_name='tmpfs', flags=truenas_os.FSOPEN_CLOEXEC)

# 2. Configure filesystem options
truenas_os.fsconfig(fs_fd=fs_fd, cmd=truenas_os.FSCONFIG_SET_STRING,
                    key='size', value='100M')
truenas_os.fsconfig(fs_fd=fs_fd, cmd=truenas_os.FSCONFIG_SET_STRING,
                    key='nr_inodes', value='10k')

# 3. Create the filesystem
truenas_os.fsconfig(fs_fd=fs_fd, cmd=truenas_os.FSCONFIG_CMD_CREATE)

# 4. Create mount object with attributes
mnt_fd = truenas_os.fsmount(
    fs_fd=fs_fd,
    flags=truenas_os.FSMOUNT_CLOEXEC,
    attr_flags=truenas_os.MOUNT_ATTR_NOSUID | truenas_os.MOUNT_ATTR_NODEV
)
os.close(fs_fd)

# 5. Attach mount to the filesystem tree
truenas_os.move_mount(
    from_path='',
    to_path='/mnt/secure_tmp',
    from_dirfd=mnt_fd,
    flags=truenas_os.MOVE_MOUNT_F_EMPTY_PATH
)
os.close(mnt_fd)

print("Filesystem mounted at /mnt/secure_tmp")

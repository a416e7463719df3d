import truenas_os

# Make a mount read-only
truenas_os.mount_setattr(
    path='/mnt/data',
    attr_set=truenas_os.MOUNT_ATTR_RDONLY
)

# Make entire mount tree read-only recursively
truenas_os.mount_setattr(
    path='/mnt/data',
    attr_set=truenas_os.MOUNT_ATTR_RDONLY,
    flags=truenas_os.AT_RECURSIVE
)

import truenas_os

fs_fd = truenas_os.fsopen(fs_name='tmpfs', flags=truenas_os.FSOPEN_CLOEXEC)

# Set filesystem size
truenas_os.fsconfig(
    fs_fd=fs_fd,
    cmd=truenas_os.FSCONFIG_SET_STRING,
    key='size',
    value='1G'
)

# Set another option
truenas_os.fsconfig(
    fs_fd=fs_fd,
    cmd=truenas_os.FSCONFIG_SET_STRING,
    key='mode',
    value='0755'
)

# Create the filesystem
truenas_os.fsconfig(
    fs_fd=fs_fd,
    cmd=truenas_os.FSCONFIG_CMD_CREATE
)

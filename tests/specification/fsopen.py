import truenas_os

# Create a filesystem context for tmpfs
fs_fd = truenas_os.fsopen(
    fs_name='tmpfs',
    flags=truenas_os.FSOPEN_CLOEXEC
)

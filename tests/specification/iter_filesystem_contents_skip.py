import truenas_os

iterator = truenas_os.iter_filesystem_contents("/mnt/tank", "tank/dataset")
for item in iterator:
    if item.isdir and item.name == "skip_this":
        iterator.skip()  # Don't recurse into this directory

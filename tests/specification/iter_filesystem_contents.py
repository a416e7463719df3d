import truenas_os
import os

for item in truenas_os.iter_filesystem_contents("/mnt/tank", "tank/dataset"):
    full_path = os.path.join(item.parent, item.name)
    print(f"{full_path}: {item.statxinfo.stx_size} bytes")
    # Do NOT close item.fd - iterator manages fd lifecycle

"""The root filesystem: mounts, devices, entering it, sealing it.

Steps for init, in order: MOUNTS, then the hooks, then ENTER_ROOT, then the console, then SEAL.
"""

from __future__ import annotations

from ocirt.rootfs.devices import make_devices, make_links, mount_console
from ocirt.rootfs.masks import make_mounts_readonly, make_paths_readonly, make_root_readonly, mask_paths
from ocirt.rootfs.mounts import mount_filesystems
from ocirt.rootfs.pivot import bind_rootfs, enter_root, isolate_mounts, open_procfs, set_root_propagation

#: Everything is mounted and made below the future root.
MOUNTS = (isolate_mounts, open_procfs, bind_rootfs, mount_filesystems, make_devices, make_links)
ENTER_ROOT = (enter_root,)
ROOTFS = MOUNTS + ENTER_ROOT
#: Read-only and masked, once nothing must be made any more; /dev comes after the console.
SEAL = (make_paths_readonly, mask_paths, make_mounts_readonly, make_root_readonly, set_root_propagation)

__all__ = ("ENTER_ROOT", "MOUNTS", "ROOTFS", "SEAL", "mount_console")

"""The root filesystem: mounts, devices, entering it, sealing it.

Steps for init, in order: MOUNTS, then the hooks, then ENTER_ROOT, then the console, then SEAL.
The runtime's side, before the clone: prepare_trees, host_mounts; and
unmount_host when the container is deleted.
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error
from ocirt.linux import mount
from ocirt.linux.oslike import fsencode
from ocirt.rootfs.devices import make_devices, make_links, mount_console
from ocirt.rootfs.masks import make_mounts_readonly, make_paths_readonly, make_root_readonly, mask_paths
from ocirt.rootfs.mounts import mount_filesystems
from ocirt.rootfs.pivot import bind_rootfs, enter_root, isolate_mounts, open_procfs, set_root_propagation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

#: Everything is mounted and made below the future root.
MOUNTS = (isolate_mounts, open_procfs, bind_rootfs, mount_filesystems, make_devices, make_links)
ENTER_ROOT = (enter_root,)
ROOTFS = MOUNTS + ENTER_ROOT
#: Read-only and masked, once nothing must be made any more; /dev comes after the console.
SEAL = (make_paths_readonly, mask_paths, make_mounts_readonly, make_root_readonly, set_root_propagation)

#: Options that the runtime has to prepare something for, before the clone.
_PREPARED = ("idmap", "ridmap", "tmpcopyup")
_GONE = (2, 22)  # ENOENT, EINVAL: it isn't a mount point (any more)


def prepare_trees(plan: Plan) -> None:
    """Make the mounts that init can't make: fills `plan.trees`, `plan.device_trees`. In the runtime, before the clone.

    The descriptors must reach init and are the caller's to close otherwise.
    """
    needed = plan.userns
    for entry in plan.config.get("mounts") or ():
        for option in entry.get("options") or ():
            if option.startswith(_PREPARED):
                needed = needed or option != "tmpcopyup"
                if option == "tmpcopyup":
                    from ocirt.rootfs import copyup

                    plan.copy_up = copyup.copy
        if "uidMappings" in entry or "gidMappings" in entry:
            needed = True
    if needed:
        from ocirt.rootfs import trees

        trees.prepare(plan)


def host_mounts(plan: Plan) -> list[int]:
    """What unmount_host needs: empty if the container has a mount namespace, which ends with it.

    Otherwise the id of the mount that the root filesystem is on, before anything is mounted there.
    """
    if "mount" in plan.new or "mount" in plan.joined:
        return []
    return [_mount_at(plan.rootfs)]


def unmount_host(rootfs: str, mounts: list[int]) -> None:
    """Take away what init mounted on the host: the root's bind on itself, and all below it."""
    if mounts and _mount_at(rootfs) not in (mounts[0], -1):
        try:
            mount.umount2(fsencode(rootfs), mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
        except Error as error:
            if error.errno not in _GONE:
                raise


def _mount_at(path: str) -> int:
    """The id of the topmost mount at `path`, -1 if there is no such path."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        return mount.mount_id(-1, fd)
    finally:
        os.close(fd)


__all__ = (
    "ENTER_ROOT",
    "MOUNTS",
    "ROOTFS",
    "SEAL",
    "host_mounts",
    "mount_console",
    "prepare_trees",
    "unmount_host",
)

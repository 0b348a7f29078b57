"""What is made read-only or hidden once everything is in place.

config-linux.md, Masked Paths and Readonly Paths; config.md, Root (readonly).
"""

from __future__ import annotations

import _stat as stat
import posix as os
import time

from ocirt.errors import Error, doing
from ocirt.linux import libc, mount, paths
from ocirt.linux.oslike import samestat
from ocirt.rootfs.targets import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_ENOENT = 2
_ENOTDIR = 20
_EBUSY = 16
_NULL = os.makedev(1, 3)
_MISSING = (_ENOENT, _ENOTDIR)
_SAFE = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
_EMPTY = (("source", "tmpfs"), ("nr_inodes", "1"), ("size", "4k"), ("mode", "755"))
#: How often and how long (seconds) to wait for the last writer: hooks may have left one behind.
_BUSY_TRIES = 6
_BUSY_WAIT = 0.05


def make_mounts_readonly(plan: Plan) -> None:
    """make the tmpfs mounts and /dev read-only

    Only now: what is mounted below them had to be made in them first.
    """
    for destination, fd in plan.late_readonly:
        with doing(f'mount at "{destination}"'):
            _readonly(plan, fd)
        os.close(fd)
    plan.late_readonly.clear()


def make_root_readonly(plan: Plan) -> None:
    """make the root filesystem read-only"""
    root = plan.config.get("root")
    if root and root.get("readonly"):
        _readonly(plan, plan.root)


def _readonly(plan: Plan, fd: int) -> None:
    for attempt in range(_BUSY_TRIES):
        try:
            mount.change_attributes(plan.proc, fd, mount.MOUNT_ATTR_RDONLY, 0)
            return
        except Error as error:
            if error.errno != _EBUSY or attempt == _BUSY_TRIES - 1:
                raise
        time.sleep(_BUSY_WAIT)


def make_paths_readonly(plan: Plan) -> None:
    """make linux.readonlyPaths read-only

    A path is bound on itself; the other attributes of its mount stay as they are.
    """
    for path in plan.linux.get("readonlyPaths") or ():
        with doing(f"readonly path {path}"):
            if clean(path) == "/":  # from below a mount on the root nobody would see it
                _readonly(plan, plan.root)
                continue
            target = _open(plan, path)
            if target < 0:
                continue
            try:
                _bind_readonly(plan, target, path)
            finally:
                os.close(target)


def _bind_readonly(plan: Plan, target: int, path: str) -> None:
    try:
        tree = mount.graft(target, target, recursive=True)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        by_fd = mount.by_fd(plan.proc, target)
        known = mount.mount_id(plan.proc, target)
        mount.mount(by_fd, by_fd, None, mount.MS_BIND | mount.MS_REC, None)
        tree = paths.open_in_root(plan.root, path)
        if mount.mount_id(plan.proc, tree) == known or not samestat(os.fstat(tree), os.fstat(target)):
            raise Error("it was replaced while it was being mounted on") from None
    mount.change_attributes(plan.proc, tree, mount.MOUNT_ATTR_RDONLY, 0)
    os.close(tree)


def mask_paths(plan: Plan) -> None:
    """mask linux.maskedPaths

    Files by the container's /dev/null, directories by an empty read-only tmpfs.
    """
    masked = plan.linux.get("maskedPaths")
    if not masked:
        return
    null = empty = -1
    try:
        for path in masked:
            with doing(f"masked path {path}"):
                if clean(path) == "/":
                    raise Error("the root itself can't be masked")
                target = _open(plan, path)
                if target < 0:
                    continue
                try:
                    if stat.S_ISDIR(os.fstat(target).st_mode):
                        empty = _cover_directory(plan, target, empty)
                    else:
                        if null < 0:
                            null = open_null(plan)
                        _cover_file(plan, target, null)
                finally:
                    os.close(target)
    finally:
        for fd in (null, empty):
            if fd >= 0:
                os.close(fd)


def _open(plan: Plan, path: str) -> int:
    """The path in the container, -1 if there is nothing to protect."""
    try:
        return paths.open_in_root(plan.root, path)
    except Error as error:
        if error.errno in _MISSING:
            return -1
        raise


def open_null(plan: Plan) -> int:
    """The container's /dev/null, verified to be the device 1:3 and not what the image put there.

    Otherwise a masked file would show whatever the image chose (CVE-2025-31133).
    """
    with doing("open /dev/null of the container"):
        fd = paths.open_in_root(plan.root, "/dev/null", os.O_PATH | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NULL:
        os.close(fd)
        raise Error("/dev/null of the container is not the character device 1:3")
    return fd


def _cover_file(plan: Plan, target: int, null: int) -> None:
    try:
        os.close(mount.graft(null, target))
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        to = mount.by_fd(plan.proc, target)
        mount.mount(mount.by_fd(plan.proc, null), to, None, mount.MS_BIND, None)


def _cover_directory(plan: Plan, target: int, empty: int) -> int:
    """Cover a directory; the tmpfs of the first (-1 before) is bound on the others. Returns it."""
    try:
        if empty < 0:
            tree = mount.new_filesystem("tmpfs", _EMPTY, _SAFE | mount.MOUNT_ATTR_RDONLY)
            mount.attach(tree, target)
            return tree
        os.close(mount.graft(empty, target))
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        flags = mount.MS_RDONLY | mount.flags_of(_SAFE)
        mount.mount(b"tmpfs", mount.by_fd(plan.proc, target), b"tmpfs", flags, b"nr_inodes=1,size=4k,mode=755")
    return empty

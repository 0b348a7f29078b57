"""Mounting: mount(2), umount2(2), pivot_root(2) and the calls on mounts by descriptor.

The newer calls (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)) walk no
path twice and set and clear attributes exactly. Where a kernel answers ENOSYS the
fallback stands beside the call. mount(2) takes only paths: a mount point that was
opened is then named `self/fd/N`, relative to a procfs that the caller trusts.
"""

from __future__ import annotations

import posix as os
from _struct import pack

from ocirt.errors import Error, call_failed
from ocirt.linux import libc, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
#: fsconfig(2) refuses longer values; mount(2) takes a page of options.
FSCONFIG_STRING_MAX = 255

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

#: (attribute of a mount, its flag for mount(2), its flag in statvfs(3), the option's name)
_ATTRIBUTES = (
    (MOUNT_ATTR_RDONLY, MS_RDONLY, 0x1, "ro"),
    (MOUNT_ATTR_NOSUID, MS_NOSUID, 0x2, "nosuid"),
    (MOUNT_ATTR_NODEV, MS_NODEV, 0x4, "nodev"),
    (MOUNT_ATTR_NOEXEC, MS_NOEXEC, 0x8, "noexec"),
    (MOUNT_ATTR_NOATIME, MS_NOATIME, 0x400, "noatime"),
    (MOUNT_ATTR_STRICTATIME, MS_STRICTATIME, 0, "strictatime"),
    (MOUNT_ATTR_NODIRATIME, MS_NODIRATIME, 0x800, "nodiratime"),
    (MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW, 0x2000, "nosymfollow"),
)
_ST_RELATIME = 0x1000


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None) -> None:
    """mount(2)."""
    libc.call("mount", source, target, fstype, flags, data)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    libc.call("umount2", target, flags)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """pivot_root(2)."""
    libc.syscall("pivot_root", numbers.number("pivot_root"), new_root, put_old)


def fsopen(fstype: bytes) -> int:
    """fsopen(2): a configuration context for a new file system."""
    return libc.syscall("fsopen", numbers.FSOPEN, fstype, FSOPEN_CLOEXEC)


def fspick(fd: int) -> int:
    """fspick(2): a configuration context for the file system that `fd` is on."""
    return libc.syscall("fspick", numbers.FSPICK, fd, b"", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH)


def fsconfig(context: int, command: int, key: bytes | None = None, value: bytes | None = None) -> None:
    """fsconfig(2)."""
    libc.syscall("fsconfig", numbers.FSCONFIG, context, command, key, value, 0)


def fsmount(context: int, attributes: int) -> int:
    """fsmount(2): a detached mount."""
    return libc.syscall("fsmount", numbers.FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)


def new_filesystem(fstype: str, fields: Sequence[tuple[str, str | None]], attributes: int) -> int:
    """A detached mount of a new file system; `fields` are its (option, value), None for one without a value."""
    context = fsopen(fstype.encode())
    try:
        for key, value in fields:
            if value is None:
                fsconfig(context, FSCONFIG_SET_FLAG, key.encode())
            else:
                fsconfig(context, FSCONFIG_SET_STRING, key.encode(), value.encode())
        fsconfig(context, FSCONFIG_CMD_CREATE)
        return fsmount(context, attributes)
    finally:
        os.close(context)


def messages(context: int) -> str:
    """What the kernel says about a context (`e tmpfs: Unknown parameter 'x'`), without its prefixes."""
    found: list[str] = []
    try:
        while line := os.read(context, 4096):
            found.append(line.decode("utf-8", "replace").strip()[2:])
    except OSError:
        pass  # ENODATA: that was all
    return "; ".join(found)


def open_tree(fd: int, path: bytes, flags: int) -> int:
    """open_tree(2), always close-on-exec."""
    return libc.syscall("open_tree", numbers.OPEN_TREE, fd, path, flags | OPEN_TREE_CLOEXEC)


def move_mount(tree: int, fd: int, path: bytes = b"") -> None:
    """move_mount(2): attach the mount `tree` at `path`, or on what `fd` refers to."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    libc.syscall("move_mount", numbers.MOVE_MOUNT, tree, b"", fd, path, flags)


def attach(tree: int, fd: int, path: bytes = b"") -> None:
    """move_mount(2); `tree` is closed if it fails."""
    try:
        move_mount(tree, fd, path)
    except BaseException:
        os.close(tree)
        raise


def graft(fd: int, target: int, *, recursive: bool = False) -> int:
    """Bind what `fd` refers to on what `target` refers to: the descriptor of the new mount."""
    tree = open_tree(fd, b"", OPEN_TREE_CLONE | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0))
    attach(tree, target)
    return tree


def mount_setattr(fd: int, flags: int, set: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0) -> None:
    """mount_setattr(2) on the mount that `fd` refers to; flags: AT_RECURSIVE or 0."""
    attr = pack("=QQQQ", set, clear, propagation, userns)
    libc.syscall("mount_setattr", numbers.MOUNT_SETATTR, fd, b"", flags | AT_EMPTY_PATH, attr, 32)


def open_tree_attr(fd: int, path: bytes, flags: int, set: int, clear: int, userns: int = 0) -> int:
    """open_tree_attr(2): open_tree(2) and mount_setattr(2) in one (Linux 6.15), or else both."""
    attr = pack("=QQQQ", set, clear, 0, userns)
    try:
        return libc.syscall("open_tree_attr", numbers.OPEN_TREE_ATTR, fd, path, flags | OPEN_TREE_CLOEXEC, attr, 32)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
    tree = open_tree(fd, path, flags)
    try:
        mount_setattr(tree, flags & AT_RECURSIVE, set, clear, 0, userns)
    except BaseException:
        os.close(tree)
        raise
    return tree


def by_fd(proc: int, fd: int) -> bytes:
    """The path of what `fd` refers to, for calls that take only paths.

    It is relative to the working directory, which becomes the root of the procfs
    `proc`; -1: the path is absolute, by way of the /proc of this process's root.
    """
    if proc < 0:
        return b"/proc/self/fd/%d" % fd
    os.fchdir(proc)
    return b"self/fd/%d" % fd


def attributes_of(fd: int) -> int:
    """The MOUNT_ATTR_* of the mount that `fd` refers to."""
    flags = os.fstatvfs(fd).f_flag
    found = 0
    for attribute, _, st_flag, _ in _ATTRIBUTES:
        if flags & st_flag:
            found |= attribute
    if not flags & _ST_RELATIME and not found & MOUNT_ATTR_NOATIME:
        found |= MOUNT_ATTR_STRICTATIME
    return found


def attribute_names(attributes: int) -> list[str]:
    """`["ro", "nosuid"]`, for messages."""
    return [name for attribute, _, _, name in _ATTRIBUTES if attributes & attribute]


def flags_of(attributes: int) -> int:
    """The MS_* flags of MOUNT_ATTR_*."""
    flags = 0
    for attribute, flag, _, _ in _ATTRIBUTES:
        if attributes & attribute:
            flags |= flag
    return flags


def change_attributes(proc: int, fd: int, set: int, clear: int, recursive: bool = False) -> None:
    """Set and clear MOUNT_ATTR_* of the attached mount that `fd` refers to; leave the others.

    Without mount_setattr(2) it is remounted with the flags that it has and that are
    wanted; this can't be done recursively.
    """
    try:
        mount_setattr(fd, AT_RECURSIVE if recursive else 0, set, clear)
        return
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        if recursive:
            raise Error(error.reason + " (recursive mount options need Linux 5.12)", error.errno) from None
    attributes = attributes_of(fd) & ~clear | set
    flags = flags_of(attributes) or MS_RELATIME
    try:
        mount(None, by_fd(proc, fd), None, MS_REMOUNT | MS_BIND | flags, None)
    except Error as error:
        names = "|".join(["MS_REMOUNT", "MS_BIND", *attribute_names(attributes)])
        raise Error(call_failed(f"mount({names})", error.errno, os.strerror(error.errno)), error.errno) from None


def change_propagation(proc: int, fd: int, propagation: int) -> None:
    """Set the propagation (MS_SHARED, …, optionally with MS_REC) of the attached mount at `fd`."""
    try:
        flags = AT_RECURSIVE if propagation & MS_REC else 0
        mount_setattr(fd, flags, propagation=propagation & ~MS_REC)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        mount(None, by_fd(proc, fd), None, propagation, None)


def mount_id(proc: int, fd: int) -> int:
    """The id of the mount that `fd` is on, as in the first column of mountinfo (proc_pid_mountinfo(5))."""
    if proc >= 0:
        info = os.open(f"self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    else:
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in os.read(info, 4096).splitlines():
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    finally:
        os.close(info)
    raise Error(f"fdinfo of descriptor {fd} has no mnt_id")

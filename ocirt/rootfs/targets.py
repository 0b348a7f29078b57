"""Where mounts go: the destination below the root, opened once, made if it is missing.

The only paths of the image that mounting touches are resolved here
(CVE-2019-18837, CVE-2021-30465, CVE-2024-45310).
"""

from __future__ import annotations

import _stat as stat
import posix as os

from ocirt.errors import Error
from ocirt.linux import files, mount, paths
from ocirt.linux.oslike import normpath, samestat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_ENOENT = 2
_ENOTDIR = 20
_ELOOP = 40
_PROC_ROOT_INODE = 1

#: Modes of what is made to mount on: {is a directory: mode}.
_MODES = {True: 0o755, False: 0o644}

#: What may be mounted over below /proc: files that lxcfs and the like emulate.
#: Anything else there could deceive the runtime and the container's monitors (CVE-2019-19921).
PROC_ALLOWED = frozenset(
    (
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/slabinfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/sys/crypto/fips_enabled",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/uptime",
    )
)


def clean(destination: str) -> str:
    """A destination without `.`, `..`, doubled slashes; a relative one is relative to / (config.md, Mounts)."""
    return normpath("/" + destination.lstrip("/"))


def open_target(plan: Plan, destination: str, *, directory: bool, follow: bool = True) -> tuple[int, bool]:
    """(O_PATH descriptor of the destination, was it made here).

    Links of the image are followed inside the root; `follow` is about the last component.
    What is missing is made, as a directory or as an empty file.
    """
    flags = os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW
    path = clean(destination)
    _check_proc(path)
    try:
        return paths.open_in_root(plan.root, path, flags, links=False), False
    except Error as error:
        if error.errno == _ENOENT and follow:
            return paths.make_in_root(plan.root, destination, _MODES[directory], directory=directory), True
        if error.errno != _ELOOP:
            raise
    # There are links on the way, so the path says nothing about where it leads.
    made = False
    try:
        fd = paths.open_in_root(plan.root, destination, flags)
    except Error as error:
        if error.errno != _ENOENT or not follow:
            raise
        fd = paths.make_in_root(plan.root, destination, _MODES[directory], directory=directory)
        made = True
    if path not in PROC_ALLOWED and files.filesystem_type(fd) == files.PROC_SUPER_MAGIC:
        os.close(fd)
        raise Error(f'"{destination}" cannot be mounted because it is inside /proc (through a link of the image)')
    return fd, made


def open_plain_directory(plan: Plan, destination: str, kind: str) -> int:
    """O_PATH descriptor of a destination reached without any link, for proc and sysfs.

    If the image could choose where procfs goes, writes meant for it would go elsewhere
    (CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867).
    """
    try:
        return paths.mkdir_in_root(plan.root, clean(destination), links=False)
    except Error as error:
        if error.errno not in (_ELOOP, _ENOTDIR):
            raise
    raise Error(f'filesystem "{kind}" must be mounted on ordinary directory, "{destination}" is a link or a file')


def _check_proc(path: str) -> None:
    if path.startswith("/proc/") and path not in PROC_ALLOWED:
        raise Error(f'"{path}" cannot be mounted because it is inside /proc')


def check_bind_on_proc(source: int, directory: bool) -> None:
    """Only a whole procfs may be bound on /proc itself."""
    if not directory or not is_proc_root(source):
        raise Error('"/proc" cannot be mounted because its source is not of type proc')


def is_proc_root(fd: int) -> bool:
    """Is it the root of a procfs?"""
    return files.filesystem_type(fd) == files.PROC_SUPER_MAGIC and os.fstat(fd).st_ino == _PROC_ROOT_INODE


def mount_ids(plan: Plan) -> set[int]:
    """The ids of all mounts, for `reopen`."""
    return {int(line.split(None, 1)[0]) for line in mountinfo(plan.proc)}


def mountinfo(proc: int) -> list[bytes]:
    """The lines of mountinfo, from the procfs `proc`."""
    fd = paths.open_in_root(proc, os.readlink("self", dir_fd=proc) + "/mountinfo", os.O_RDONLY)
    with open(fd, "rb", buffering=0) as file:
        return file.readall().splitlines()


def reopen(plan: Plan, destination: str, known: set[int], source: int = -1, *, follow: bool = True) -> int:
    """O_PATH descriptor of the root of what was just mounted on `destination` by path.

    Only for kernels without the calls that give it: the path is resolved a second
    time, and so it is verified to lead to a mount that wasn't there before (not in
    `known`) and, for a bind mount, to the very file that was bound.
    """
    if clean(destination) == "/":
        fd = os.open(plan.rootfs, os.O_PATH | os.O_CLOEXEC)  # from below the root nobody sees what covers it
    else:
        fd = paths.open_in_root(plan.root, destination, os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if mount.mount_id(plan.proc, fd) in known or not (source < 0 or samestat(found, os.fstat(source))):
        os.close(fd)
        raise Error(f'"{destination}" was replaced while it was being mounted on')
    return fd


def is_directory(fd: int) -> bool:
    """Is `fd` a directory?"""
    return stat.S_ISDIR(os.fstat(fd).st_mode)

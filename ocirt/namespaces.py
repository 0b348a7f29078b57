"""Which namespaces init makes, which it joins, and whether that takes a process in between.

config-linux.md, Namespaces.
"""

from __future__ import annotations

import fcntl
import posix as os

from ocirt.errors import Error, InvalidConfig, from_oserror
from ocirt.linux import sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from ocirt.spec import Linux

#: spec name: (clone flag, file below /proc/PID/ns)
TYPES = {
    "user": (sched.CLONE_NEWUSER, "user"),
    "pid": (sched.CLONE_NEWPID, "pid"),
    "network": (sched.CLONE_NEWNET, "net"),
    "mount": (sched.CLONE_NEWNS, "mnt"),
    "ipc": (sched.CLONE_NEWIPC, "ipc"),
    "uts": (sched.CLONE_NEWUTS, "uts"),
    "cgroup": (sched.CLONE_NEWCGROUP, "cgroup"),
    "time": (sched.CLONE_NEWTIME, "time"),
}

_NS_GET_NSTYPE = 0xB703


def split(linux: Linux) -> tuple[frozenset[str], dict[str, str]]:
    """The types to make, and {type: path} of those to join."""
    new: set[str] = set()
    paths: dict[str, str] = {}
    for namespace in linux.get("namespaces") or ():
        path = namespace.get("path")
        if path:
            paths[namespace["type"]] = path
        else:
            new.add(namespace["type"])
    return frozenset(new), paths


def open_joined(paths: dict[str, str], linux: Linux) -> dict[str, int]:
    """Open the namespaces to join; {type: fd}, the user namespace first.

    A path that isn't a namespace of its type is an error (config-linux.md,
    Namespaces: MUST). The runtime's own namespaces are left out: joining them
    changes nothing, and the kernel refuses it for the user namespace.
    """
    fds: dict[str, int] = {}
    order: list[str] = [n["type"] for n in linux.get("namespaces") or ()]
    for kind in sorted(paths, key=lambda kind: kind != "user"):
        path = paths[kind]
        where = f"linux.namespaces[{order.index(kind)}].path"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise from_oserror(error, f'{where}: open("{path}")') from None
        flag, file = TYPES[kind]
        try:
            found = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            found = 0
        if found != flag:
            os.close(fd)
            raise InvalidConfig(f'{where}: "{path}" is not a {kind} namespace{_is_of_type(found)}')
        if _same(fd, f"/proc/self/ns/{file}"):
            os.close(fd)
            continue
        fds[kind] = fd
    return fds


def _same(fd: int, path: str) -> bool:
    a, b = os.fstat(fd), os.stat(path)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _is_of_type(flag: int) -> str:
    for kind, (known, _) in TYPES.items():
        if known == flag:
            return f" but a {kind} namespace"
    return ""


def flags(types: frozenset[str] | set[str]) -> int:
    """The clone flags of namespace types."""
    result = 0
    for kind in types:
        result |= TYPES[kind][0]
    return result


def needs_intermediate(new: frozenset[str], joined: dict[str, int]) -> bool:
    """Must a process stand between the runtime and init?

    A pid or time namespace that shall belong to the container's user namespace
    must be made from inside it; and without privilege, those to join can be joined
    from inside only. Everything else one clone does: root of the host joins them
    for its next child (`children_in`) and goes back. Root of a user namespace, as
    an engine without privilege is, can't: the pid namespace in which it runs is not its own.
    """
    if "user" in joined and "pid" in new:
        return True
    unprivileged = bool(_FOR_CHILDREN & joined.keys()) and os.geteuid() != 0
    if ("user" in new or "user" in joined) and ("time" in new or unprivileged):
        return True
    return not all(_may_return(kind) for kind in _FOR_CHILDREN & (joined.keys() | (new - {"pid"})))


def _may_return(kind: str) -> bool:
    """May we join the pid or time namespace that we are in?"""
    flag, file = TYPES[kind]
    fd = os.open(f"/proc/self/ns/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        sched.setns(fd, flag, f"own {kind} namespace")
    except Error:
        return False
    finally:
        os.close(fd)
    return True


#: setns(2) and unshare(2) put only the children of the caller into these.
_FOR_CHILDREN = {"pid", "time"}


class children_in:
    """The next child is born in the pid and time namespaces of the plan; afterwards all is as before."""

    __slots__ = ("_joined", "_linux", "_own", "kinds")

    def __init__(self, new: frozenset[str], joined: dict[str, int], linux: Linux) -> None:
        self.kinds = (_FOR_CHILDREN & joined.keys()) | (new & {"time"})
        self._joined = joined
        self._linux = linux
        self._own: dict[str, int] = {}

    def __enter__(self) -> Self:
        for kind in self.kinds:
            self._own[kind] = os.open(f"/proc/self/ns/{TYPES[kind][1]}", os.O_RDONLY | os.O_CLOEXEC)
            if kind in self._joined:
                sched.setns(self._joined[kind], TYPES[kind][0], f"{kind} namespace")
            else:
                sched.unshare(TYPES[kind][0])
                write_time_offsets(open_time_offsets(), self._linux)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, fd in self._own.items():
            sched.setns(fd, TYPES[kind][0], f"own {kind} namespace")
            os.close(fd)


def join(joined: dict[str, int], kinds: set[str]) -> None:
    """setns into those of `joined` that are in `kinds`, the user namespace first."""
    for kind, fd in joined.items():
        if kind in kinds:
            sched.setns(fd, TYPES[kind][0], f"{kind} namespace")


def open_time_offsets() -> int:
    """The file of this process that takes the offsets of the clocks of its children (time_namespaces(7)).

    It may be opened only while the process is dumpable, and only by who has CAP_SYS_TIME
    in the user namespace that the time namespace, which may be made later, belongs to.
    """
    return os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)


def write_time_offsets(fd: int, linux: Linux) -> None:
    """Write linux.timeOffsets to the file, and close it."""
    offsets = linux.get("timeOffsets") or {}
    lines = "".join(
        f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}\n" for clock, offset in offsets.items()
    )
    try:
        if lines:
            os.write(fd, lines.encode())
    except OSError as error:
        raise Error(f"write {lines!r} to /proc/self/timens_offsets: {error.strerror}", error.errno or 0) from None
    finally:
        os.close(fd)

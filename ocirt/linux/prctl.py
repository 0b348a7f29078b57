"""prctl(2) and the capability calls.

python-prctl isn't used here: importing it costs 0.2 of a bare interpreter's
start, it has no ambient set, and it knows no capability that is younger than
the headers it was built with, so that dropping "all" of them would not.
"""

from __future__ import annotations

import _struct as struct

from ocirt.errors import Error
from ocirt.linux import libc, numbers

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

_LINUX_CAPABILITY_VERSION_3 = 0x20080522


def prctl(option: int, value: int = 0, value2: int = 0, shown: str = "") -> int:
    """prctl(2)."""
    return libc.call("prctl", option, value, value2, 0, 0, shown=shown)


def set_dumpable(dumpable: bool) -> None:
    """PR_SET_DUMPABLE: a process that isn't can be traced by its user namespace's root only."""
    prctl(PR_SET_DUMPABLE, int(dumpable))


def set_name(name: str) -> None:
    """PR_SET_NAME: what /proc/PID/comm and ps(1) call the process, in at most 15 bytes."""
    libc.call("prctl", PR_SET_NAME, name.encode(), 0, 0, 0)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of this thread; the sets are bit masks."""
    header = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    low = 0xFFFFFFFF
    data = struct.pack(
        "6I",
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    libc.syscall(
        "capset",
        numbers.number("capset"),
        header,
        data,
        shown=f"capset(effective={effective:#x}, permitted={permitted:#x}, inheritable={inheritable:#x})",
    )


def capget() -> tuple[int, int, int]:
    """capget(2): effective, permitted and inheritable of this thread as bit masks."""
    header = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    data = libc.Buffer(24)
    libc.syscall("capget", numbers.number("capget"), header, data)
    e0, p0, i0, e1, p1, i1 = struct.unpack("6I", data.data)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def knows(capability: int) -> bool:
    """Does the kernel have this capability? PR_CAPBSET_READ answers for all that it knows."""
    try:
        prctl(PR_CAPBSET_READ, capability)
    except Error as error:
        if error.errno == libc.EINVAL:
            return False
        raise
    return True


def in_bounding_set(capability: int) -> bool:
    """PR_CAPBSET_READ; False also for a capability that the kernel doesn't know."""
    try:
        return prctl(PR_CAPBSET_READ, capability) == 1
    except Error as error:
        if error.errno == libc.EINVAL:
            return False
        raise

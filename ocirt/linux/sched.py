"""Processes and namespaces: clone, unshare, setns, scheduling, limits."""

from __future__ import annotations

import _struct as struct
import posix as os

from ocirt.errors import Error
from ocirt.linux import libc, numbers

SIGCHLD = 17

CLONE_NEWTIME = 0x00000080
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

#: Why clone, unshare or setns refused, for the errnos that mislead.
_HINTS = {
    libc.EINVAL: "does the kernel have this kind of namespace?",
    28: "the limit of nested or of all namespaces is reached: see user.max_*_namespaces",
    libc.EPERM: "may this user make namespaces? see kernel.unprivileged_userns_clone, user.max_user_namespaces",
}


def _hinted(error: Error) -> Error:
    hint = _HINTS.get(error.errno)
    if hint:
        error.reason = f"{error.reason} ({hint})"
    return error


def clone(flags: int, cgroup: int = -1) -> int:
    """clone3(2), or clone(2) where it is missing: a child that goes on here, with 0.

    The child is a copy of this single thread. `cgroup` is a directory fd of a
    cgroup v2 that the child starts in (CLONE_INTO_CGROUP); without clone3 the
    caller has to move it. Raises Error.
    """
    if cgroup >= 0:
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        # set_tid_size, cgroup
        exit_signal = 0 if flags & CLONE_PARENT else SIGCHLD
        arguments = struct.pack("11Q", flags | CLONE_INTO_CGROUP, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup)
        try:
            return libc.syscall_gil("clone3", numbers.CLONE3, arguments, len(arguments))
        except Error as error:
            if error.errno not in (libc.ENOSYS, libc.EOPNOTSUPP, 16):  # EBUSY: the cgroup has controllers below it
                raise _hinted(error) from None
    number = numbers.number("clone")
    try:
        if numbers.MACHINE == "s390x":
            return libc.syscall_gil("clone", number, 0, flags | SIGCHLD, 0, 0, 0)
        return libc.syscall_gil("clone", number, flags | SIGCHLD, 0, 0, 0, 0)
    except Error as error:
        raise _hinted(error) from None


def unshare(flags: int) -> None:
    """unshare(2)."""
    try:
        libc.call("unshare", flags)
    except Error as error:
        raise _hinted(error) from None


def setns(fd: int, flags: int, shown: str) -> None:
    """setns(2): EINVAL when the fd isn't a namespace of the type in `flags`."""
    libc.call("setns", fd, flags, shown=f"setns({shown})")


def personality(persona: int) -> None:
    """personality(2)."""
    libc.call("personality", persona)


def setdomainname(name: bytes) -> None:
    """setdomainname(2)."""
    libc.call("setdomainname", name, len(name))


def prlimit(pid: int, resource: int, soft: int, hard: int, shown: str) -> None:
    """prlimit(2) with limits of 64 bits (2**64-1 is unlimited); pid 0 is this process."""
    limits = struct.pack("QQ", soft, hard)
    libc.syscall("prlimit64", numbers.number("prlimit64"), pid, resource, limits, None, shown=shown)


def sched_setattr(
    policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int, shown: str
) -> None:
    """sched_setattr(2) of this thread; times in nanoseconds."""
    attributes = struct.pack("IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    libc.syscall("sched_setattr", numbers.number("sched_setattr"), 0, attributes, 0, shown=shown)


def ioprio_set(which: int, who: int, ioprio: int) -> None:
    """ioprio_set(2)."""
    libc.syscall("ioprio_set", numbers.number("ioprio_set"), which, who, ioprio)


def set_mempolicy(mode: int, nodes: list[int], shown: str) -> None:
    """set_mempolicy(2); `mode` holds the flags as well."""
    if not nodes:
        libc.syscall("set_mempolicy", numbers.number("set_mempolicy"), mode, None, 0, shown=shown)
        return
    words = max(nodes) // 64 + 1
    mask = 0
    for node in nodes:
        mask |= 1 << node
    # maxnode counts one bit more than the mask has: get_nodes() of the kernel subtracts one
    libc.syscall(
        "set_mempolicy",
        numbers.number("set_mempolicy"),
        mode,
        mask.to_bytes(words * 8, "little" if struct.pack("=H", 1)[0] else "big"),
        words * 64 + 1,
        shown=shown,
    )


def pidfd_open(pid: int) -> int:
    """pidfd_open(2); -1 where the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno == libc.ENOSYS:
            return -1
        raise

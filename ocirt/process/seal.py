"""How the last execve is kept from handing out the interpreter's file (CVE-2019-5736).

Nearly always the trampoline does it (process/trampoline.py). Where it would change
what the container gets, or doesn't help, the interpreter runs from a file that can't
be written: a process of the container that may trace init (CAP_SYS_PTRACE in the
host's user namespace, in a shared pid namespace) opens init's /proc/PID/exe, keeps
it, and once init has ended writes to the host's interpreter. Then the whole command
starts over, from a read-only detached clone of the interpreter's mount, or where the
kernel has none, from a sealed copy in memory: once more the start of an interpreter,
so only where it is needed.
"""

from __future__ import annotations

import posix as os
import sys

from ocirt.errors import Error, Unsupported, from_oserror
from ocirt.identity import seccomp
from ocirt.identity.capabilities import SYS_PTRACE
from ocirt.linux import files, libc, mount
from ocirt.linux.oslike import environ, fsencode, realpath
from ocirt.process import trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.process.plan import Plan

    #: A command line, or what gives it when it is needed.
    Argv = tuple[str, ...] | Callable[[], tuple[str, ...]]

_ST_RDONLY = 1


def choose(plan: Plan, argv: Argv, others: int = 0) -> None:
    """Choose how the last execve is protected: sets plan.uses_trampoline, and starts the command over if it must.

    others  capabilities that processes of the container may have already, as a mask
    Nothing may have been made yet; what `ensure` raises, this raises.
    """
    plan.uses_trampoline = bool(plan.process) and _trampoline_is_unseen(plan)
    if _is_traceable(plan, others) or (plan.process and not plan.uses_trampoline and _may_own_interpreter(plan)):
        ensure(argv)


def _is_traceable(plan: Plan, others: int) -> bool:
    """May processes of the container trace init? In a user namespace none can trace what came from outside."""
    return not plan.userns and "pid" not in plan.new and bool((plan.capabilities.bounding | others) & SYS_PTRACE)


def _trampoline_is_unseen(plan: Plan) -> bool:
    """Does the program start as it would without the trampoline between?

    A security module sees two execve: with a label the policy would have to allow the
    trampoline's file as an entry point; with a profile the trampoline is confined by it
    already, so that the program would need `x` in it, and with `ux` or `px` leave it.
    """
    if not trampoline.AVAILABLE or plan.process.get("selinuxLabel") or plan.process.get("apparmorProfile"):
        return False
    return plan.filter is None or seccomp.allows(plan.filter, "execveat")


def _may_own_interpreter(plan: Plan) -> bool:
    """May an id of the container be the owner of the interpreter's file?"""
    if not plan.userns:
        return True
    if any(n["type"] == "user" and n.get("path") for n in plan.linux.get("namespaces") or ()):
        return True  # whatever is mapped there
    status = os.stat("/proc/self/exe")
    uids, gids = plan.linux.get("uidMappings") or (), plan.linux.get("gidMappings") or ()
    return any(m["hostID"] <= status.st_uid < m["hostID"] + m["size"] for m in uids) or any(
        m["hostID"] <= status.st_gid < m["hostID"] + m["size"] for m in gids
    )


def is_sealed() -> bool:
    """Is this interpreter's file sealed in memory, or on a read-only mount that nobody can make writable again?"""
    if os.readlink("/proc/self/exe").startswith("/memfd:"):
        return True
    fd = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.fstatvfs(fd).f_flag & _ST_RDONLY:
            return False
        # one of the mounts of this host, read-only /usr say, may be remounted; only a detached one can't
        id = mount.mount_id(-1, fd)
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", "rb") as mounts:
        return all(int(line.split(b" ", 1)[0]) != id for line in mounts)


def ensure(argv: Argv) -> None:
    """Start the command over from a sealed interpreter, unless it runs from one.

    Nothing has been made yet, and the descriptors that the caller passed stay.
    Raises Unsupported in a library, whose process isn't ours to replace.
    """
    if is_sealed():
        return
    if not argv:
        raise Unsupported(
            "this container shares a pid namespace, has a label or profile of a security module, or a seccomp filter"
            " without execveat: the interpreter must be sealed first (call ocirt.seal() at the start of the program)"
        )
    restart(argv() if callable(argv) else argv)


def restart(argv: tuple[str, ...]) -> None:
    """execve the interpreter again from a sealed file, with the same arguments."""
    fd = _sealed_interpreter()
    try:
        os.execve(fd, [sys.executable, *argv], environ())
    except OSError as error:
        raise from_oserror(error, "execute the sealed interpreter") from None


def _sealed_interpreter() -> int:
    path = realpath("/proc/self/exe")
    try:
        attributes = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
        return mount.open_tree_attr(-100, fsencode(path), mount.OPEN_TREE_CLONE, attributes, 0)
    except Error as error:
        if error.errno not in (libc.ENOSYS, libc.EPERM, libc.EINVAL):
            raise
    with open(path, "rb") as interpreter:
        return files.sealed_memory("ocirt-python", interpreter.read())

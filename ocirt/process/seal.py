"""Running the interpreter from a file that can't be written, for the cases that the trampoline doesn't cover.

CVE-2019-5736: a process of the container that may trace init (CAP_SYS_PTRACE in
the host's user namespace, in a shared pid namespace) opens init's /proc/PID/exe,
keeps it, and once init has ended writes to the host's interpreter. And where the
last execve can't go through the trampoline, the program itself may be
`#!/proc/self/exe`. Then the whole command starts over, from a read-only detached
clone of the interpreter's mount, or where the kernel has none, from a sealed copy
in memory: once more the start of an interpreter, so only where it is needed.
"""

from __future__ import annotations

import os
import sys

from ocirt.errors import Error, Unsupported, from_oserror
from ocirt.identity import seccomp
from ocirt.identity.capabilities import SYS_PTRACE
from ocirt.linux import files, libc, mount
from ocirt.process import trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_ST_RDONLY = 1


def needed(plan: Plan, others: int = 0) -> bool:
    """Must the interpreter itself be sealed?

    others  capabilities that processes of the container may have already, as a mask
    """
    if plan.userns:
        # root of the container is nobody to the host's files
        return False
    if "pid" not in plan.new and (plan.capabilities.bounding | others) & SYS_PTRACE:
        return True
    if not plan.process:
        return False
    if not trampoline.AVAILABLE or plan.process.get("selinuxLabel"):
        # the label would have to allow the trampoline's file as an entry point
        return True
    return plan.filter is not None and not seccomp.allows(plan.filter, "execveat")


def is_sealed() -> bool:
    """Is this interpreter's file on a read-only mount, or a sealed file in memory?"""
    if os.readlink("/proc/self/exe").startswith("/memfd:"):
        return True
    fd = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
    try:
        return bool(os.fstatvfs(fd).f_flag & _ST_RDONLY)
    finally:
        os.close(fd)


def ensure(argv: tuple[str, ...]) -> None:
    """Start the command over from a sealed interpreter, unless it runs from one.

    Nothing has been made yet, and the descriptors that the caller passed stay.
    Raises Unsupported in a library, whose process isn't ours to replace.
    """
    if is_sealed():
        return
    if not argv:
        raise Unsupported(
            "this container shares a pid namespace or has a seccomp filter without execveat:"
            " the interpreter must be sealed first (call ocirt.seal() at the start of the program)"
        )
    restart(argv)


def restart(argv: tuple[str, ...]) -> None:
    """execve the interpreter again from a sealed file, with the same arguments."""
    fd = _sealed_interpreter()
    try:
        os.execve(fd, [sys.executable, *argv], os.environ)
    except OSError as error:
        raise from_oserror(error, "execute the sealed interpreter") from None


def _sealed_interpreter() -> int:
    path = os.path.realpath("/proc/self/exe")
    try:
        attributes = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
        return mount.open_tree_attr(-100, os.fsencode(path), mount.OPEN_TREE_CLONE, attributes, 0)
    except Error as error:
        if error.errno not in (libc.ENOSYS, libc.EPERM, libc.EINVAL):
            raise
    with open(path, "rb") as interpreter:
        return files.sealed_memory("ocirt-python", interpreter.read())

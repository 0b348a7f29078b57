"""Labels of the Linux security modules: AppArmor and SELinux.

config.md, Linux Process (apparmorProfile, selinuxLabel). They are written
through a private procfs that nobody can have mounted over (CVE-2019-16884,
CVE-2025-52881).
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, Unsupported, from_oserror
from ocirt.linux.oslike import exists, fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.spec import Process


def check_available(process: Process) -> None:
    """Refuse a label of a security module that this host lacks, before anything is created."""
    if process.get("apparmorProfile") and not apparmor_enabled():
        raise Unsupported(
            f"process.apparmorProfile: {process['apparmorProfile']!r}: AppArmor is not enabled on this host"
        )
    if process.get("selinuxLabel") and not selinux_enabled():
        raise Unsupported(f"process.selinuxLabel: {process['selinuxLabel']!r}: SELinux is not enabled on this host")


def apparmor_enabled() -> bool:
    """Is AppArmor on (apparmor(7))?"""
    try:
        fd = os.open("/sys/module/apparmor/parameters/enabled", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, 1) == b"Y"
    finally:
        os.close(fd)


def selinux_enabled() -> bool:
    """Is SELinux on: is its file system mounted (selinux(8))?"""
    return exists("/sys/fs/selinux/enforce")


def set_process_labels(plan: Plan) -> None:
    """set the labels of the program"""
    profile = plan.process.get("apparmorProfile")
    if profile:
        # attr/apparmor/exec is AppArmor's own; attr/exec belongs to whichever module comes first
        _write(plan, ("self/attr/apparmor/exec", "self/attr/exec"), f"exec {profile}")
    label = plan.process.get("selinuxLabel")
    if label:
        _write(plan, ("self/attr/exec",), label)


def label_keyring(plan: Plan) -> None:
    """Give keyrings that this process makes the program's SELinux label, until execve: it may not use others."""
    label = plan.process.get("selinuxLabel")
    if label:
        _write(plan, ("self/attr/keycreate",), label)


def _write(plan: Plan, names: tuple[str, ...], text: str) -> None:
    for name in names:
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=plan.proc)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, fsencode(text))
        except OSError as error:
            raise from_oserror(error, f"write {text!r} to /proc/{name}", "is the profile loaded?") from None
        finally:
            os.close(fd)
        return
    raise Error(f"open /proc/{names[0]}: no such file or directory (is the security module enabled?)", 2)

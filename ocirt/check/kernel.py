"""Probes of the kernel: system calls, namespaces, file systems, seccomp, security modules."""

from __future__ import annotations

import os

from ocirt import namespaces
from ocirt.check.finding import MISSING, OK, PARTLY, Probe, amount, read
from ocirt.errors import Error
from ocirt.linux import libc, numbers, sched

#: Calls that ocirt has other ways for, or does without: each with arguments that the kernel refuses.
CALLS: tuple[tuple[str, int, str, tuple[int, ...]], ...] = (
    ("openat2", numbers.OPENAT2, "5.6", (-1, 0, 0, 0)),
    ("clone3", numbers.CLONE3, "5.3", (0, 0)),
    ("close_range", numbers.CLOSE_RANGE, "5.9", (1, 0, 0)),
    ("pidfd_open", numbers.PIDFD_OPEN, "5.3", (-1, 0)),
    ("pidfd_getfd", numbers.PIDFD_GETFD, "5.6", (-1, -1, 0)),
    ("open_tree", numbers.OPEN_TREE, "5.2", (-1, 0, 0)),
    ("move_mount", numbers.MOVE_MOUNT, "5.2", (-1, 0, -1, 0, 0)),
    ("fsopen", numbers.FSOPEN, "5.2", (0, 0)),
    ("mount_setattr", numbers.MOUNT_SETATTR, "5.12", (-1, 0, 0, 0, 0)),
    ("memfd_create", numbers.number("memfd_create"), "3.17", (0, 0)),
    ("seccomp", numbers.number("seccomp"), "3.17", (0xFFFF, 0, 0)),
    ("keyctl", numbers.number("keyctl"), "2.6", (0xFFFF, 0, 0)),
)

FILESYSTEMS = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "overlay")


def _release() -> tuple[str, str]:
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if version < (4, 18):
        return MISSING, release
    return (PARTLY if version < (5, 12) else OK), f"Linux {release}, {numbers.MACHINE}"


def _calls() -> tuple[str, str]:
    found: list[str] = []
    lacking: list[str] = []
    for name, number, since, arguments in CALLS:
        try:
            libc.syscall(name, number, *arguments)
        except Error as error:
            if error.errno == libc.ENOSYS:
                lacking.append(f"{name} (Linux {since})")
                continue
        found.append(name)
    return amount(found, lacking)


def _namespaces() -> tuple[str, str]:
    there = set(os.listdir("/proc/self/ns"))
    kinds = {kind: file in there for kind, (_, file) in namespaces.TYPES.items()}
    return amount([kind for kind, has in kinds.items() if has], [kind for kind, has in kinds.items() if not has])


def _user_namespaces() -> tuple[str, str]:
    limit = read("/proc/sys/user/max_user_namespaces")
    if limit == "0":
        return MISSING, "user.max_user_namespaces is 0"
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return PARTLY, "for root only: kernel.unprivileged_userns_clone is 0"
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return PARTLY, "for root and profiles that allow it: kernel.apparmor_restrict_unprivileged_userns is 1"
    pid = sched.clone(sched.CLONE_NEWUSER)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return OK, f"up to {limit or 'any number'}"


def _filesystems() -> tuple[str, str]:
    known = {line.split()[-1] for line in read("/proc/filesystems").splitlines()}
    return amount([n for n in FILESYSTEMS if n in known], [n for n in FILESYSTEMS if n not in known])


def _mapped_mounts() -> tuple[str, str]:
    from ocirt.linux import mount

    tree = mount.open_tree(-100, b"/proc", mount.OPEN_TREE_CLONE | os.O_CLOEXEC)
    os.close(tree)
    return OK, "mounts can be cloned and given attributes and mapped ids, where their file system allows it"


def _seccomp() -> tuple[str, str]:
    from ocirt.identity.seccomp import names

    actions = read("/proc/sys/kernel/seccomp/actions_avail").split()
    if not actions:
        return MISSING, "the kernel has no seccomp filters"
    flags = [flag.removeprefix("SECCOMP_FILTER_FLAG_") for flag in names.supported_flags()]
    return OK, f"actions {' '.join(actions)}; flags {' '.join(flags)}"


def _security_modules() -> tuple[str, str]:
    active = read("/sys/kernel/security/lsm").split(",")
    if read("/sys/module/apparmor/parameters/enabled").startswith("Y") and "apparmor" not in active:
        active.append("apparmor")
    if os.path.exists("/sys/fs/selinux/enforce") and "selinux" not in active:
        active.append("selinux")
    names = [name for name in active if name]
    if not {"apparmor", "selinux"} & set(names):
        return PARTLY, f"{', '.join(names) or 'none that can be seen'}; neither SELinux nor AppArmor"
    return OK, ", ".join(names)


PROBES = (
    Probe("kernel", "release", _release, "5.12 or newer has everything that is used", required=True),
    Probe("kernel", "system calls", _calls, "other ways are taken where there are any; a newer kernel has them all"),
    Probe("kernel", "namespaces", _namespaces, "a kernel with CONFIG_NAMESPACES, CONFIG_TIME_NS, CONFIG_CGROUPS"),
    Probe("kernel", "user namespaces", _user_namespaces, "sysctl -w user.max_user_namespaces=28633, or what is named"),
    Probe("kernel", "file systems", _filesystems, "modprobe the missing ones; engines want overlay for images"),
    Probe("kernel", "detached mounts", _mapped_mounts, "mounts with mapped ids need Linux 5.12 and root"),
    Probe("kernel", "seccomp", _seccomp, "a kernel with CONFIG_SECCOMP_FILTER"),
    Probe(
        "kernel",
        "security modules",
        _security_modules,
        "boot with lsm=…,apparmor or selinux if process.apparmorProfile or selinuxLabel are wanted",
    ),
)

"""What kind of cgroup host this is: the hierarchies and where they are mounted."""

from __future__ import annotations

import posix as os

from ocirt.cgroups.files import read_or

#: Where cgroup2 is on a host that has nothing else (and where systemd and engines expect it).
MOUNTPOINT = "/sys/fs/cgroup"

#: Mount options of a v1 hierarchy that aren't its controllers.
_OPTIONS = frozenset(
    ("rw", "ro", "xattr", "none", "noprefix", "clone_children", "favordynmods", "cpuset_v2_mode", "seclabel")
)


def unified() -> bool:
    """Is cgroup2 mounted where everybody expects it, and nothing else? One call, no mount table read."""
    return os.access(MOUNTPOINT + "/cgroup.controllers", os.F_OK)


def hierarchies() -> list[tuple[str, str]]:
    """(controllers, mountpoint) of each mounted hierarchy, in the order of mounting.

    controllers is "" for cgroup2, else as /proc/self/cgroup has them: `cpu,cpuacct`,
    `name=systemd`. A hierarchy that is mounted more than once counts once; the
    mount below /sys/fs/cgroup is preferred.
    """
    if unified():
        return [("", MOUNTPOINT)]
    found: dict[str, str] = {}
    table = read_or("/proc/self/mountinfo")
    at = table.find(" - cgroup")
    while at >= 0:
        start = table.rfind("\n", 0, at) + 1
        end = table.find("\n", at)
        line = table[start : end if end >= 0 else len(table)]
        _add(found, line)
        at = table.find(" - cgroup", start + len(line))
    return list(found.items())


def _add(found: dict[str, str], line: str) -> None:
    left, _, right = line.partition(" - ")
    kind, _, rest = right.partition(" ")
    if kind == "cgroup2":
        controllers = ""
    elif kind == "cgroup":
        options = rest.rpartition(" ")[2].split(",")
        controllers = ",".join(o for o in options if o not in _OPTIONS and not o.startswith("release_agent="))
    else:
        return
    mountpoint = left.split(" ")[4]
    if "\\" in mountpoint:
        mountpoint = _unescape(mountpoint)
    if controllers not in found or (
        mountpoint.startswith(MOUNTPOINT + "/") and not found[controllers].startswith(MOUNTPOINT + "/")
    ):
        found[controllers] = mountpoint


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash)."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text


def own(pid: int | str = "self") -> dict[str, str]:
    """{controllers: path} of a process, from /proc/PID/cgroup; "" is cgroup2."""
    found: dict[str, str] = {}
    for line in read_or(f"/proc/{pid}/cgroup").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number:
            found[controllers] = path
    return found

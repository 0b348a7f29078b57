"""The chooser: the only place that asks which kind of cgroup host this is."""

from __future__ import annotations

import posix as os

from ocirt.cgroups import conversions, files, host
from ocirt.errors import InvalidConfig, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.cgroups.base import Cgroup

#: With a memory limit below this the page tables that a clone copies are charged to the runtime's cgroup rather than
#: to the container's: half a MiB. It costs the wait for a move between cgroups.
SMALL = 8 << 20
FIELD = "linux.cgroupsPath"
#: Annotation: a cgroup below the container's that its processes are in, and that is theirs.
DELEGATE = "run.oci.delegate-cgroup"
MANAGERS = ("cgroupfs", "systemd", "disabled")


def choose(
    linux: Mapping[str, Any], id: str, *, manager: str, rootless: bool, annotations: Mapping[str, str]
) -> Cgroup:
    """See ocirt.cgroups.choose."""
    if manager == "disabled":
        from ocirt.cgroups.base import Cgroup

        return Cgroup()
    if manager == "auto":
        manager = "systemd" if _is_for_systemd(linux.get("cgroupsPath") or "") else "cgroupfs"
    if manager not in MANAGERS:
        raise InvalidConfig(f"--cgroup-manager: {manager!r} is none of {', '.join(MANAGERS)}")
    wanted: str = linux.get("cgroupsPath") or ""
    mounted = host.hierarchies()
    if not mounted:
        raise Unsupported("no cgroup hierarchy is mounted (--cgroup-manager=disabled does without)")
    if manager == "systemd":
        from ocirt.cgroups.systemd import choose as choose_systemd

        resources = conversions.section(linux, "resources")
        below = delegated(annotations, mounted)
        return choose_systemd(
            mounted, wanted, id, resources=resources, rootless=rootless, annotations=annotations, below=below
        )
    parts = files.clean(wanted or id, FIELD)
    if not parts:
        raise InvalidConfig(f"{FIELD}: {wanted!r} is the root cgroup; a container needs one of its own")
    path = "".join("/" + part for part in parts)
    below = delegated(annotations, mounted)
    if len(mounted) == 1 and mounted[0][0] == "":
        from ocirt.cgroups.v2 import V2

        mountpoint = mounted[0][1]
        if rootless and not wanted.startswith("/"):
            path = _delegated() + path
        limit = conversions.section(conversions.section(linux, "resources"), "memory").get("limit") or 0
        kept = existing(mountpoint, path + below)
        return V2(mountpoint, path, kept, optional=rootless, late=0 < limit < SMALL, below=below)
    from ocirt.cgroups.v1 import V1

    return V1(
        [(controllers, mountpoint, path, existing(mountpoint, path)) for controllers, mountpoint in mounted],
        optional=rootless,
    )


def delegated(annotations: Mapping[str, str], mounted: list[tuple[str, str]]) -> str:
    """The path below the container's cgroup that the annotation names, "" for none."""
    name = annotations.get(DELEGATE)
    if not name:
        return ""
    if len(mounted) != 1 or mounted[0][0]:
        raise Unsupported(f"the annotation {DELEGATE}: delegation is safe with cgroup v2 alone")
    return subgroup(name, DELEGATE)


def subgroup(name: str, annotation: str) -> str:
    """The value of an annotation as "/path"; raises InvalidConfig."""
    return "".join("/" + part for part in files.clean(name, f"the annotation {annotation}"))


def _is_for_systemd(path: str) -> bool:
    """Is the path `SLICE:PREFIX:NAME`, on a host that systemd runs?"""
    parts = path.split(":")
    return len(parts) == 3 and parts[0].endswith(".slice") and os.access("/run/systemd/system", os.F_OK)


def existing(mountpoint: str, path: str) -> int:
    """How many leading components of the path are there already."""
    count = 0
    at = 0
    while at >= 0:
        at = path.find("/", at + 1)
        if not os.access(mountpoint + (path[:at] if at >= 0 else path), os.F_OK):
            break
        count += 1
    return count


def _delegated() -> str:
    """Where an unprivileged caller may make cgroups: beside its own (its own has processes in it)."""
    own = host.own().get("", "/")
    return own[: own.rindex("/")]

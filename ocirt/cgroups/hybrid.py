"""Controllers that a hybrid host keeps on its cgroup2 tree: written there, as on a pure v2 host."""

from __future__ import annotations

from ocirt.cgroups import files
from ocirt.errors import InvalidConfig, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ocirt.cgroups.v1 import V1


def enable(cgroup: V1, controller: str, field: str) -> str:
    """Enable the controller down to the container's cgroup2 directory, and give that; raises Unsupported."""
    for controllers, mountpoint, path, _ in cgroup.cgroups:
        if controllers == "" and controller in files.read_or(mountpoint + "/cgroup.controllers").split():
            at = 0
            while at >= 0:
                files.write(f"{mountpoint}{path[:at]}/cgroup.subtree_control", f"+{controller}")
                at = path.find("/", at + 1)
            return mountpoint + path
    raise Unsupported(f"{field}: no cgroup hierarchy has the {controller} controller")


def huge_pages(cgroup: V1, limits: Sequence[Mapping[str, Any]], field: str) -> None:
    """hugetlb.SIZE.max and .rsvd.max."""
    directory = enable(cgroup, "hugetlb", field)
    from ocirt.cgroups import resources_v2

    resources_v2.huge_pages(directory, limits)


def unified(cgroup: V1, values: Mapping[str, str]) -> None:
    """linux.resources.unified is for cgroup v2: an error where its controllers are on v1 hierarchies."""
    for key, value in values.items():
        field = f"linux.resources.unified[{key!r}]"
        controller = key.partition(".")[0]
        if "/" in key:
            raise InvalidConfig(f"{field}: is no file name")
        if cgroup.path(controller) or not cgroup.path():
            raise InvalidConfig(f"{field}: needs cgroup v2; on this host the {controller} controller is on cgroup v1")
        directory = cgroup.path() if controller == "cgroup" else enable(cgroup, controller, field)
        for line in value.split("\n"):
            files.write(f"{directory}/{key}", line)

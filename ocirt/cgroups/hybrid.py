"""Controllers that a hybrid host keeps on its cgroup2 tree: written there, as on a pure v2 host."""

from __future__ import annotations

import posix

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
                control = f"{mountpoint}{path[:at]}/cgroup.subtree_control"
                if controller not in files.read_or(control).split():
                    files.write(control, f"+{controller}")
                    if controller not in cgroup.enabled:
                        cgroup.enabled.append(controller)
                at = path.find("/", at + 1)
            return mountpoint + path
    raise Unsupported(f"{field}: no cgroup hierarchy has the {controller} controller")


def disable(cgroup: V1) -> None:
    """Take controllers back from the cgroup2 tree once no cgroup there limits anything by them.

    They were enabled for a container that is gone. Left enabled, their v1 hierarchy
    could not be mounted any more, and crun would not work on this host.
    """
    for controllers, mountpoint, path, _ in cgroup.cgroups:
        if controllers:
            continue
        for controller in cgroup.enabled:
            above = path
            while above:
                above = above[: above.rindex("/")]
                if not _disable(mountpoint + above, controller):
                    break


def _disable(directory: str, controller: str) -> bool:
    for name in files.subdirectories(directory):
        below = f"{directory}/{name}/"
        if controller in files.read_or(below + "cgroup.subtree_control").split():
            return False
        limits = [file for file in posix.listdir(below) if file.startswith(controller + ".") and file.endswith(".max")]
        if any(_limits(files.read_or(below + file)) for file in limits):
            return False
    try:
        files.put(directory + "/cgroup.subtree_control", "-" + controller)
    except OSError:
        return posix.access(directory, posix.F_OK) is False  # a parent that went with the container
    return True


def _limits(text: str) -> bool:
    """Whether a value limits anything: some kernels write "no limit" as the most pages that a counter holds."""
    value = text.strip()
    return value.isdigit() and int(value) < 1 << 62


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

"""What a container may use: cgroups v1, hybrid and v2, by hand or through systemd.

Two functions; everything else is behind the interface in base.Cgroup.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.cgroups.base import Cgroup


def choose(
    linux: Mapping[str, Any], id: str, *, manager: str, rootless: bool, annotations: Mapping[str, str]
) -> Cgroup:
    """Decide where the container's cgroup is and who makes it. Changes nothing on the host.

    manager is `cgroupfs`, `systemd`, `disabled`, or `auto`: systemd for a cgroupsPath of its form. Raises InvalidConfig
    for a cgroupsPath that can't be, Unsupported if the host has no cgroups.
    """
    from ocirt.cgroups.choosing import choose

    return choose(linux, id, manager=manager, rootless=rootless, annotations=annotations)


def load(record: dict[str, Any]) -> Cgroup:
    """The cgroup that wrote this `record()`."""
    manager = record["manager"]
    if manager == "v1":
        from ocirt.cgroups.v1 import V1

        made = V1([(c[0], c[1], c[2], c[3]) for c in record["cgroups"]])
        made.enabled = record.get("enabled") or []
        return made
    if manager == "v2":
        from ocirt.cgroups.v2 import V2

        return V2(record["mountpoint"], record["path"], record["kept"], below=record.get("below") or "")
    if manager == "systemd":
        from ocirt.cgroups.systemd import Systemd

        return Systemd.load(record)
    from ocirt.cgroups.base import Cgroup

    return Cgroup()


def too_small(limit: int, peak: int) -> str:
    """The hint when the OOM killer took the container's init before the program started."""
    from ocirt.cgroups import base

    return base.too_small(limit, peak)

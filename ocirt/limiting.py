"""Limits of a new container: its cgroup, and what else is given to init from outside."""

from __future__ import annotations

import posix as os

from ocirt import log
from ocirt.errors import Error, doing
from ocirt.identity import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cgroups.base import Cgroup
    from ocirt.cgroups.entrances import Entrances
    from ocirt.container import Container
    from ocirt.errors import Undo
    from ocirt.process.plan import Plan


def prepare_entrances(plan: Plan, cgroup: Cgroup) -> Entrances | None:
    """Let init enter its cgroup by itself, where there is a way; then the limits come before it."""
    with doing("join the cgroup"):
        # pages that init touches before the program runs aren't the container's; but a cgroup
        # namespace must be made in all of the container's cgroups
        entrances = cgroup.entrances(memory="cgroup" in plan.new)
    if entrances:
        try:
            _apply(plan, cgroup)
        except Error:
            entrances.close()
            raise
    return entrances


def limit(container: Container, plan: Plan, cgroup: Cgroup, pid: int, undo: Undo) -> None:
    """Put init where it belongs, while it makes its mounts."""
    log.step("limit init")
    score = plan.process.get("oomScoreAdj")
    if score is not None:
        limits.set_oom_score(pid, score)
    if cgroup.applies_first and not plan.entrances:
        _apply(plan, cgroup)
    with doing("join the cgroup"):
        if plan.entrances:
            plan.entrances.follow(pid)
        else:
            cgroup.join(pid, memory="cgroup" in plan.new)
    if not cgroup.applies_first:
        _apply(plan, cgroup)
    container.record["cgroup"] = cgroup.record()
    owner = _cgroup_owner(plan)
    if owner is not None:
        with doing("delegate the cgroup"):
            cgroup.chown(owner)
    if plan.linux.get("intelRdt"):
        from ocirt.cgroups import intelrdt

        with doing("apply linux.intelRdt"):
            group = container.record["intelRdt"] = intelrdt.apply(plan.linux["intelRdt"], plan.id, pid)
            undo.add("remove the resctrl group", lambda: intelrdt.remove(group))
    if plan.linux.get("netDevices"):
        from ocirt import netdevices

        with doing("move linux.netDevices"):
            netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                netdevices.move(netns, plan.linux["netDevices"])
            finally:
                os.close(netns)


def _apply(plan: Plan, cgroup: Cgroup) -> None:
    log.step("apply linux.resources")
    with doing("apply linux.resources"):
        cgroup.apply(plan.linux.get("resources") or {})


def _cgroup_owner(plan: Plan) -> int | None:
    """The host uid that gets the cgroup, None for nobody (config-linux.md, Cgroup ownership).

    Only if the container has a cgroup namespace of its own and mounts it writable, or asks by annotation.
    """
    if "cgroup" not in plan.new:
        return None
    asked = (plan.config.get("annotations") or {}).get("run.oci.delegate-cgroup")
    for mount in () if asked else plan.config.get("mounts") or ():
        if mount["destination"] == "/sys/fs/cgroup" and mount.get("source") == "cgroup":
            if "ro" in (mount.get("options") or ()):
                return None
            break
    else:
        if not asked:
            return None
    uid = plan.user.get("uid", 0)
    if not plan.userns:
        return uid
    for mapping in plan.linux.get("uidMappings") or ():
        if 0 <= uid - mapping["containerID"] < mapping["size"]:
            return mapping["hostID"] + uid - mapping["containerID"]
    return None

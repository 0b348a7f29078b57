"""linux.resources on cgroup v2: which value goes to which file, in which order (cgroup-v2.rst)."""

from __future__ import annotations

import os

from ocirt.cgroups import conversions, files
from ocirt.errors import Error, InvalidConfig, Unsupported, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: Fields that cgroup v2 has nothing for, and the values that ask for nothing.
NOT_CONVERTIBLE: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("cpu", "realtimeRuntime", (0,)),
    ("cpu", "realtimePeriod", (0,)),
    ("memory", "kernel", (0, -1)),
    ("memory", "kernelTCP", (0, -1)),
    ("memory", "swappiness", ()),
    ("memory", "disableOOMKiller", (False,)),
    ("memory", "useHierarchy", (False, True)),  # cgroup v2 always is
    ("blockIO", "leafWeight", (0,)),
    ("network", "classID", (0,)),
    ("network", "priorities", ([],)),
)


def apply(directory: str, resources: Mapping[str, Any], current: Mapping[str, Any] | None = None) -> None:
    """Write the limits. `current` is what was applied before: then this is an update.

    Raises InvalidConfig for a v1 field without an equivalent (config-linux.md, Unified), before anything is written.
    """
    _refuse(resources)
    if current is None or "devices" in resources:
        from ocirt.cgroups import devices_v2

        devices_v2.apply(directory, resources.get("devices"))
    for section, function in _SECTIONS:
        part: Any = resources.get(section)
        if part:
            if section == "memory" and current and part.get("swap") and not part.get("limit"):
                # the kernel's file is the difference of the two
                part = {**part, "limit": conversions.section(current, "memory").get("limit") or 0}
            function(directory, part)


def _refuse(resources: Mapping[str, Any]) -> None:
    for section, key, nothing in NOT_CONVERTIBLE:
        value = conversions.section(resources, section).get(key)
        if value is not None and value not in nothing:
            raise InvalidConfig(
                f"linux.resources.{section}.{key}: {value} can't be done with cgroup v2, which has no equivalent"
            )
    for index, entry in enumerate(conversions.section(resources, "blockIO").get("weightDevice") or ()):
        if entry.get("leafWeight"):
            field = f"linux.resources.blockIO.weightDevice[{index}].leafWeight"
            raise InvalidConfig(f"{field}: {entry['leafWeight']} can't be done with cgroup v2, which has no equivalent")


def put(directory: str, name: str, value: object, field: str, hint: str = "") -> None:
    """Write a file of the cgroup; raises Error with the field of config.json in front."""
    path = f"{directory}/{name}"
    try:
        files.put(path, str(value))
    except OSError as error:
        if error.errno == files.ENOENT:
            raise missing(directory, name, field, hint) from error
        with doing(field):
            raise files.failed(path, str(value), error, hint) from error


def missing(directory: str, name: str, field: str, hint: str = "") -> Unsupported:
    """The error for a file that isn't there: the controller isn't, or the kernel doesn't know it."""
    controller = name.partition(".")[0]
    here = files.read_or(directory + "/cgroup.controllers")
    reason = f"{field}: {directory}/{name} doesn't exist: "
    if controller != "cgroup" and controller not in here.split():
        return Unsupported(
            f"{reason}controller not delegated: {controller} ({directory}/cgroup.controllers has {here or 'none'})",
            files.ENOENT,
        )
    return Unsupported(
        reason + (f"this kernel can't do it ({hint})" if hint else "this kernel can't do it"), files.ENOENT
    )


def _cpu(directory: str, cpu: Mapping[str, Any]) -> None:
    at = "linux.resources.cpu"
    for key in ("cpus", "mems"):
        if cpu.get(key):
            put(directory, f"cpuset.{key}", cpu[key], f"{at}.{key}")
    idle, weight = cpu.get("idle"), conversions.cpu_weight(cpu.get("shares") or 0)
    if idle is not None:
        put(directory, "cpu.idle", idle, f"{at}.idle")
    if weight and idle != 1:  # an idle cgroup has no weight
        put(directory, "cpu.weight", weight, f"{at}.shares")
    _cpu_max(directory, cpu, at)


def _cpu_max(directory: str, cpu: Mapping[str, Any], at: str) -> None:
    quota, period, burst = cpu.get("quota"), cpu.get("period"), cpu.get("burst")
    burst_refused = False
    if burst is not None:
        try:
            put(directory, "cpu.max.burst", burst, f"{at}.burst")
        except Error as error:
            if error.errno == files.ENOENT and not burst:
                pass
            elif error.errno == files.EINVAL and quota:
                burst_refused = True  # above the old quota
            else:
                raise
    if quota or period:
        current = files.read_or(directory + "/cpu.max") if not (quota and period) else ""
        put(directory, "cpu.max", conversions.cpu_max(quota, period, current), f"{at}.quota")
    if burst_refused:
        put(directory, "cpu.max.burst", burst, f"{at}.burst")


def _memory(directory: str, memory: Mapping[str, Any]) -> None:
    at = "linux.resources.memory"
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    swap_max = conversions.swap_max(limit, swap)
    if memory.get("checkBeforeUpdate"):
        usage = files.number(directory + "/memory.current")
        for key, value in (("limit", limit), ("swap", swap)):
            if 0 < value < usage:
                raise Error(f"{at}.{key}: {value} is below what is in use: {usage} bytes (checkBeforeUpdate)")
    if swap_max:
        try:
            put(directory, "memory.swap.max", swap_max, f"{at}.swap", "no swap accounting")
        except Unsupported:
            # without swap accounting there is no swap to limit
            if swap_max not in ("max", "0") or not os.access(directory + "/memory.max", os.F_OK):
                raise
    if limit:
        put(directory, "memory.max", conversions.limit(limit), f"{at}.limit")
    reservation = memory.get("reservation") or 0
    if reservation:
        put(directory, "memory.low", conversions.limit(reservation), f"{at}.reservation")


def _pids(directory: str, pids: Mapping[str, Any]) -> None:
    if pids.get("limit") is not None:
        put(directory, "pids.max", conversions.pids(pids["limit"]), "linux.resources.pids.limit")


def _block(directory: str, block: Mapping[str, Any]) -> None:
    at = "linux.resources.blockIO"
    weights = [("", block.get("weight"), f"{at}.weight")]
    for index, entry in enumerate(block.get("weightDevice") or ()):
        device = f"{entry['major']}:{entry['minor']} "
        weights.append((device, entry.get("weight"), f"{at}.weightDevice[{index}]"))
    bfq = any(w for _, w, _ in weights) and os.access(directory + "/io.bfq.weight", os.F_OK)
    for device, weight, field in weights:
        if weight and bfq:
            put(directory, "io.bfq.weight", f"{device}{weight}", field)
        elif weight:
            put(directory, "io.weight", f"{device}{conversions.io_weight(weight)}", field, "no bfq and no iocost")
    for key, _, word in conversions.THROTTLES:
        for index, entry in enumerate(block.get(key) or ()):
            line = f"{entry['major']}:{entry['minor']} {word}={entry['rate']}"
            put(directory, "io.max", line, f"{at}.{key}[{index}]", "is there such a block device?")


def huge_pages(directory: str, limits: Sequence[Mapping[str, Any]]) -> None:
    """hugetlb.SIZE.max, and .rsvd.max where the kernel accounts reservations."""
    for index, entry in enumerate(limits):
        at = f"linux.resources.hugepageLimits[{index}]"
        name = f"hugetlb.{conversions.page_size(entry['pageSize'], at + '.pageSize')}"
        put(directory, f"{name}.max", entry["limit"], at, "pageSize must be one that the kernel has")
        if os.access(f"{directory}/{name}.rsvd.max", os.F_OK):
            put(directory, f"{name}.rsvd.max", entry["limit"], at)


def _rdma(directory: str, rdma: Mapping[str, Any]) -> None:
    for device, entry in rdma.items():
        put(directory, "rdma.max", conversions.rdma(device, entry), f"linux.resources.rdma.{device}")


def unified(directory: str, values: Mapping[str, str]) -> None:
    """Write what config.json says, known to us or not (config-linux.md, Unified)."""
    for key, value in values.items():
        field = f"linux.resources.unified[{key!r}]"
        if "/" in key or not key:
            raise InvalidConfig(f"{field}: is no name of a cgroup file")
        for line in value.split("\n"):
            put(directory, key, line, field)


_SECTIONS = (
    ("cpu", _cpu),
    ("pids", _pids),
    ("blockIO", _block),
    ("hugepageLimits", huge_pages),
    ("rdma", _rdma),
    ("memory", _memory),
    ("unified", unified),
)

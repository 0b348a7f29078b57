"""linux.resources as properties of a systemd unit (systemd.resource-control(5), org.freedesktop.systemd1(5)).

systemd writes what it knows of a unit again when it is reloaded; what it isn't told
it would reset to its default. So it is told all that it has a property for.
"""

from __future__ import annotations

from ocirt.cgroups import conversions
from ocirt.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.cgroups import devices

Property = tuple[str, tuple[str, object]]  # name, (signature, value)

INFINITY = (1 << 64) - 1
PREFIX = "org.systemd.property."


def _limit(value: int) -> int:
    return INFINITY if value < 0 else value


def of_resources(resources: Mapping[str, Any], *, unified: bool, version: int) -> list[Property]:
    """The properties for the limits that are set; `version` is systemd's."""
    memory, cpu = conversions.section(resources, "memory"), conversions.section(resources, "cpu")
    found: list[Property] = []
    found.extend(_memory_v2(memory) if unified else _memory_v1(memory))
    found.extend(_cpu(cpu, unified=unified, version=version))
    if unified and version >= 244:
        for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
            if cpu.get(key):
                found.append((name, ("ay", bits(cpu[key], f"linux.resources.cpu.{key}"))))
    pids = conversions.section(resources, "pids").get("limit")
    if pids is not None:
        found.append(("TasksMax", ("t", INFINITY if pids < 0 else max(pids, 1))))
    weight = conversions.section(resources, "blockIO").get("weight")
    if weight:
        found.append(
            ("IOWeight", ("t", conversions.io_weight(weight))) if unified else ("BlockIOWeight", ("t", weight))
        )
    if unified:
        found.extend(_unified(conversions.section(resources, "unified"), version))
    return found


def _memory_v1(memory: Mapping[str, Any]) -> list[Property]:
    limit = memory.get("limit")
    return [("MemoryLimit", ("t", _limit(limit)))] if limit else []


def _memory_v2(memory: Mapping[str, Any]) -> list[Property]:
    found: list[Property] = []
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit:
        found.append(("MemoryMax", ("t", _limit(limit))))
    text = conversions.swap_max(limit, swap)
    if text:
        found.append(("MemorySwapMax", ("t", INFINITY if text == "max" else int(text))))
    if memory.get("reservation"):
        found.append(("MemoryLow", ("t", _limit(memory["reservation"]))))
    return found


def _cpu(cpu: Mapping[str, Any], *, unified: bool, version: int) -> list[Property]:
    found: list[Property] = []
    shares, idle = cpu.get("shares") or 0, cpu.get("idle")
    if unified:
        weight = conversions.cpu_weight(shares)
        if idle == 1 and version >= 252:
            found.append(("CPUWeight", ("t", 0)))
        elif weight or idle == 0:
            found.append(("CPUWeight", ("t", weight or 100)))
    elif shares:
        found.append(("CPUShares", ("t", min(max(shares, 2), 262144))))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if period and version >= 242:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    if quota:
        found.append(("CPUQuotaPerSecUSec", ("t", quota_per_second(quota, period))))
    return found


def quota_per_second(quota: int, period: int) -> int:
    """µs of processor time a second; systemd keeps it in steps of 10 ms, so it is rounded up to one."""
    if quota <= 0:
        return INFINITY
    return -(-quota * 1_000_000 // (period or conversions.PERIOD) // 10_000) * 10_000


def bits(cpus: str, field: str) -> list[int]:
    """`0-3,7` as a mask, byte by byte from the lowest."""
    mask = 0
    for part in cpus.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit() and int(last) < 8192):
            raise InvalidConfig(f"{field}: {cpus!r} is no list of numbers and ranges such as 0-3,7")
        for number in range(int(first), int(last) + 1):
            mask |= 1 << number
    return list(mask.to_bytes((mask.bit_length() + 7) // 8 or 1, "little"))


#: Keys of linux.resources.unified that systemd has a property for; all are a number or `max`.
_UNIFIED = {
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}


def _unified(values: Mapping[str, str], version: int) -> list[Property]:
    found: list[Property] = []
    for key, value in values.items():
        name, text = _UNIFIED.get(key), value.strip()
        if name and (text == "max" or (text.isascii() and text.isdigit())):
            found.append((name, ("t", INFINITY if text == "max" else int(text))))
        elif key in ("cpuset.cpus", "cpuset.mems") and version >= 244 and text:
            property = "AllowedCPUs" if key == "cpuset.cpus" else "AllowedMemoryNodes"
            found.append((property, ("ay", bits(text, f"linux.resources.unified[{key!r}]"))))
        elif key == "cpu.max":
            quota, _, period = text.partition(" ")
            if (quota == "max" or quota.isdecimal()) and (not period or period.isdecimal()):
                limits = {"quota": -1 if quota == "max" else int(quota), "period": int(period or 0)}
                found.extend(_cpu(limits, unified=True, version=version))
    return found


def of_devices(rules: list[devices.Rule]) -> list[Property]:
    """The device list, for cgroup v1: there systemd writes the one it knows again on each reload."""
    from ocirt.cgroups import devices

    made = devices.List.of(rules)
    if made.allow:
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    allowed: list[tuple[str, str]] = []
    for (kind, major, minor), mask in made.exceptions.items():
        name = "char" if kind == "c" else "block"
        if major is None:
            allowed.append((f"{name}-*", devices.letters(mask)))
        elif minor is None:
            allowed.extend((f"{name}-{group}", devices.letters(mask)) for group in _groups(name, major))
        else:
            allowed.append((f"/dev/{name}/{major}:{minor}", devices.letters(mask)))
    return [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", allowed))]


def _groups(name: str, major: int) -> list[str]:
    """systemd takes a whole major by its name in /proc/devices."""
    from ocirt.cgroups import files

    section = "Character" if name == "char" else "Block"
    for block in files.read_or("/proc/devices").split("\n\n"):
        if block.startswith(section):
            return [line.split()[1] for line in block.split("\n")[1:] if line.split()[:1] == [str(major)]]
    return []


def of_annotations(annotations: Mapping[str, str]) -> list[Property]:
    """Annotations `org.systemd.property.NAME`, their value in GVariant text; raises InvalidConfig.

    A name in …Sec, as in unit files, is the D-Bus property …USec, in microseconds.
    """
    found: list[Property] = []
    for key, text in annotations.items():
        if not key.startswith(PREFIX):
            continue
        from ocirt.cgroups import gvariant

        field = f"annotations[{key!r}]"
        name = key.removeprefix(PREFIX)
        if not (name.isascii() and name.isalpha() and len(name) >= 3):
            raise InvalidConfig(f"{field}: {name!r} is no name of a systemd property")
        signature, value = gvariant.parse(text, field)
        if len(name) > 4 and name.endswith("Sec") and name[-4].islower():
            if signature not in "bnqiuxtyd" or signature == "b":
                raise InvalidConfig(f"{field}: {text!r} is no number of seconds")
            name, signature, value = name.removesuffix("Sec") + "USec", "t", int(value * 1_000_000)
            if not 0 <= value <= INFINITY:
                raise InvalidConfig(f"{field}: {text!r} is no number of seconds")
        found.append((name, (signature, value)))
    return found

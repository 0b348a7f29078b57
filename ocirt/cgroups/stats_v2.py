"""Statistics from the files of cgroup v2."""

from __future__ import annotations

import os

from ocirt.cgroups import files
from ocirt.cgroups.stats import NO_LIMIT, count, numbers, with_pressure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Words of io.stat, as blkio called them.
_BLOCK = (
    ("rbytes", "ioServiceBytesRecursive", "Read"),
    ("wbytes", "ioServiceBytesRecursive", "Write"),
    ("dbytes", "ioServiceBytesRecursive", "Discard"),
    ("rios", "ioServicedRecursive", "Read"),
    ("wios", "ioServicedRecursive", "Write"),
    ("dios", "ioServicedRecursive", "Discard"),
)


def stats(directory: str) -> dict[str, Any]:
    """See base.Cgroup.stats."""
    return {
        "cpu": with_pressure(_cpu(directory), directory + "/cpu.pressure"),
        "cpuset": {
            "cpus": numbers(files.read_or(directory + "/cpuset.cpus.effective")),
            "mems": numbers(files.read_or(directory + "/cpuset.mems.effective")),
        },
        "memory": with_pressure(_memory(directory), directory + "/memory.pressure"),
        "pids": {
            "current": files.number(directory + "/pids.current"),
            "limit": max(files.number(directory + "/pids.max"), 0),
        },
        "blkio": with_pressure(_block(directory), directory + "/io.pressure"),
        "hugetlb": huge(directory),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _cpu(directory: str) -> dict[str, Any]:
    values = files.fields(directory + "/cpu.stat")
    return {
        "usage": {
            "total": values.get("usage_usec", 0) * 1000,
            "kernel": values.get("system_usec", 0) * 1000,
            "user": values.get("user_usec", 0) * 1000,
        },
        "throttling": {
            "periods": values.get("nr_periods", 0),
            "throttledPeriods": values.get("nr_throttled", 0),
            "throttledTime": values.get("throttled_usec", 0) * 1000,
        },
    }


def _memory(directory: str) -> dict[str, Any]:
    raw = files.fields(directory + "/memory.stat")
    base = directory + "/memory."
    events = files.fields(base + "events")
    usage = {
        "limit": count(base + "max"),
        "usage": count(base + "current"),
        "max": count(base + "peak"),
        "failcnt": events.get("max", 0),
    }
    swap_limit = count(base + "swap.max") if os.access(base + "swap.max", os.F_OK) else NO_LIMIT
    # on v1, whose names these are, it is memory and swap together
    swap = {
        "limit": NO_LIMIT if NO_LIMIT in (swap_limit, usage["limit"]) else swap_limit + usage["limit"],
        "usage": count(base + "swap.current") + usage["usage"],
        "max": count(base + "swap.peak"),
        "failcnt": files.fields(base + "swap.events").get("max", 0),
    }
    return {"cache": raw.get("file", 0), "usage": usage, "swap": swap, "raw": raw}


def _block(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in files.read_or(directory + "/io.stat").split("\n"):
        device, *words = line.split() or [""]
        major, separator, minor = device.partition(":")
        if not separator or not minor.isdecimal():
            continue
        values = {word.partition("=")[0]: word.partition("=")[2] for word in words}
        for word, key, operation in _BLOCK:
            if word in values:
                entry = {"major": int(major), "minor": int(minor), "op": operation, "value": int(values[word])}
                found.setdefault(key, []).append(entry)
    return found


def page_sizes() -> list[str]:
    """The huge page sizes of the kernel: 2MB, 1GB …"""
    sizes: list[str] = []
    for name in files.subdirectories("/sys/kernel/mm/hugepages"):
        kilobytes = name.removeprefix("hugepages-").removesuffix("kB")
        if kilobytes.isdecimal():
            sizes.append(_size(int(kilobytes)))
    return sizes


def _size(kilobytes: int) -> str:
    for unit in ("KB", "MB"):
        if kilobytes < 1024 or kilobytes % 1024:
            return f"{kilobytes}{unit}"
        kilobytes //= 1024
    return f"{kilobytes}GB"


def huge(directory: str) -> dict[str, Any]:
    """hugetlb: reservations where the kernel accounts them, else usage."""
    found: dict[str, Any] = {}
    for size in page_sizes():
        base = f"{directory}/hugetlb.{size}."
        if not os.access(base + "current", os.F_OK):
            continue
        prefix = base + "rsvd." if os.access(base + "rsvd.current", os.F_OK) else base
        found[size] = {
            "usage": count(prefix + "current"),
            "failcnt": files.fields(base + "events").get("max", 0),
        }
    return found

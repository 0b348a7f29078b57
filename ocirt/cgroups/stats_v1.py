"""Statistics from the files of cgroup v1."""

from __future__ import annotations

import os

from ocirt.cgroups import files, stats_v2
from ocirt.cgroups.stats import count, numbers, with_pressure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cgroups.v1 import V1

#: What blkio calls it: our key, and the files that may have it, best first.
_BLOCK = (
    ("ioServiceBytesRecursive", "io_service_bytes_recursive"),
    ("ioServicedRecursive", "io_serviced_recursive"),
    ("ioQueueRecursive", "io_queued_recursive"),
    ("ioServiceTimeRecursive", "io_service_time_recursive"),
    ("ioWaitTimeRecursive", "io_wait_time_recursive"),
    ("ioMergedRecursive", "io_merged_recursive"),
    ("ioTimeRecursive", "time_recursive"),
    ("sectorsRecursive", "sectors_recursive"),
)
_CPUSET = (
    ("cpu_exclusive", "cpuset.cpu_exclusive"),
    ("mem_hardwall", "cpuset.mem_hardwall"),
    ("mem_exclusive", "cpuset.mem_exclusive"),
    ("memory_migrate", "cpuset.memory_migrate"),
    ("memory_spread_page", "cpuset.memory_spread_page"),
    ("memory_spread_slab", "cpuset.memory_spread_slab"),
    ("memory_pressure", "cpuset.memory_pressure"),
    ("sched_load_balance", "cpuset.sched_load_balance"),
    ("sched_relax_domain_level", "cpuset.sched_relax_domain_level"),
)


def stats(cgroup: V1) -> dict[str, Any]:
    """See base.Cgroup.stats. Pressure comes from the cgroup2 tree of a hybrid host."""
    unified = cgroup.path()
    found: dict[str, Any] = {
        "cpu": with_pressure(_cpu(cgroup), unified + "/cpu.pressure"),
        "cpuset": _cpuset(cgroup.path("cpuset")),
        "memory": with_pressure(_memory(cgroup.path("memory")), unified + "/memory.pressure"),
        "pids": _pids(cgroup.path("pids")),
        "blkio": with_pressure(_block(cgroup.path("blkio")), unified + "/io.pressure"),
        "hugetlb": _huge(cgroup),
        "intel_rdt": {},
        "network_interfaces": None,
    }
    return found


def _cpu(cgroup: V1) -> dict[str, Any]:
    directory = cgroup.path("cpuacct")
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    split = files.fields(directory + "/cpuacct.stat")
    usage: dict[str, Any] = {
        "total": files.number(directory + "/cpuacct.usage"),
        "percpu": [int(word) for word in files.read_or(directory + "/cpuacct.usage_percpu").split()],
        "kernel": split.get("system", 0) * tick,
        "user": split.get("user", 0) * tick,
    }
    rows = [line.split() for line in files.read_or(directory + "/cpuacct.usage_all").split("\n")[1:]]
    if rows:
        usage["percpu_user"] = [int(row[1]) for row in rows]
        usage["percpu_kernel"] = [int(row[2]) for row in rows]
    throttled = files.fields(cgroup.path("cpu") + "/cpu.stat")
    return {
        "usage": usage,
        "throttling": {
            "periods": throttled.get("nr_periods", 0),
            "throttledPeriods": throttled.get("nr_throttled", 0),
            "throttledTime": throttled.get("throttled_time", 0),
        },
    }


def _cpuset(directory: str) -> dict[str, Any]:
    if not directory:
        return {}
    found: dict[str, Any] = {
        "cpus": numbers(files.read_or(directory + "/cpuset.cpus")),
        "mems": numbers(files.read_or(directory + "/cpuset.mems")),
    }
    for key, name in _CPUSET:
        found[key] = files.number(f"{directory}/{name}")
    return found


def _memory(directory: str) -> dict[str, Any]:
    if not directory:
        return {}
    raw = files.fields(directory + "/memory.stat")
    found: dict[str, Any] = {"cache": raw.get("cache", 0), "raw": raw}
    for key, middle in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem."), ("kernelTCP", "kmem.tcp.")):
        base = f"{directory}/memory.{middle}"
        found[key] = {
            "limit": count(base + "limit_in_bytes"),
            "usage": count(base + "usage_in_bytes"),
            "max": count(base + "max_usage_in_bytes"),
            "failcnt": count(base + "failcnt"),
        }
    return found


def _pids(directory: str) -> dict[str, Any]:
    limit = files.number(directory + "/pids.max")
    return {"current": files.number(directory + "/pids.current"), "limit": max(limit, 0)}


def _block(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in _BLOCK:
        for scheduler in ("bfq.", "", "throttle."):
            entries = _block_entries(f"{directory}/blkio.{scheduler}{name}")
            if entries:
                found[key] = entries
                break
    return found


def _block_entries(path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in files.read_or(path).split("\n"):
        device, *words = line.split() or [""]
        major, separator, minor = device.partition(":")
        if not separator or not words:
            continue  # the total of all devices
        operation = words[0] if len(words) == 2 else ""
        found.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(words[-1])})
    return found


def _huge(cgroup: V1) -> dict[str, Any]:
    directory = cgroup.path("hugetlb")
    if not directory:
        return stats_v2.huge(cgroup.path()) if cgroup.path() else {}
    found: dict[str, Any] = {}
    for size in stats_v2.page_sizes():
        base = f"{directory}/hugetlb.{size}."
        if os.access(base + "rsvd.usage_in_bytes", os.F_OK):
            base += "rsvd."
        if os.access(base + "usage_in_bytes", os.F_OK):
            found[size] = {
                "usage": count(base + "usage_in_bytes"),
                "max": count(base + "max_usage_in_bytes"),
                "failcnt": count(base + "failcnt"),
            }
    return found

"""What a container uses, as containerd's metrics: io.containerd.cgroups.v1.Metrics and v2.Metrics.

Numbers come from the runtime's own statistics (cgroups/stats.py); memory's many are its memory.stat.
"""

from __future__ import annotations

from ocirt.cgroups import files
from ocirt.cgroups.stats import NO_LIMIT, count
from ocirt.shim import wire
from ocirt.shim.wire import DOUBLE, STRING, UINT64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cgroups.base import Cgroup
    from ocirt.shim.wire import Table

#: memory.stat of v1, in the order of the message's fields from 1 on; then each once more with its children.
_OWN_V1 = [
    "cache",
    "rss",
    "rss_huge",
    "mapped_file",
    "dirty",
    "writeback",
    "pgpgin",
    "pgpgout",
    "pgfault",
    "pgmajfault",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
]
MEMORY_V1 = (*_OWN_V1, "hierarchical_memory_limit", "hierarchical_memsw_limit", *(f"total_{key}" for key in _OWN_V1))
#: memory.stat of v2, likewise; workingset_refault and _activate are two each since Linux 5.9.
MEMORY_V2 = [
    "anon",
    "file",
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault",
    "workingset_activate",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
]

_ENTRY: Table = {1: ("limit", UINT64), 2: ("usage", UINT64), 3: ("max", UINT64), 4: ("failcnt", UINT64)}
_DEVICE: Table = {
    1: ("op", STRING),
    2: ("device", STRING),
    3: ("major", UINT64),
    4: ("minor", UINT64),
    5: ("value", UINT64),
}
_BLOCK = [
    "ioServiceBytesRecursive",
    "ioServicedRecursive",
    "ioQueueRecursive",
    "ioServiceTimeRecursive",
    "ioWaitTimeRecursive",
    "ioMergedRecursive",
    "ioTimeRecursive",
    "sectorsRecursive",
]
_PIDS: Table = {1: ("current", UINT64), 2: ("limit", UINT64)}

V1: Table = {
    1: ("hugetlb", [{1: ("usage", UINT64), 2: ("max", UINT64), 3: ("failcnt", UINT64), 4: ("pagesize", STRING)}]),
    2: ("pids", _PIDS),
    3: (
        "cpu",
        {
            1: ("usage", {1: ("total", UINT64), 2: ("kernel", UINT64), 3: ("user", UINT64), 4: ("percpu", [UINT64])}),
            2: ("throttling", {1: ("periods", UINT64), 2: ("throttledPeriods", UINT64), 3: ("throttledTime", UINT64)}),
        },
    ),
    4: (
        "memory",
        {
            **{number: (key, UINT64) for number, key in enumerate(MEMORY_V1, 1)},
            **{number: (key, _ENTRY) for number, key in enumerate(("usage", "swap", "kernel", "kernelTCP"), 33)},
        },
    ),
    5: ("blkio", {number: (key, [_DEVICE]) for number, key in enumerate(_BLOCK, 1)}),
    9: ("oom_control", {1: ("oom_kill_disable", UINT64), 2: ("under_oom", UINT64), 3: ("oom_kill", UINT64)}),
}

_PRESSURE: Table = {1: ("avg10", DOUBLE), 2: ("avg60", DOUBLE), 3: ("avg300", DOUBLE), 4: ("total", UINT64)}
_PSI: Table = {1: ("some", _PRESSURE), 2: ("full", _PRESSURE)}
_CPU_V2 = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
_USAGE_V2 = ("usage", "usage_limit", "swap_usage", "swap_limit", "max_usage", "swap_max_usage")
_EVENTS = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
_IO = ("major", "minor", "rbytes", "wbytes", "rios", "wios")

V2: Table = {
    1: ("pids", _PIDS),
    2: (
        "cpu",
        {
            **{number: (key, UINT64) for number, key in enumerate(_CPU_V2, 1)},
            7: ("psi", _PSI),
            8: ("nr_bursts", UINT64),
            9: ("burst_usec", UINT64),
        },
    ),
    4: (
        "memory",
        {
            **{number: (key, UINT64) for number, key in enumerate(MEMORY_V2, 1)},
            **{number: (key, UINT64) for number, key in enumerate(_USAGE_V2, 32)},
            38: ("psi", _PSI),
        },
    ),
    6: ("io", {1: ("usage", [{number: (key, UINT64) for number, key in enumerate(_IO, 1)}]), 2: ("psi", _PSI)}),
    7: ("hugetlb", [{1: ("current", UINT64), 2: ("max", UINT64), 3: ("pagesize", STRING), 4: ("failcnt", UINT64)}]),
    8: ("memory_events", {number: (key, UINT64) for number, key in enumerate(_EVENTS, 1)}),
}


def of(cgroup: Cgroup) -> dict[str, Any]:
    """The metrics as a google.protobuf.Any."""
    unified = cgroup.path()
    if unified and cgroup.path("cpuacct") == unified:
        return {"type_url": "io.containerd.cgroups.v2.Metrics", "value": wire.encode(V2, _v2(cgroup, unified))}
    return {"type_url": "io.containerd.cgroups.v1.Metrics", "value": wire.encode(V1, _v1(cgroup))}


def _v1(cgroup: Cgroup) -> dict[str, Any]:
    stats = cgroup.stats()
    memory: dict[str, Any] = {}
    if stats["memory"]:
        raw = stats["memory"]["raw"]
        memory = {key: raw[key] for key in MEMORY_V1 if key in raw}
        memory.update({key: stats["memory"][key] for key in ("usage", "swap", "kernel", "kernelTCP")})
    usage = stats["cpu"]["usage"]
    return {
        "hugetlb": [{"pagesize": size, **values} for size, values in stats["hugetlb"].items()],
        "pids": stats["pids"],
        "cpu": {
            "usage": {key: usage[key] for key in ("total", "kernel", "user", "percpu")},
            "throttling": stats["cpu"]["throttling"],
        },
        "memory": memory,
        "blkio": {key: stats["blkio"].get(key, []) for key in _BLOCK},
        "oom_control": _known(files.fields(cgroup.path("memory") + "/memory.oom_control"), V1[9][1]),
    }


def _known(values: dict[str, int], table: Table) -> dict[str, int]:
    """What the table has of the values."""
    names = {name for name, _ in table.values()}
    return {key: value for key, value in values.items() if key in names}


def _v2(cgroup: Cgroup, directory: str) -> dict[str, Any]:
    stats = cgroup.stats()
    raw = stats["memory"]["raw"]
    memory: dict[str, Any] = {key: raw[key] for key in MEMORY_V2 if key in raw}
    for key in ("workingset_refault", "workingset_activate"):
        memory.setdefault(key, raw.get(key + "_anon", 0) + raw.get(key + "_file", 0))
    base = f"{directory}/memory."
    memory["usage"], memory["usage_limit"] = count(base + "current"), count(base + "max")
    memory["swap_usage"], memory["swap_limit"] = count(base + "swap.current"), count(base + "swap.max")
    memory["max_usage"], memory["swap_max_usage"] = count(base + "peak"), count(base + "swap.peak")
    return {
        "pids": stats["pids"],
        "cpu": _with_psi(_known(files.fields(f"{directory}/cpu.stat"), V2[2][1]), stats["cpu"]),
        "memory": _with_psi(memory, stats["memory"]),
        "io": _with_psi({"usage": _io(f"{directory}/io.stat")}, stats["blkio"]),
        "hugetlb": [
            {
                "pagesize": size,
                "current": values["usage"],
                "max": values.get("max", NO_LIMIT),
                "failcnt": values["failcnt"],
            }
            for size, values in stats["hugetlb"].items()
        ],
        "memory_events": _known(files.fields(base + "events"), V2[8][1]),
    }


def _with_psi(values: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "psi" in part:
        values["psi"] = part["psi"]
    return values


def _io(path: str) -> list[dict[str, int]]:
    """The devices of io.stat: `8:0 rbytes=1 wbytes=2 …`."""
    found: list[dict[str, int]] = []
    for line in files.read_or(path).splitlines():
        device, *words = line.split() or [""]
        major, colon, minor = device.partition(":")
        if colon and major.isdecimal() and minor.isdecimal():
            entry = {"major": int(major), "minor": int(minor)}
            pairs = (word.partition("=") for word in words)
            entry.update({key: int(value) for key, _, value in pairs if key in _IO and value.isdecimal()})
            found.append(entry)
    return found

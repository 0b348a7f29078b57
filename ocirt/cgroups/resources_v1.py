"""linux.resources on cgroup v1: which value goes to which file, in which order (cgroup-v1/*.rst)."""

from __future__ import annotations

import posix as os

from ocirt.cgroups import conversions, files
from ocirt.errors import Error, InvalidConfig, Unsupported, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ocirt.cgroups.v1 import V1

#: Fields that are one number in one file: (section, key, controller, file).
PLAIN = (
    ("cpu", "cpus", "cpuset", "cpuset.cpus"),
    ("cpu", "mems", "cpuset", "cpuset.mems"),
    ("network", "classID", "net_cls", "net_cls.classid"),
    ("memory", "reservation", "memory", "memory.soft_limit_in_bytes"),
    ("memory", "kernelTCP", "memory", "memory.kmem.tcp.limit_in_bytes"),
    ("memory", "swappiness", "memory", "memory.swappiness"),
    ("memory", "disableOOMKiller", "memory", "memory.oom_control"),
    ("memory", "useHierarchy", "memory", "memory.use_hierarchy"),
)
#: Of these, where 0 is a value and not "not set".
ZERO_COUNTS = ("swappiness",)


def apply(cgroup: V1, resources: Mapping[str, Any], current: Mapping[str, Any] | None = None) -> None:
    """Write the limits. `current` is what was applied before: then this is an update.

    Memory comes last: what starts the container is charged against its limit only from then on.
    """
    if current is None or "devices" in resources:
        _devices(cgroup, resources, current)
    for section, function in _SECTIONS:
        part = resources.get(section)
        if not part:
            continue
        try:
            function(cgroup, part)
        except Error as error:
            if current is None and section == "memory" and error.errno == files.EBUSY:
                from ocirt.cgroups.base import too_small

                error.note(too_small(part["limit"], cgroup.memory_peak()[1]))  # it is init that uses it
            raise


class Directory:
    """Writes the files of one controller; each error names the field of config.json."""

    __slots__ = ("_path", "controller")

    def __init__(self, cgroup: V1, controller: str, field: str) -> None:
        self.controller = controller
        self._path = cgroup.path(controller)
        if not self._path:
            raise Unsupported(f"{field}: no cgroup hierarchy has the {controller} controller")

    def file(self, name: str) -> str:
        """The file's path."""
        return f"{self._path}/{name}"

    def has(self, name: str) -> bool:
        """Does this kernel have the file?"""
        return os.access(self.file(name), os.F_OK)

    def put(self, name: str, value: object, field: str, hint: str = "") -> None:
        """Write; raises Error with the field in front."""
        try:
            files.put(self.file(name), str(value))
        except OSError as error:
            if error.errno == files.ENOENT:
                reason = f"{field}: {self.file(name)} doesn't exist: this kernel can't do it"
                raise Unsupported(f"{reason} ({hint})" if hint else reason, files.ENOENT) from error
            with doing(field):
                raise files.failed(self.file(name), str(value), error, hint) from error


def _cpu(cgroup: V1, cpu: Mapping[str, Any]) -> None:
    _plain(cgroup, "cpu", cpu)
    if not any(cpu.get(key) for key in _CPU_KEYS) and cpu.get("idle") is None:
        return
    where = Directory(cgroup, "cpu", "linux.resources.cpu")
    idle = cpu.get("idle")
    if idle == 0:
        where.put("cpu.idle", 0, "linux.resources.cpu.idle")
    if cpu.get("shares") and idle != 1:
        hint = "the cgroup is idle: set idle to 0 first" if files.read_or(where.file("cpu.idle")) == "1" else ""
        where.put("cpu.shares", cpu["shares"], "linux.resources.cpu.shares", hint)
    if idle not in (None, 0):
        where.put("cpu.idle", idle, "linux.resources.cpu.idle")
    quota = cpu.get("quota")
    fair = [
        ("cpu.cfs_period_us", cpu.get("period"), "period"),
        ("cpu.cfs_burst_us", cpu.get("burst"), "burst"),
        ("cpu.cfs_quota_us", max(quota, -1) if quota else None, "quota"),
    ]
    _mutually_dependent(where, fair)
    realtime = [
        ("cpu.rt_period_us", cpu.get("realtimePeriod"), "realtimePeriod"),
        ("cpu.rt_runtime_us", cpu.get("realtimeRuntime"), "realtimeRuntime"),
    ]
    _mutually_dependent(where, realtime)


_CPU_KEYS = ("shares", "quota", "period", "burst", "realtimePeriod", "realtimeRuntime")


def _mutually_dependent(where: Directory, values: list[tuple[str, int | None, str]]) -> None:
    """Write files whose kernel checks depend on each other's value (quota ≥ burst, quota/period ≤ the parent's).

    What is refused with EINVAL is tried again after the others.
    """
    pending = [v for v in values if v[1] is not None and (v[1] or v[2] == "burst")]
    while pending:
        refused: list[tuple[str, int | None, str]] = []
        first: Error | None = None
        for item in pending:
            name, value, key = item
            try:
                where.put(name, value, f"linux.resources.cpu.{key}")
            except Error as error:
                if error.errno == files.ENOENT and key == "burst" and not value:
                    continue
                if error.errno != files.EINVAL:
                    raise
                first = first or error
                refused.append(item)
        if first is not None and len(refused) == len(pending):
            raise first
        pending = refused


def _memory(cgroup: V1, memory: Mapping[str, Any]) -> None:
    _plain(cgroup, "memory", memory)
    if memory.get("kernel"):
        from ocirt import log

        log.warning("linux.resources.memory.kernel is ignored: the kernel took this limit away in Linux 5.16")
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if not limit and not swap:
        return
    where = Directory(cgroup, "memory", "linux.resources.memory")
    if limit < 0 and not swap and where.has("memory.memsw.limit_in_bytes"):
        swap = -1
    if limit > 0 and 0 < swap < limit:
        conversions.swap_max(limit, swap)  # raises
    steps = [("memory.limit_in_bytes", limit, "limit"), ("memory.memsw.limit_in_bytes", swap, "swap")]
    if limit and swap:
        now = files.number(where.file("memory.limit_in_bytes"))
        if swap < 0 or now < swap:
            # memory must never be above memory and swap together: grow the sum first, shrink it last
            steps.reverse()
    for name, value, key in steps:
        if value:
            _put_memory(where, name, value, key)


def _put_memory(where: Directory, name: str, value: int, key: str) -> None:
    field = f"linux.resources.memory.{key}"
    try:
        where.put(name, max(value, -1), field, "" if key == "limit" else "swap accounting is off: swapaccount=1")
    except Error as error:
        if error.errno != files.EBUSY:
            raise
        usage = files.number(where.file("memory.usage_in_bytes"))
        peak = files.number(where.file("memory.max_usage_in_bytes"))
        raise Error(
            f"{field}: {value} is below what is in use: {usage} bytes now, {peak} at most: no more can be reclaimed",
            files.EBUSY,
        ) from error


def _pids(cgroup: V1, pids: Mapping[str, Any]) -> None:
    limit = pids.get("limit")
    if limit is not None:
        where = Directory(cgroup, "pids", "linux.resources.pids.limit")
        where.put("pids.max", conversions.pids(limit), "linux.resources.pids.limit")


def _block(cgroup: V1, block: Mapping[str, Any]) -> None:
    field = "linux.resources.blockIO"
    where = Directory(cgroup, "blkio", field)
    bfq = "bfq." if where.has("blkio.bfq.weight") else ""
    scheduler = "no scheduler with weights: load bfq"
    if block.get("weight"):
        where.put(f"blkio.{bfq}weight", block["weight"], f"{field}.weight", scheduler)
    if block.get("leafWeight"):
        where.put("blkio.leaf_weight", block["leafWeight"], f"{field}.leafWeight", "CFQ left Linux in 5.0")
    for index, entry in enumerate(block.get("weightDevice") or ()):
        device, at = f"{entry['major']}:{entry['minor']}", f"{field}.weightDevice[{index}]"
        if entry.get("weight"):
            where.put(f"blkio.{bfq}weight_device", f"{device} {entry['weight']}", at, scheduler)
        if entry.get("leafWeight"):
            where.put("blkio.leaf_weight_device", f"{device} {entry['leafWeight']}", at, "CFQ left Linux in 5.0")
    for key, name, _ in conversions.THROTTLES:
        for index, entry in enumerate(block.get(key) or ()):
            line = f"{entry['major']}:{entry['minor']} {entry['rate']}"
            where.put(name, line, f"{field}.{key}[{index}]", "is there such a block device?")


def _huge_pages(cgroup: V1, limits: Sequence[Mapping[str, Any]]) -> None:
    field = "linux.resources.hugepageLimits"
    if not cgroup.path("hugetlb"):
        from ocirt.cgroups import hybrid

        hybrid.huge_pages(cgroup, limits, field)
        return
    where = Directory(cgroup, "hugetlb", field)
    for index, entry in enumerate(limits):
        at = f"{field}[{index}]"
        name = f"hugetlb.{conversions.page_size(entry['pageSize'], at + '.pageSize')}"
        where.put(f"{name}.limit_in_bytes", entry["limit"], at, "pageSize must be one that the kernel has")
        if where.has(f"{name}.rsvd.limit_in_bytes"):
            where.put(f"{name}.rsvd.limit_in_bytes", entry["limit"], at)


def _network(cgroup: V1, network: Mapping[str, Any]) -> None:
    _plain(cgroup, "network", network)
    field = "linux.resources.network.priorities"
    for index, entry in enumerate(network.get("priorities") or ()):
        where = Directory(cgroup, "net_prio", field)
        line = f"{entry['name']} {entry['priority']}"
        where.put("net_prio.ifpriomap", line, f"{field}[{index}]", "is there such an interface?")


def _rdma(cgroup: V1, rdma: Mapping[str, Any]) -> None:
    for device, entry in rdma.items():
        field = f"linux.resources.rdma.{device}"
        Directory(cgroup, "rdma", field).put("rdma.max", conversions.rdma(device, entry), field)


def _unified(cgroup: V1, unified: Mapping[str, str]) -> None:
    from ocirt.cgroups import hybrid

    hybrid.unified(cgroup, unified)


def _plain(cgroup: V1, section: str, part: Mapping[str, Any]) -> None:
    for of, key, controller, name in PLAIN:
        value = part.get(key) if of == section else None
        if value is None or (not value and key not in ZERO_COUNTS):
            continue
        field = f"linux.resources.{section}.{key}"
        if key == "swappiness" and value > 100:
            raise InvalidConfig(f"{field}: {value} is not between 0 and 100")
        if isinstance(value, int):
            value = max(int(value), -1)
        Directory(cgroup, controller, field).put(name, value, field)


def _devices(cgroup: V1, resources: Mapping[str, Any], current: Mapping[str, Any] | None) -> None:
    from ocirt.cgroups import devices

    new = devices.List.of(devices.rules(resources.get("devices")))
    directory = cgroup.path("devices")
    if not directory:
        if cgroup.optional:
            return  # without privilege the kernel lets nobody make a device
        raise Unsupported("linux.resources.devices: no cgroup hierarchy has the devices controller")
    old = devices.List()
    old.allow = not new.allow  # create: say `a` first, whatever the parent handed down
    if current is not None:
        old = devices.List.parse(files.read_or(directory + "/devices.list"))
        if old.allow:
            # the file doesn't show what is denied
            old = devices.List.of(devices.rules(current.get("devices")))
    opening = current is not None and new.allow and not old.allow and not cgroup.frozen()
    if opening:
        cgroup.freeze()
    try:
        for name, line in old.transition(new):
            files.write(f"{directory}/{name}", line)
    finally:
        if opening:
            cgroup.thaw()


_SECTIONS = (
    ("cpu", _cpu),
    ("pids", _pids),
    ("blockIO", _block),
    ("network", _network),
    ("rdma", _rdma),
    ("hugepageLimits", _huge_pages),
    ("unified", _unified),
    ("memory", _memory),
)

"""Values of linux.resources as the kernel's files want them: pure functions, no file touched.

In config.json a limit of -1 is "no limit" and 0 is "not set", as engines write it.
"""

from __future__ import annotations

from ocirt.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: What a section that config.json doesn't have is.
NOTHING: Mapping[str, Any] = {}


def section(resources: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of linux.resources, empty if it isn't there."""
    return resources.get(key) or NOTHING


PERIOD = 100_000  # µs, the kernel's default of cpu.max


def limit(value: int) -> str:
    """A number of cgroup v2: negative is `max`."""
    return "max" if value < 0 else str(value)


def pids(value: int) -> str:
    """pids.max. 0 becomes 1: the container's first process is there already, a second is refused by both."""
    return "max" if value < 0 else str(max(value, 1))


def cpu_weight(shares: int) -> int:
    """cpu.shares (2…262144, default 1024) as cpu.weight (1…10000, default 100); 0 stays 0: not set.

    A quadratic through (2, 1), (1024, 100) and (262144, 10000) on logarithmic scales: the
    linear formula used until 2025 gave a default container a 2.5 times smaller weight than
    any other process.
    """
    if shares <= 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    from math import ceil, log2

    binary = log2(shares)
    exponent = (binary * binary + 125 * binary) / 612 - 7 / 34
    # the subtrahend is far below 1/10000 of a step, and above what rounding adds at the exact points
    return ceil(10**exponent - 1e-9)


def io_weight(weight: int) -> int:
    """blkio.weight (10…1000) as io.weight (1…10000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_max(memory: int, swap: int) -> str:
    """memory.swap.max from limit and swap; config.json's swap is memory and swap together.

    "" is "not to be written". Raises InvalidConfig if there is a swap limit without
    a memory limit, or one below it.
    """
    if memory < 0 and swap == 0:
        return "max"  # unlimited memory without a word about swap: unlimited swap
    if swap == 0:
        return ""
    if swap < 0:
        return "max"
    if memory < 0:
        return str(swap)
    if memory == 0:
        raise InvalidConfig("linux.resources.memory.swap: unable to set swap limit without memory limit")
    if swap < memory:
        raise InvalidConfig(
            f"linux.resources.memory.swap: {swap} is memory and swap together: must not be below limit, {memory}"
        )
    return str(swap - memory)


def cpu_max(quota: int | None, period: int | None, current: str = "") -> str:
    """cpu.max; `current` is what the file says, for a period without a quota. "" is "not to be written"."""
    if not quota and not period:
        return ""
    if not quota:
        # only the period: the quota stays
        return f"{current.partition(' ')[0] or 'max'} {period}"
    text = str(quota) if quota > 0 else "max"
    return f"{text} {period or current.partition(' ')[2] or PERIOD}"


def rdma(device: str, entry: Mapping[str, Any]) -> str:
    """A line of rdma.max."""
    values = [device]
    for key, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
        if entry.get(key) is not None:
            values.append(f"{name}={entry[key]}")
    return " ".join(values)


def page_size(size: str, field: str) -> str:
    """A huge page size such as `2MB`, as it stands in file names; raises InvalidConfig."""
    number, unit = size.rstrip("KMGB"), size.lstrip("0123456789")
    if not number.isdecimal() or unit not in ("KB", "MB", "GB"):
        raise InvalidConfig(f"{field}: {size!r} is no huge page size; the form is 64KB, 2MB or 1GB")
    return size


#: linux.resources.blockIO: the four throttles, their v1 file and their word in io.max.
THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)

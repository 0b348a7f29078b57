"""ocirt update"""

from __future__ import annotations

import os

from ocirt import log, operations
from ocirt.bundle import parse_json
from ocirt.commands import Options, runtime
from ocirt.errors import InvalidConfig, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SIZE, NUMBER, TEXT = "size", "number", "text"
#: option, section of linux.resources, key, what the value is
OPTIONS = (
    ("memory", "memory", "limit", SIZE),
    ("memory_reservation", "memory", "reservation", SIZE),
    ("memory_swap", "memory", "swap", SIZE),
    ("cpu_period", "cpu", "period", NUMBER),
    ("cpu_quota", "cpu", "quota", NUMBER),
    ("cpu_burst", "cpu", "burst", NUMBER),
    ("cpu_share", "cpu", "shares", NUMBER),
    ("cpu_rt_period", "cpu", "realtimePeriod", NUMBER),
    ("cpu_rt_runtime", "cpu", "realtimeRuntime", NUMBER),
    ("cpu_idle", "cpu", "idle", NUMBER),
    ("cpuset_cpus", "cpu", "cpus", TEXT),
    ("cpuset_mems", "cpu", "mems", TEXT),
    ("pids_limit", "pids", "limit", NUMBER),
    ("blkio_weight", "blockIO", "weight", NUMBER),
)
#: The keys of linux.resources.
KEYS = ("blockIO", "cpu", "devices", "hugepageLimits", "memory", "network", "pids", "rdma", "unified")
GONE = ("kernel_memory", "kernel_memory_tcp")


def run(options: Options) -> int:
    """Change a container's resource limits; a file of them stands alone, as with runc."""
    rt = runtime(options)
    if options.resources:
        resources = from_file(options.resources)
    else:
        resources = from_options(options)
    rdt = {
        key: text
        for key, text in (("l3CacheSchema", options.l3_cache_schema), ("memBwSchema", options.mem_bw_schema))
        if text
    }
    if any(getattr(options, name, None) for name in GONE):
        log.warning("--kernel-memory and --kernel-memory-tcp are ignored: kernels don't limit them apart any more")
    operations.update(rt, options.id, resources, rdt)
    return 0


def from_file(name: str) -> Mapping[str, Any]:
    """The JSON object in a file, - is stdin; raises InvalidConfig or Error."""
    with doing(f"read the resources from {'stdin' if name == '-' else name}"):
        fd = os.dup(0) if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while part := os.read(fd, 1 << 16):
                data += part
        finally:
            os.close(fd)
        value: Any = parse_json(data, "stdin" if name == "-" else name)
        if not isinstance(value, dict):
            raise InvalidConfig("the resources must be a JSON object, as linux.resources in config.json")
        found: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        if found and not any(key in KEYS for key in found):
            # nothing would be changed, and nobody would be told
            wanted = ".linux.resources" if "linux" in found else ".resources" if "resources" in found else ""
            hint = (
                f"give what it has as {wanted}, for example by `jq {wanted}`"
                if wanted
                else f"those are {', '.join(KEYS)}"
            )
            raise InvalidConfig(f"no key of it is one of linux.resources in config.json ({hint})")
        return found


def from_options(options: Options) -> dict[str, dict[str, int | str]]:
    """linux.resources made of the options that were given."""
    resources: dict[str, dict[str, int | str]] = {}
    for name, section, key, kind in OPTIONS:
        text: str | None = getattr(options, name)
        if text is None or text == "":
            continue
        flag = "--" + name.replace("_", "-")
        value: int | str = text
        if kind == SIZE:
            value = operations.size(text, flag)
        elif kind == NUMBER:
            value = number(text, flag)
        resources.setdefault(section, {})[key] = value
    return resources


def number(text: str, flag: str) -> int:
    """A whole number; int() alone takes `1_0`, ` 1` and digits of every script."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 21):
        raise InvalidConfig(f"{flag}: {text!r} is no whole number")
    return int(text)

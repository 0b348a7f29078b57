"""Rules about cgroup resources."""

from __future__ import annotations

from ocirt.validation.found import key as at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ocirt.spec import Config, Resources
    from ocirt.validation.found import Found, Rule

_PATH = "linux.resources"
_WEIGHTS: tuple[Literal["weight"], Literal["leafWeight"]] = ("weight", "leafWeight")
_NUMBERS: tuple[Literal["major"], Literal["minor"]] = ("major", "minor")


def _resources(config: Config) -> Resources:
    return (config.get("linux") or {}).get("resources") or {}


def swap_has_limit(config: Config, found: Found) -> None:
    """swap is memory plus swap: it can only be set together with a memory limit.

    (An update may set it alone: the limit is there already.)
    [config-linux.md, Memory]
    """
    memory = _resources(config).get("memory") or {}
    if memory.get("swap", 0) > 0 and not memory.get("limit"):
        hint = "swap is the sum of memory and swap"
        found.error(f"{_PATH}.memory.swap", "unable to set swap limit without memory limit", memory.get("swap"), hint)


def swap_covers_limit(config: Config, found: Found) -> None:
    """swap is memory plus swap, so it can't be less than the memory limit.

    [config-linux.md, Memory]
    """
    memory = _resources(config).get("memory") or {}
    swap, limit = memory.get("swap", 0), memory.get("limit", 0)
    if swap > 0 and limit > 0 and swap < limit:
        hint = "swap is the sum of memory and swap"
        found.error(f"{_PATH}.memory.swap", f"must not be less than the memory limit {limit}", swap, hint)


def cpu(config: Config, found: Found) -> None:
    """burst "MUST be no larger than any positive quota"; the kernel takes periods of 1 ms to 1 s, quotas from 1 ms.

    [config-linux.md, CPU]
    """
    given = _resources(config).get("cpu")
    if not given:
        return
    path, quota, period = f"{_PATH}.cpu", given.get("quota", 0), given.get("period", 0)
    if 0 < quota < given.get("burst", 0):
        found.error(f"{path}.burst", f"must not be more than quota, which is {quota}", given.get("burst"))
    if 0 < quota < 1000:
        found.error(f"{path}.quota", "must be at least 1000 (microseconds), or -1 for no limit", quota)
    if period and not 1000 <= period <= 1000000:
        found.error(f"{path}.period", "must be from 1000 to 1000000 (microseconds)", period)
    if "cpus" in given or "mems" in given:
        from ocirt.validation.lists import check

        check(given.get("cpus"), f"{path}.cpus", found)
        check(given.get("mems"), f"{path}.mems", found, "list of memory nodes")


def block_io(config: Config, found: Found) -> None:
    """Weights go up to 1000; 0 is none.

    [config-linux.md, Block IO]
    """
    given = _resources(config).get("blockIO")
    if not given:
        return
    for key in _WEIGHTS:
        if given.get(key, 0) > 1000:
            found.error(f"{_PATH}.blockIO.{key}", "must be from 10 to 1000", given.get(key))
        for index, device in enumerate(given.get("weightDevice") or ()):
            if device.get(key, 0) > 1000:
                path = f"{_PATH}.blockIO.weightDevice[{index}].{key}"
                found.error(path, "must be from 10 to 1000", device.get(key))


def device_rules(config: Config, found: Found) -> None:
    """Device numbers aren't negative; -1 is what tools write for "all".

    [config-linux.md, Allowed Device list]
    """
    for index, rule in enumerate(_resources(config).get("devices") or ()):
        for key in _NUMBERS:
            if rule.get(key, 0) < -1:
                found.error(f"{_PATH}.devices[{index}].{key}", "must be a device number, or -1 for all", rule.get(key))


def unified(config: Config, found: Found) -> None:
    """ "Each key in the map refers to a file in the cgroup unified hierarchy": a name, not a path out of the cgroup.

    [config-linux.md, Unified]
    """
    for key in _resources(config).get("unified") or ():
        if "/" in key or key in (".", ".."):
            found.error(at(f"{_PATH}.unified", key), "must be a file name (no slashes)")


#: For the input of an update as well.
RULES: tuple[Rule, ...] = (swap_covers_limit, cpu, block_io, device_rules, unified)
#: Only where nothing is set yet.
FIRST: tuple[Rule, ...] = (swap_has_limit,)

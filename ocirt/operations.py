"""Operations on a container that runs: pause, resume, ps, update, statistics and events.

The specification leaves them to the runtime; engines expect runc's.
"""

from __future__ import annotations

import time

from ocirt import cgroups, log
from ocirt.cgroups.conversions import section
from ocirt.container import CREATING, PAUSED, STOPPED, Container
from ocirt.errors import Error, InvalidConfig, WrongState, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ocirt.cgroups.base import Cgroup
    from ocirt.lifecycle import Runtime

#: Where 0 is a value; elsewhere it is how engines write "leave it".
ZEROS = (("cpu", "idle"), ("cpu", "burst"), ("memory", "swappiness"), ("pids", "limit"))
#: Sections of linux.resources whose new keys join the old ones; the others are lists, and are replaced.
MERGED = ("memory", "cpu", "pids", "blockIO", "network", "rdma", "unified")


def _load(runtime: Runtime, id: str, verb: str, *, lock: bool = False) -> tuple[Container, str]:
    """The container and its status, if there is a process to do something with; else WrongState."""
    container = Container.load(runtime.root, id, lock=lock)
    status = container.status()
    if status in (STOPPED, CREATING):
        raise WrongState(f"cannot {verb} container {id}: it is {status}")
    return container, status


def _cgroup(container: Container) -> Cgroup:
    return cgroups.load(container.record.get("cgroup") or {"manager": "disabled"})


def pause(runtime: Runtime, id: str) -> None:
    """Freeze all processes, and come back when they stand still. WrongState if it is paused or doesn't run."""
    container, status = _load(runtime, id, "pause", lock=True)
    if status == PAUSED:
        raise WrongState(f"cannot pause container {id}: it is paused already")
    log.step("freeze the processes")
    with doing(f"pause container {id}"):
        _cgroup(container).freeze()


def resume(runtime: Runtime, id: str) -> None:
    """Thaw a paused container; WrongState if it isn't one."""
    container, status = _load(runtime, id, "resume", lock=True)
    if status != PAUSED:
        raise WrongState(f"cannot resume container {id}: container not paused, it is {status}")
    log.step("thaw the processes")
    with doing(f"resume container {id}"):
        _cgroup(container).thaw()


def pids(runtime: Runtime, id: str) -> list[int]:
    """The pids of the container's processes, as the runtime's pid namespace numbers them; [] once it has stopped."""
    container = Container.load(runtime.root, id)
    found = _cgroup(container).pids()
    if not found and container.alive():
        found = [container.pid]  # cgroups are disabled
    return sorted(found)


def stats(runtime: Runtime, id: str) -> dict[str, Any]:
    """Usage and limits now, in the shape of runc's `events --stats` (`data`)."""
    container, _ = _load(runtime, id, "read the statistics of")
    found = _cgroup(container).stats()
    if container.record.get("intelRdt"):
        from ocirt.cgroups import intelrdt

        found["intel_rdt"] = intelrdt.stats(container.record["intelRdt"])
    return found


def events(runtime: Runtime, id: str, interval: float) -> Iterator[dict[str, Any]]:
    """Yield {"type": "stats" | "oom", "id": …, "data": …} until the container ends.

    stats every `interval` seconds; oom when the OOM killer has taken a process. The kernel tells
    both this and the end of the container; nothing is polled.
    """
    if interval <= 0:
        raise InvalidConfig(f"--interval: {interval:g} s must be greater than 0")
    container, _ = _load(runtime, id, "watch")
    cgroup = _cgroup(container)
    from ocirt.cgroups.oom import Watch

    with Watch(container.pid, cgroup) as watch:
        following = time.monotonic() + interval
        while True:
            what = watch.wait(max(0.0, following - time.monotonic()))
            if what == "end":
                return
            if what == "oom":
                yield {"type": "oom", "id": id}
            else:
                following += interval
                yield {"type": "stats", "id": id, "data": cgroup.stats()}


def update(runtime: Runtime, id: str, resources: Mapping[str, Any], rdt: Mapping[str, str] | None = None) -> None:
    """Change limits: what is given changes, the rest stays.

    resources  as linux.resources of config.json; 0 is "leave it"
    rdt        l3CacheSchema and memBwSchema, for a container with linux.intelRdt

    Raises WrongState, InvalidConfig or Error. On an error the limits that had been
    set before are set again.
    """
    from ocirt import validation

    container, _ = _load(runtime, id, "update", lock=True)
    log.step("validate the limits")
    with doing(f"update container {id}"):
        validation.check_resources(resources)  # type: ignore[arg-type]
        current: Mapping[str, Any] = container.record.get("resources") or _configured(container)
        merged = merge(current, resources)
        cgroup = _cgroup(container)
        log.step("change the limits")
        try:
            cgroup.update(_complete(resources, merged), current)
        except Error as error:
            _restore(cgroup, resources, current, merged, error)
            raise
        if rdt:
            _update_rdt(container, rdt)
        log.step("write down the limits")
        container.record["resources"] = merged
        container.save()


def _configured(container: Container) -> Mapping[str, Any]:
    return section(section(container.config(), "linux"), "resources")


def merge(current: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """linux.resources after an update: values that are set replace the old ones, 0 and absence don't."""
    merged = dict(current)
    for name, part in new.items():
        if name in MERGED and part:
            given = {key: value for key, value in part.items() if value not in (0, "", None) or (name, key) in ZEROS}
            merged[name] = {**section(current, name), **given}
        elif part or name == "devices":
            merged[name] = part
    return merged


def _complete(new: Mapping[str, Any], merged: Mapping[str, Any]) -> dict[str, Any]:
    """What to write: memory and swap are checked against each other by the kernel, so both are said."""
    wanted = dict(new)
    memory = new.get("memory")
    if memory and (memory.get("limit") or memory.get("swap")):
        both = {key: merged["memory"][key] for key in ("limit", "swap") if merged["memory"].get(key)}
        if memory.get("limit") == -1 and not memory.get("swap"):
            both.pop("swap", None)  # no limit of memory is no limit of swap
        wanted["memory"] = {**memory, **both}
    return wanted


def _restore(
    cgroup: Cgroup,
    new: Mapping[str, Any],
    current: Mapping[str, Any],
    merged: Mapping[str, Any],
    error: Error,
) -> None:
    """Write what was there before over what an update has changed before it failed."""
    old = {name: current[name] for name in new if current.get(name)}
    if "devices" in new:
        old["devices"] = current.get("devices") or []
    try:
        if old:
            cgroup.update(old, merged)
    except Error as failure:
        error.note(f"while restoring the limits: {failure}")


def _update_rdt(container: Container, rdt: Mapping[str, str]) -> None:
    from ocirt.cgroups import intelrdt

    record = container.record.get("intelRdt")
    if not record:
        raise InvalidConfig("Intel RDT: the container's config.json has no linux.intelRdt")
    intelrdt.update(rdt, record)


def size(text: str, option: str) -> int:
    """A number of bytes with a unit (`512m`, `2GiB`, `-1`); raises InvalidConfig. Units are powers of 1024."""
    lowered = text.strip().lower()
    stem = lowered.removesuffix("b").removesuffix("i") if lowered[-1:] == "b" else lowered
    power = " kmgtp".find(stem[-1:]) if stem[-1:] else -1
    number = stem[:-1] if power > 0 else stem
    if number.startswith("-"):
        if number == "-1" and power <= 0:
            return -1
    elif number.isascii() and number.isdigit():
        return int(number) << 10 * max(power, 0)
    elif power > 0:
        whole, point, part = number.partition(".")
        if point and (whole + part).isascii() and whole.isdigit() and part.isdigit():
            return (int(whole + part) << 10 * power) // int("1" + "0" * len(part))
    raise InvalidConfig(f"{option}: {text!r} is no number of bytes (a number with k, m, g or t, or -1)")


def seconds(text: str, option: str) -> float:
    """A duration as Go writes it (`5s`, `1m30s`, `100ms`); raises InvalidConfig."""
    units = {"ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, at = 0.0, 0
    while at < len(text):
        start = at
        while at < len(text) and (text[at] == "." or (text[at].isascii() and text[at].isdigit())):
            at += 1
        number, unit_start = text[start:at], at
        while at < len(text) and text[at].isalpha():
            at += 1
        unit = text[unit_start:at]
        if unit not in units or number.count(".") > 1 or not number.strip("."):
            break
        total += float(number) * units[unit]
    else:
        if text:
            return total
    raise InvalidConfig(f"{option}: {text!r} is no duration (5s, 1m30s, 100ms)")

"""Intel RDT: the container's class of service in a resctrl file system (resctrl.rst; config-linux.md, IntelRdt)."""

from __future__ import annotations

import os

from ocirt.cgroups import files
from ocirt.errors import Error, InvalidConfig, Unsupported, doing, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FIELD = "linux.intelRdt"
ENOSPC = 28


def mountpoint() -> str:
    """Where resctrl is mounted; raises Unsupported if it isn't."""
    for line in files.read_or("/proc/self/mountinfo").split("\n"):
        left, _, right = line.partition(" - ")
        if right.startswith("resctrl "):
            return left.split(" ")[4]
    raise Unsupported(
        f"{FIELD}: no resctrl file system is mounted (mount -t resctrl resctrl /sys/fs/resctrl; "
        "the processor and the kernel must have RDT)"
    )


def apply(rdt: Mapping[str, Any], id: str, pid: int, root: str | None = None) -> dict[str, Any]:
    """Put the process into its class of service, made if need be, and its monitoring group.

    `root` is the resctrl file system, by default where it is mounted. Gives the record for `remove`.
    Raises InvalidConfig, Unsupported or Error; what was made is then removed.
    """
    root = root or mountpoint()
    group, named = _group(rdt, id)
    lines = schemata(rdt)
    directory = root + group
    record: dict[str, Any] = {"directory": directory, "remove": False, "monitoring": ""}
    try:
        if group:
            record["remove"] = _make_group(directory, lines, named=named)
        if lines and (record["remove"] or not named):
            _write_lines(directory + "/schemata", lines)
        elif lines:
            _compare(directory, lines)
        _put(directory + "/tasks", str(pid))
        if rdt.get("enableMonitoring"):
            record["monitoring"] = f"{directory}/mon_groups/{id}"
            _mkdir(record["monitoring"], f"{FIELD}.enableMonitoring")
            _put(record["monitoring"] + "/tasks", str(pid))
    except Error:
        remove(record)
        raise
    if named:
        # the class was asked for by name: others may be in it by then, so it stays
        record["remove"] = False
    return record


def remove(record: dict[str, Any]) -> None:
    """Remove the monitoring group, and the class of service if it was made for this container alone."""
    for directory in (record["monitoring"], record["directory"] if record["remove"] else ""):
        if not directory:
            continue
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise from_oserror(error, f"rmdir {directory}") from error


def update(rdt: Mapping[str, Any], record: dict[str, Any]) -> None:
    """Write a new schemata for a container that has a class of service."""
    lines = schemata(rdt)
    if lines:
        _write_lines(record["directory"] + "/schemata", lines)


def schemata(rdt: Mapping[str, Any]) -> list[str]:
    """The lines for the file schemata, in the order of the specification; raises InvalidConfig."""
    lines: list[str] = []
    for key in ("l3CacheSchema", "memBwSchema"):
        value = rdt.get(key)
        if value:
            # an old l3CacheSchema may be two lines, L3CODE and L3DATA
            parts = [part for part in value.split("\n") if part]
            if key == "memBwSchema" and (len(parts) > 1 or not value.startswith("MB:")):
                raise InvalidConfig(f"{FIELD}.{key}: {value!r} must be one line that starts with MB:")
            if key == "l3CacheSchema":
                # memBwSchema is the one that speaks of MB
                parts = [part for part in parts if not part.startswith("MB:")]
            lines.extend(parts)
    for index, value in enumerate(rdt.get("schemata") or ()):
        if "\n" in value:
            raise InvalidConfig(f"{FIELD}.schemata[{index}]: {value!r} contains a newline: one line an element")
        lines.append(value)
    return lines


def _group(rdt: Mapping[str, Any], id: str) -> tuple[str, bool]:
    """("" or "/name", was it named by closID)."""
    name = rdt.get("closID")
    if not name:
        return "/" + id, False
    if name == "/":
        return "", True
    if "/" in name or name in (".", "..", "info", "mon_groups", "mon_data"):
        raise InvalidConfig(f"{FIELD}.closID: {name!r} is no name of a class of service")
    return "/" + name, True


def _make_group(directory: str, lines: list[str], *, named: bool) -> bool:
    """mkdir; True if it wasn't there."""
    if named and not lines:
        if not os.path.isdir(directory):
            raise Error(f"{FIELD}.closID: {directory} doesn't exist, and no schemata is given to make it with")
        return False
    if named and os.path.isdir(directory):
        return False
    _mkdir(directory, FIELD)
    return True


def _mkdir(directory: str, field: str) -> None:
    try:
        os.mkdir(directory, 0o755)
    except OSError as error:
        hint = "the processor has no class or monitor left" if error.errno == ENOSPC else ""
        with doing(field):
            raise from_oserror(error, f"mkdir {directory}", hint) from error


def _compare(directory: str, lines: list[str]) -> None:
    """A class that others made must be what the config says it is."""
    there = {_normal(line) for line in files.read_or(directory + "/schemata").split("\n")}
    for line in lines:
        if _normal(line) not in there:
            raise Error(f"{FIELD}: {directory}/schemata has no line {line!r}: the class of service is another one")


def _normal(line: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """`L3:0=00f;1=0f` without regard to order and leading zeros."""
    kind, _, rest = line.strip().partition(":")
    values = (part.strip().partition("=") for part in rest.split(";") if part.strip())
    return kind.strip(), frozenset((_number(key), _number(value)) for key, _, value in values)


def _number(text: str) -> str:
    return text.strip().lstrip("0") or "0"


def _write_lines(path: str, lines: list[str]) -> None:
    for line in lines:
        _put(path, line + "\n")


def _put(path: str, value: str) -> None:
    try:
        files.put(path, value)
    except OSError as error:
        shown = value.rstrip("\n")
        # the reason for a refused schemata is in a file of its own
        status = os.path.dirname(os.path.dirname(path)) + "/info/last_cmd_status"
        with doing(FIELD):
            raise files.failed(path, shown, error, files.read_or(status).strip()) from error


def stats(record: Mapping[str, Any]) -> dict[str, Any]:
    """The class's schemata, and what its monitoring group has counted, a domain each."""
    found: dict[str, Any] = {}
    for line in files.read_or(record["directory"] + "/schemata").split("\n"):
        kind = line.strip().partition(":")[0]
        if kind in ("L3", "MB"):
            found["l3_cache_schema" if kind == "L3" else "mem_bw_schema"] = line.strip()
    data = (record.get("monitoring") or record["directory"]) + "/mon_data"
    for domain in sorted(files.subdirectories(data)):
        base = f"{data}/{domain}/"
        occupancy = files.read_or(base + "llc_occupancy")
        if occupancy.isdecimal():
            found.setdefault("cmt_stats", []).append({"llc_occupancy": int(occupancy)})
        total, local = files.read_or(base + "mbm_total_bytes"), files.read_or(base + "mbm_local_bytes")
        if total.isdecimal():
            entry = {"mbm_total_bytes": int(total), "mbm_local_bytes": int(local) if local.isdecimal() else 0}
            found.setdefault("mbm_stats", []).append(entry)
    return found

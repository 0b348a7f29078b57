"""Rules about namespaces, ID mappings, clock offsets and network devices."""

from __future__ import annotations

import posix as os

from ocirt.validation.found import key as at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config, IDMapping
    from ocirt.validation.found import Found, Rule

#: UID_GID_MAP_MAX_EXTENTS of the kernel.
_MAX_MAPPINGS = 340

_CLOCKS = ("monotonic", "boottime")

#: IFNAMSIZ of the kernel, without the NUL.
_MAX_INTERFACE = 15


def unique_types(config: Config, found: Found) -> None:
    """ "If a namespaces field contains duplicated namespaces with same type, the runtime MUST generate an error".

    [config-linux.md, Namespaces]
    """
    seen: set[str] = set()
    for index, namespace in enumerate((config.get("linux") or {}).get("namespaces") or ()):
        if namespace["type"] in seen:
            message = "malformed spec file: duplicated ns, each type may be given once"
            found.error(f"linux.namespaces[{index}].type", message, namespace["type"])
        seen.add(namespace["type"])


def mappings_need_user_namespace(config: Config, found: Found) -> None:
    """ID mappings are of a user namespace, and a new user namespace without them can't have a process.

    But where the caller isn't root, the only ids that can be mapped are the caller's: they are, if none are given.

    [config-linux.md, User namespace mappings]
    """
    linux = config.get("linux") or {}
    user = next((n for n in linux.get("namespaces") or () if n["type"] == "user"), None)
    given = [key for key in ("uidMappings", "gidMappings") if linux.get(key)]
    if user is None:
        for key in given:
            message = "user namespace mappings specified, but user namespace isn't enabled in the config"
            found.error(f"linux.{key}", message, hint='add {"type": "user"} to linux.namespaces or remove them')
    elif not user.get("path") and not (not given and os.geteuid()):  # ocirt.rootless maps an ordinary user's ids
        message = "user namespaces enabled, but no namespace path to join nor mappings to apply specified"
        for key in ("uidMappings", "gidMappings"):
            if key not in given:
                found.error(f"linux.{key}", message)


def mappings_are_sound(config: Config, found: Found) -> None:
    """What the kernel takes in uid_map and gid_map: no overlap, no overflow, at most 340 entries.

    [user_namespaces(7), Defining user and group ID mappings]
    """
    linux = config.get("linux") or {}
    mappings(linux.get("uidMappings"), "linux.uidMappings", found)
    mappings(linux.get("gidMappings"), "linux.gidMappings", found)


def mappings(entries: list[IDMapping] | None, path: str, found: Found) -> None:
    """Check one array of mappings."""
    if not entries:
        return
    if len(entries) > _MAX_MAPPINGS:
        found.error(path, f"the kernel takes at most {_MAX_MAPPINGS} mappings, these are {len(entries)}")
    for key in ("containerID", "hostID"):
        ends: list[tuple[int, int, int]] = []
        for index, entry in enumerate(entries):
            start = entry[key]
            if start + entry["size"] > 0xFFFFFFFF:
                message = f"{key} plus size must not be more than 4294967295"
                found.error(f"{path}[{index}]", message, entry)
            ends.append((start, start + entry["size"], index))
        ends.sort()
        furthest, before = 0, 0
        for start, end, index in ends:
            if start < furthest:
                later = max(before, index)
                found.error(f"{path}[{later}]", f"{key} overlaps with entry {min(before, index)}", entries[later])
            if end > furthest:
                furthest, before = end, index


def offsets_need_time_namespace(config: Config, found: Found) -> None:
    """Clock offsets are set before the first process of a new time namespace starts, and never again.

    [time_namespaces(7)]
    """
    linux = config.get("linux") or {}
    offsets = linux.get("timeOffsets")
    if not offsets:
        return
    time = next((n for n in linux.get("namespaces") or () if n["type"] == "time"), None)
    if time is None:
        message = "time namespace offsets specified, but time namespace isn't enabled in the config"
        found.error("linux.timeOffsets", message, hint='add {"type": "time"} to linux.namespaces')
    elif time.get("path"):
        message = (
            "time namespace enabled, but both namespace path and time offsets specified -- you may only provide one"
        )
        found.error("linux.timeOffsets", message)
    for clock in offsets:
        if clock not in _CLOCKS:
            path = at("linux.timeOffsets", clock)
            found.error(path, "no clock with an offset, must be monotonic or boottime")


def net_devices(config: Config, found: Found) -> None:
    """Network devices are moved to a network namespace, under a name that is valid and unique there.

    [config-linux.md, Network Devices]
    """
    linux = config.get("linux") or {}
    devices = linux.get("netDevices")
    if not devices:
        return
    if not any(n["type"] == "network" for n in linux.get("namespaces") or ()):
        hint = 'add {"type": "network"} to linux.namespaces'
        found.error("linux.netDevices", "unable to move network devices without a NET namespace", hint=hint)
    targets: dict[str, str] = {}
    for host, device in devices.items():
        if problem := _interface(host):
            found.error(at("linux.netDevices", host), f"invalid network device name: {problem}")
        name = device.get("name") or host
        if name != host and (problem := _interface(name.replace("%d", "0", 1))):
            found.error(at("linux.netDevices", host) + ".name", f"invalid network device name: {problem}", name)
        if "%d" not in name and name in targets:
            message = f"{targets[name]} gets the same name in the container"
            found.error(at("linux.netDevices", host) + ".name", message, name)
        targets[name] = host


def _interface(name: str) -> str:
    """Why the kernel (dev_valid_name) doesn't take an interface name, "" if it does."""
    if not name or name in (".", ".."):
        return "it is empty, . or .."
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_INTERFACE:
        return f"it is longer than {_MAX_INTERFACE} bytes"
    if any(c in "/:%" or c.isspace() for c in name):
        return "it must not hold /, :, % or white space (but one %d in a new name)"
    return ""


RULES: tuple[Rule, ...] = (
    unique_types,
    mappings_need_user_namespace,
    mappings_are_sound,
    offsets_need_time_namespace,
    net_devices,
)

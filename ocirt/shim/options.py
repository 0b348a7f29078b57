"""What containerd says with a container: runc's options, or a TOML text for runtimes that it doesn't know.

Options of a container: dict with the names of messages.RUNC_OPTIONS.
"""

from __future__ import annotations

from ocirt.errors import InvalidConfig
from ocirt.shim import wire
from ocirt.shim.messages import (
    CHECKPOINT_OPTIONS,
    OLD_CHECKPOINT_OPTIONS,
    OLD_CREATE_OPTIONS,
    RUNC_OPTIONS,
    RUNTIME_OPTIONS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUNC = "containerd.runc.v1.Options"
RUNTIME = "runtimeoptions.v1.Options"
#: `ctr run --uidmap` of containerd 1.6 sends this one; only io_uid and io_gid are set in it.
OLD = "containerd.linux.runc.CreateOptions"
CHECKPOINT, OLD_CHECKPOINT = "containerd.runc.v1.CheckpointOptions", "containerd.linux.runc.CheckpointOptions"

#: Keys of the TOML text (as containerd's config.toml has them for runc), and what they are in RUNC_OPTIONS.
KEYS = {
    "NoPivotRoot": ("no_pivot_root", bool),
    "NoNewKeyring": ("no_new_keyring", bool),
    "ShimCgroup": ("shim_cgroup", str),
    "IoUid": ("io_uid", int),
    "IoGid": ("io_gid", int),
    "BinaryName": ("binary_name", str),
    "Root": ("root", str),
    "CriuPath": ("criu_path", str),
    "SystemdCgroup": ("systemd_cgroup", bool),
    "CriuImagePath": ("criu_image_path", str),
    "CriuWorkPath": ("criu_work_path", str),
}


def read(any: dict[str, Any]) -> dict[str, Any]:
    """The options in a google.protobuf.Any; {} if there are none. Raises InvalidConfig."""
    url = any.get("type_url", "").rpartition("/")[2]
    value = any.get("value", b"")
    if not url:
        return {}
    try:
        if url == RUNC:
            return wire.decode(RUNC_OPTIONS, value)
        if url == OLD:
            return wire.decode(OLD_CREATE_OPTIONS, value)
        if url == RUNTIME:
            return _from_toml(wire.decode(RUNTIME_OPTIONS, value))
    except ValueError as error:
        raise InvalidConfig(f"options of type {url} can't be read: {error}") from None
    raise InvalidConfig(f"options of type {url}: {RUNC} or {RUNTIME} is wanted")


def _from_toml(given: dict[str, Any]) -> dict[str, Any]:
    import tomllib

    path = given.get("config_path", "")
    body: bytes = given.get("config_body", b"")
    where = "the options' config_body"
    if not body and path:
        where = path
        try:
            with open(path, "rb") as file:
                body = file.read()
        except OSError as error:
            raise InvalidConfig(f"options: {path}: {(error.strerror or '').lower()}") from None
    try:
        table = tomllib.loads(body.decode())
    except ValueError as error:
        raise InvalidConfig(f"{where} is not TOML: {error}") from None
    options: dict[str, Any] = {}
    by_name = {key.lower(): entry for key, entry in KEYS.items()}  # Go's decoder doesn't mind the case
    for key, value in table.items():
        if key.lower() not in by_name:
            continue  # of a later containerd, or of the engine
        name, kind = by_name[key.lower()]
        if type(value) is not kind:
            raise InvalidConfig(f"{where}: {key} = {value!r}: {kind.__name__} is wanted")
        if type(value) is int and not 0 <= value < 0xFFFFFFFF:
            raise InvalidConfig(f"{where}: {key} = {value}: a user's or group's id is wanted")
        options[name] = value
    return options


def images(bundle: str, path: str, any: dict[str, Any]) -> dict[str, Any]:
    """What checkpoint is asked for, as its command line names it.

    path  of the images, unless the options name another
    any   the options, as a google.protobuf.Any; {} for none. Raises InvalidConfig.
    """
    url = any.get("type_url", "").rpartition("/")[2]
    tables = {"": CHECKPOINT_OPTIONS, CHECKPOINT: CHECKPOINT_OPTIONS, OLD_CHECKPOINT: OLD_CHECKPOINT_OPTIONS}
    if url not in tables:
        raise InvalidConfig(f"options of type {url}: {CHECKPOINT} is wanted")
    try:
        wanted = wire.decode(tables[url], any.get("value", b""))
    except ValueError as error:
        raise InvalidConfig(f"options of type {url} can't be read: {error}") from None
    return {
        "image_path": wanted.get("image_path") or path,
        "work_path": wanted.get("work_path") or f"{bundle}/criu-work",
        "parent_path": wanted.get("parent_path") or None,
        "leave_running": not wanted.get("exit", False),
        "tcp_established": wanted.get("open_tcp", False),
        "ext_unix_sk": wanted.get("external_unix_sockets", False),
        "shell_job": wanted.get("terminal", False),
        "file_locks": wanted.get("file_locks", False),
        "empty_ns": tuple(wanted.get("empty_namespaces", ())),
        "manage_cgroups_mode": wanted.get("cgroups_mode") or "soft",
    }

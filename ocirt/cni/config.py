"""Network configurations: lists of plugins, by file, by name, in memory (SPEC.md, section 1)."""

from __future__ import annotations

import os

from ocirt import log
from ocirt.cni import protocol
from ocirt.cni.protocol import CURRENT, INVALID_CONFIG, CNIError, at_least
from ocirt.errors import Error, NotFound
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONFIG_DIRECTORY = "/etc/cni/net.d"


def default_directory() -> str:
    """Where networks are configured: NETCONFPATH, as for cnitool, or the usual place."""
    return os.environ.get("NETCONFPATH") or CONFIG_DIRECTORY


class NetworkList:
    """A network: its name, the version it is called in, and its plugins' configurations.

    data   the bytes it was read from, which the cache keeps for DEL
    ours   made by `ocirt network create`: nobody else's attachments are in it
    """

    __slots__ = ("data", "disable_check", "disable_gc", "name", "ours", "path", "plugins", "version")

    def __init__(self, name: str, version: str, plugins: list[dict[str, Any]], data: bytes = b"") -> None:
        self.name = name
        self.version = version
        self.plugins = plugins
        self.disable_check = False
        self.disable_gc = False
        self.data = data
        self.path = ""
        self.ours = False


def parse(data: bytes, what: str, directory: str = "") -> NetworkList:
    """Read a list, or a single configuration, which becomes a list of one.

    `directory`: where plugins of the network may be added as files, in a
    directory of the network's name. Raises CNIError (7) or InvalidConfig.
    """
    raw = protocol.mapping(parse_json(data, what))
    if raw is None:
        raise CNIError(INVALID_CONFIG, f"{what} is no JSON object")
    if protocol.get(raw, "type") and protocol.get(raw, "plugins") is None:
        return _single(raw, what)
    name = protocol.string(raw, "name")
    if not protocol.valid_name(name):
        raise CNIError(INVALID_CONFIG, f"{what}: invalid network name {name!r}", "letters, digits and _.- are allowed")
    found = NetworkList(name, _version(raw, what), [], data)
    found.ours = raw.get("ocirt") is True
    found.disable_check = _switch(raw, "disableCheck")
    found.disable_gc = _switch(raw, "disableGC")
    inline = protocol.listing(protocol.get(raw, "plugins"))
    if protocol.get(raw, "plugins") is not None and not inline:
        raise CNIError(INVALID_CONFIG, f"{what}: plugins must be a list that isn't empty")
    only_inline = _switch(raw, "loadOnlyInlinedPlugins")
    if only_inline and inline is None:
        raise CNIError(INVALID_CONFIG, f"{what}: loadOnlyInlinedPlugins is set but there are no plugins")
    for i, plugin in enumerate(inline or ()):
        found.plugins.append(_plugin(plugin, f"{what}: plugins[{i}]"))
    if not only_inline and directory:
        found.plugins += _sibling_plugins(os.path.join(directory, name))
    if not found.plugins:
        raise CNIError(INVALID_CONFIG, f"{what}: no plugin configs found")
    return found


def _single(raw: dict[str, Any], what: str) -> NetworkList:
    name = protocol.string(raw, "name")
    if not protocol.valid_name(name):
        raise CNIError(INVALID_CONFIG, f"{what}: invalid network name {name!r}", "letters, digits and _.- are allowed")
    plugin = _plugin(raw, what)
    version = _version(raw, what)
    return NetworkList(name, version, [plugin], dump_json({"name": name, "cniVersion": version, "plugins": [plugin]}))


def _plugin(value: Any, where: str) -> dict[str, Any]:
    plugin = protocol.mapping(value)
    if plugin is None or not isinstance(protocol.get(plugin, "type"), str):
        raise CNIError(INVALID_CONFIG, f"{where}: a plugin's configuration must be an object with a type", repr(value))
    return plugin


def _sibling_plugins(directory: str) -> list[dict[str, Any]]:
    try:
        names = sorted(n for n in os.listdir(directory) if n.endswith(".conf"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found: list[dict[str, Any]] = []
    for name in names:
        path = os.path.join(directory, name)
        found.append(_plugin(parse_json(_read(path), path), path))
    return found


def _switch(raw: dict[str, Any], key: str) -> bool:
    """A boolean, or "true" and "false" in any case."""
    value = protocol.get(raw, key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise CNIError(INVALID_CONFIG, f"error parsing configuration list: {key} is {value!r}", "must be true or false")


def _version(raw: dict[str, Any], what: str) -> str:
    """The highest version of cniVersion and cniVersions that we know; without the second the first as it is."""
    version = protocol.string(raw, "cniVersion")
    listed = protocol.get(raw, "cniVersions")
    try:
        if listed is None:
            protocol.version_tuple(version)
            return version or "0.1.0"
        candidates = [v for v in [*listed, *([version] if version else [])] if not at_least(v, CURRENT) or v == CURRENT]
    except (ValueError, AttributeError, TypeError) as error:
        raise CNIError(INVALID_CONFIG, f"{what}: invalid cniVersion or cniVersions", str(error)) from error
    return max(candidates, key=protocol.version_tuple) if candidates else version or "0.1.0"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(16 << 20)
    except OSError as error:
        raise Error(f"open {path}: {(error.strerror or '').lower()}", error.errno or 0) from error


def load(path: str) -> NetworkList:
    """Read a list or a single configuration from a file."""
    found = parse(_read(path), path, os.path.dirname(path))
    found.path = path
    return found


def files(directory: str) -> list[str]:
    """The configuration files of a directory: lists first, then single ones, each sorted by name."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    lists = [n for n in names if n.endswith(".conflist")]
    return [os.path.join(directory, n) for n in lists + [n for n in names if n.endswith((".conf", ".json"))]]


def find(name: str, directory: str = CONFIG_DIRECTORY) -> NetworkList:
    """The network of this name; NotFound if there is none.

    A file that can't be read is logged and passed over: a mistake in one
    network must not take all others away.
    """
    for path in files(directory):
        try:
            found = load(path)
        except Error as error:
            log.warning(f"network configuration {path}: {error}")
            continue
        if found.name == name:
            return found
    raise NotFound(f"no network of the name {name!r} in {directory}")


def find_all(directory: str = CONFIG_DIRECTORY) -> list[NetworkList]:
    """All networks, the first of a name; files that can't be read are logged."""
    found: dict[str, NetworkList] = {}
    for path in files(directory):
        try:
            network = load(path)
        except Error as error:
            log.warning(f"network configuration {path}: {error}")
            continue
        found.setdefault(network.name, network)
    return list(found.values())

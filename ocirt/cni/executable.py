"""Our plugins as executables: the environment and standard input in, a result or an error on standard output.

All are one file under many names: `bridge`, or `ocirt-cni-bridge`, is a link to it.
"""

from __future__ import annotations

import os
import sys

from ocirt.cni import protocol
from ocirt.cni.invoke import PREFIX, call
from ocirt.cni.plugins import TYPES, load
from ocirt.cni.protocol import CNIError
from ocirt.cni.request import Request
from ocirt.errors import Error, InvalidConfig
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

#: nerdctl reads the version of `firewall` out of this line and wants 1.1.0 at least.
_ABOUT = "CNI {type} plugin v1.7.1 (ocirt)\nCNI protocol versions supported: {versions}\n"

_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}


def launch() -> NoReturn:
    """Run the plugin that the process was called as, and leave."""
    os._exit(main(sys.argv[0], os.environ))


def main(called: str, environment: Mapping[str, str]) -> int:
    """One call of a plugin: 0, or 1 with an error object on standard output."""
    type = os.path.basename(called).removeprefix(PREFIX)
    version = protocol.CURRENT
    try:
        if type not in TYPES:
            raise CNIError(
                protocol.INTERNAL, f"{type!r} is no plugin of ocirt", f"call it by a link: {', '.join(TYPES)}"
            )
        plugin = load(type)
        command = environment.get("CNI_COMMAND", "")
        if not command:
            about = _ABOUT.format(type=type, versions=", ".join(plugin.VERSIONS))
            os.write(2, about.encode())
            return 0
        if command == "VERSION":
            _print({"cniVersion": protocol.CURRENT, "supportedVersions": list(plugin.VERSIONS)})
            return 0
        _check_environment(command, environment)
        config = _read_config()
        request = _request(command, config, environment)
        version = request.version if request.version in protocol.VERSIONS else version
        result = call(plugin, request)
        if result is not None:
            _print(result.dump(request.version))
        return 0
    except Error as error:
        _print(protocol.error_object(error, version))
    except OSError as error:
        _print(protocol.error_object(CNIError(protocol.IO_FAILURE, str(error)), version))
    except Exception as error:
        # a mistake of ours, or a value of a kind that nobody thought of: whoever called reads objects only
        what = CNIError(protocol.INTERNAL, f"{type}: {error.__class__.__name__}", str(error))
        _print(protocol.error_object(what, version))
    return 1


def _check_environment(command: str, environment: Mapping[str, str]) -> None:
    if command not in _REQUIRED:
        raise CNIError(protocol.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    missing = [name for name in _REQUIRED[command] if not environment.get(name)]
    if missing:
        raise CNIError(
            protocol.INVALID_ENVIRONMENT,
            f"required env variables [{','.join(missing)}] missing",
        )
    if "CNI_CONTAINERID" in _REQUIRED[command]:
        protocol.check_names("any", environment["CNI_CONTAINERID"], environment["CNI_IFNAME"])


def _read_config() -> dict[str, object]:
    parts: list[bytes] = []
    try:
        while part := os.read(0, 1 << 16):
            parts.append(part)
    except OSError as error:
        raise CNIError(protocol.IO_FAILURE, "error reading from stdin", error.strerror or "") from error
    try:
        config = protocol.mapping(parse_json(b"".join(parts), "the network configuration"))
    except InvalidConfig as error:
        raise CNIError(protocol.DECODING_FAILURE, "error unmarshall network config", str(error)) from error
    if config is None:
        raise CNIError(protocol.DECODING_FAILURE, "the network configuration is no JSON object")
    return config


def _request(command: str, config: dict[str, object], environment: Mapping[str, str]) -> Request:
    name = protocol.string(config, "name")
    if not protocol.valid_name(name):
        text = "missing network name" if not name else f"invalid characters found in network name {name!r}"
        raise CNIError(protocol.INVALID_CONFIG, text)
    return Request(
        command,
        config,
        container=environment.get("CNI_CONTAINERID", ""),
        netns=environment.get("CNI_NETNS", ""),
        ifname=environment.get("CNI_IFNAME", ""),
        args=environment.get("CNI_ARGS", ""),
        path=tuple(d for d in environment.get("CNI_PATH", "").split(":") if d),
    )


def _print(value: object) -> None:
    data = dump_json(value) + b"\n"
    while data:
        data = data[os.write(1, data) :]

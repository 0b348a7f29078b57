"""ocirt network"""

from __future__ import annotations

import os

from ocirt import log
from ocirt.cni import networks, protocol
from ocirt.cni.attach import default_client
from ocirt.commands import Options, columns, indented, write
from ocirt.errors import Error, InvalidConfig, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ocirt.cni.cache import Entry
    from ocirt.cni.config import NetworkList


def run(options: Options) -> int:
    """Do what the first argument says."""
    actions = {
        "create": _create,
        "ls": _list,
        "list": _list,
        "inspect": _inspect,
        "rm": _remove,
        "remove": _remove,
        "check": _check,
        "gc": _collect,
        "reload": _reload,
        "plugins": _plugins,
    }
    action = actions.get(options.action)
    if action is None:
        raise InvalidConfig(f"unknown action {options.action!r} (must be one of {', '.join(actions)})")
    if options.name and options.action in ("ls", "list", "reload"):
        raise InvalidConfig(f"network {options.action} takes no name, but {options.name!r} is given")
    action(options)
    return 0


def _directory(options: Options) -> str:
    from ocirt.cni.config import default_directory

    return str(options.directory or default_directory())


def _name(options: Options) -> str:
    if not options.name:
        raise InvalidConfig(f"network {options.action} needs a name")
    return str(options.name)


def _create(options: Options) -> None:
    """Write a conflist and print its path."""
    from ocirt.jsontext import parse_json

    extra: dict[str, Any] = {}
    for option in options.option:
        key, equals, value = option.partition("=")
        if not equals:
            raise InvalidConfig(f"invalid --option {option!r} (must be KEY=JSON)")
        try:
            extra[key] = parse_json(value.encode(), f"--option {key}")
        except InvalidConfig:
            extra[key] = value  # a word needn't be quoted
    name = _name(options)
    with doing(f"create network {name}"):
        path = networks.create(
            name,
            _directory(options),
            driver=options.driver,
            subnets=options.subnet,
            ip_range=options.ip_range,
            gateway=options.gateway,
            bridge=options.bridge,
            parent=options.parent,
            mtu=options.mtu,
            internal=options.internal,
            isolate=options.isolate,
            port_backend="" if options.ports == "nftables" else options.ports,
            options=extra,
        )
    write(f"{path}\n")


def _described(network: NetworkList) -> dict[str, Any]:
    attachments = [_attached(entry) for entry in _attachments(network.name)]
    return {
        "name": network.name,
        "file": network.path,
        "cniVersion": network.version,
        "plugins": network.plugins,
        "containers": sorted({a["container"] for a in attachments}),
        "attachments": attachments,
    }


def _attached(entry: Entry) -> dict[str, Any]:
    """An attachment as ADD left it; one whose ADD isn't through has no address yet."""
    result = entry.parsed()
    ifname = entry.attachment.ifname
    interfaces = [i for i in result.interfaces if i["name"] == ifname and i.get("sandbox")] if result else []
    return {
        "container": entry.attachment.container,
        "interface": ifname,
        "addresses": [ip["address"] for ip in result.container_ips(ifname)] if result else [],
        "mac": interfaces[0].get("mac", "") if interfaces else "",
    }


def _attachments(name: str) -> Iterator[Entry]:
    from ocirt.cni import cache

    return cache.entries(default_client().directory, network=name)


def _list(options: Options) -> None:
    found = [_described(network) for network in networks.find_all(_directory(options))]
    if options.format == "json":
        write(indented(found) + "\n")
        return
    rows = [
        (
            n["name"],
            ",".join(protocol.string(p, "type") for p in n["plugins"]),
            str(len(n["containers"])),
            n["file"] or "(built in)",
        )
        for n in found
    ]
    write(columns([("NAME", "PLUGINS", "CONTAINERS", "FILE"), *rows]))


def _inspect(options: Options) -> None:
    write(indented([_described(networks.find(_name(options), _directory(options)))]) + "\n")


def _remove(options: Options) -> None:
    name = _name(options)
    with doing(f"remove network {name}"):
        users = {entry.attachment.container for entry in _attachments(name)}
        if not users:
            # what a network has of its own goes with it: the interface to other hosts, stale reservations
            try:
                default_client().gc(networks.find(name, _directory(options)), ())
            except protocol.CNIError as error:
                log.warning(str(error))  # a network that could never work has nothing, and must be removable
        networks.remove(name, _directory(options), users)
        default_client().forget(name)
    write(f"{name}\n")


def _check(options: Options) -> None:
    name = _name(options)
    default_client().status(networks.find(name, _directory(options)))
    write(f"{name}: ready\n")


def _collect(options: Options) -> None:
    """Take back what belongs to no container any more."""
    from ocirt.cni.collect import collect

    for name in collect([options.name] if options.name else [], _directory(options)):
        write(f"{name}\n")


def _reload(options: Options) -> None:
    from ocirt.cni.reload import reload, watch

    if options.watch:
        watch(_directory(options))
    for what in reload(_directory(options)):
        write(f"{what}\n")


def _plugins(options: Options) -> None:
    """Write the CNI plugins as executables to a directory."""
    from ocirt.cli.launcher import write as write_launcher
    from ocirt.cni.invoke import DISPATCHER, PREFIX
    from ocirt.cni.plugins import TYPES

    directory = _name(options)
    with doing(f"write the plugins to {directory}"):
        os.makedirs(directory, 0o755, exist_ok=True)
        write_launcher(f"{directory}/{DISPATCHER}", entry="ocirt.cni.executable:launch")
        write_launcher(f"{directory}/ocirt-proxy", entry="ocirt.proxy.main:launch")
        for name in (*TYPES, *(PREFIX + t for t in TYPES)):
            link = f"{directory}/{name}"
            if os.path.lexists(link):
                if not os.path.islink(link) or os.readlink(link) != DISPATCHER:
                    raise Error(f"{link} is there already and is not ocirt's")
                continue
            os.symlink(DISPATCHER, link)
    write(f"{directory}\n")

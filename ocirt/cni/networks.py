"""The networks of this host: the default one, those in files, making and removing them."""

from __future__ import annotations

import fcntl
import os

from ocirt.cni import config, protocol
from ocirt.cni.address import (
    cidr_text,
    contains,
    from_number,
    ip_text,
    network_of,
    number,
    overlap,
    parse_cidr,
    parse_ip,
)
from ocirt.cni.client import derive
from ocirt.cni.protocol import INVALID_CONFIG, CNIError
from ocirt.cni.request import Request
from ocirt.errors import AlreadyExists, Error, NotFound, WrongState
from ocirt.jsontext import dump_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ocirt.linux.netlink_route import Address

#: The network that is there without any file; a file with a network of this name takes its place.
DEFAULT = "bridge"
_DEFAULT_BRIDGE = "ocirt0"
_DEFAULT_SUBNETS = ("10.87.0.0/16", "fd6f:6369:7274::/64")
_POOL = "10.128.0.0/9"
_PREFIX = 24
_RESERVED = ("host", "none", "container")
_DRIVERS = ("bridge", "macvlan", "overlay", "ptp")


def default() -> config.NetworkList:
    """The default network: a bridge with addresses of both families where the host has both."""
    subnets = _DEFAULT_SUBNETS if os.path.isdir("/proc/sys/net/ipv6") else _DEFAULT_SUBNETS[:1]
    content = describe(DEFAULT, bridge=_DEFAULT_BRIDGE, subnets=subnets)
    return config.parse(dump_json(content), "the default network")


def find(name: str, directory: str = config.CONFIG_DIRECTORY) -> config.NetworkList:
    """The network of this name; NotFound if there is none."""
    try:
        return config.find(name, directory)
    except NotFound:
        if name == DEFAULT:
            return default()
        raise


def find_all(directory: str = config.CONFIG_DIRECTORY) -> list[config.NetworkList]:
    """All networks with the default one."""
    found = config.find_all(directory)
    if not any(network.name == DEFAULT for network in found):
        found.insert(0, default())
    return found


def describe(
    name: str,
    *,
    driver: str = "bridge",
    bridge: str = "",
    subnets: Iterable[str] = (),
    gateway: str = "",
    ip_range: str = "",
    mtu: int = 0,
    parent: str = "",
    internal: bool = False,
    isolate: bool = False,
    port_backend: str = "",
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A network as a list of plugins, ready to be written as `.conflist`.

    subnets       in CIDR notation, one address each for every container
    internal      no route out of the network, no masquerading
    isolate       containers of the network don't reach each other
    port_backend  of portmap: nftables, proxy or iptables
    options       keys added to the first plugin's configuration as they are
    """
    ipam: dict[str, Any] = {"type": "host-local"}
    plugin: dict[str, Any] = {"type": driver, "capabilities": {"mac": True, "ips": True}}
    ranges = [[_range(s, gateway, ip_range)] for s in subnets]
    if ranges:
        ipam["ranges"] = ranges
        plugin["ipam"] = ipam
        if os.environ.get("OCIRT_CNI_DIRECTORY"):
            ipam["dataDir"] = f"{os.environ['OCIRT_CNI_DIRECTORY']}/networks"
    if mtu:
        plugin["mtu"] = mtu
    if driver in ("bridge", "overlay"):
        plugin["bridge"] = bridge or _bridge_name(name)
        plugin["isGateway"] = True
        plugin["isDefaultGateway"] = not internal
        plugin["ipMasq"] = not internal
        plugin["hairpinMode"] = True
    elif driver == "ptp":
        plugin["ipMasq"] = not internal
        if ranges and not internal:
            ipam["routes"] = _defaults(subnets)
    elif driver == "macvlan":
        if parent:
            plugin["master"] = parent
        if isolate:
            plugin["mode"] = "private"
        if ranges and not internal:
            ipam["routes"] = _defaults(subnets)
        elif not ranges:
            plugin["ipam"] = {"type": "dhcp"}
    plugin.update(options or {})
    plugins = [plugin]
    if driver != "macvlan":
        portmap: dict[str, Any] = {"type": "portmap", "capabilities": {"portMappings": True}}
        if port_backend:
            portmap["backend"] = port_backend
        plugins.append(portmap)
        plugins.append({"type": "firewall", "ingressPolicy": "isolated" if isolate else "same-bridge"})
    plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    return {"cniVersion": protocol.CURRENT, "name": name, "ocirt": True, "plugins": plugins}


def _defaults(subnets: Iterable[str]) -> list[dict[str, str]]:
    return [{"dst": "::/0" if ":" in s else "0.0.0.0/0"} for s in subnets]


def _range(subnet: str, gateway: str, ip_range: str) -> dict[str, str]:
    made = {"subnet": subnet}
    if gateway and (":" in gateway) == (":" in subnet):
        made["gateway"] = gateway
    if ip_range and (":" in ip_range) == (":" in subnet):
        from ocirt.cni.address import bounds

        part = parse_cidr(ip_range)
        first, last = bounds(part)
        low, high = bounds(parse_cidr(subnet))
        if last - first > 2:
            first, last = first + 1, last - 1  # 10.50.1.0 is an address of 10.50.0.0/16, but nobody expects it
        made["rangeStart"] = ip_text(from_number(max(first, low + 1), len(part[1])))
        made["rangeEnd"] = ip_text(from_number(min(last, high - 1), len(part[1])))
    return made


def _bridge_name(name: str) -> str:
    """A name for the network's bridge: its own if that fits, and can't be some other interface's."""
    from zlib import crc32

    return f"oc-{name}" if len(name) <= 12 else f"oc-{crc32(name.encode()):08x}"


def create(name: str, directory: str = config.CONFIG_DIRECTORY, **keys: Any) -> str:
    """Write a network and return its file; the keys are those of `describe`.

    Without subnets a free IPv4 one is chosen. Raises AlreadyExists if the name
    is taken, CNIError (7) for a key that isn't right or a subnet in use.
    """
    if not protocol.valid_name(name) or name in _RESERVED:
        raise CNIError(INVALID_CONFIG, f"invalid network name {name!r}", "letters, digits and _.-; not host or none")
    driver = keys.get("driver", "bridge")
    if driver not in _DRIVERS:
        raise CNIError(INVALID_CONFIG, f"unknown driver {driver!r}", f"must be one of {', '.join(_DRIVERS)}")
    os.makedirs(directory, 0o755, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once must not choose one subnet
        return _create(name, directory, driver, keys)
    finally:
        os.close(lock)


def _create(name: str, directory: str, driver: str, keys: dict[str, Any]) -> str:
    present = find_all(directory)
    if any(n.name == name for n in present):
        raise AlreadyExists(f"network {name!r} already exists")
    _refuse_idle(driver, keys)
    subnets = [_normal(s) for s in keys.pop("subnets", ())]
    # macvlan's containers are on the wire that its parent is on, in the same subnet as the host
    used = list(_in_use(present)) if driver != "macvlan" else []
    for subnet in subnets:
        clash = next((u for u in used if overlap(parse_cidr(subnet), u)), None)
        if clash is not None:
            raise CNIError(INVALID_CONFIG, f"subnet {subnet} overlaps with {cidr_text(clash)}, which is in use")
    if not subnets and driver != "macvlan":
        subnets = [_free(used)]
    try:
        if keys.get("gateway"):
            parse_ip(keys["gateway"])
        content = describe(name, subnets=subnets, **keys)
    except ValueError as error:
        raise CNIError(INVALID_CONFIG, "invalid gateway or IP range", str(error)) from error
    _check(content, present)
    path = f"{directory}/{name}.conflist"
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "w", encoding="utf-8") as file:
        import json

        file.write(json.dumps(content, indent=2) + "\n")
    os.rename(temporary, path)
    return path


#: Keys that say something to these drivers only.
_ONLY_FOR = {"parent": ("macvlan",), "bridge": ("bridge", "overlay"), "port_backend": ("bridge", "overlay", "ptp")}
_FLAGS = {"port_backend": "ports"}


def _refuse_idle(driver: str, keys: dict[str, Any]) -> None:
    """CNIError for a key that would do nothing."""
    for key, drivers in _ONLY_FOR.items():
        if keys.get(key) and driver not in drivers:
            raise CNIError(
                INVALID_CONFIG,
                f"--{_FLAGS.get(key, key)} {keys[key]!r} says nothing to driver {driver}",
                f"it is for {', '.join(drivers)}",
            )
    if driver == "macvlan" and keys.get("internal") and not keys.get("subnets"):
        raise CNIError(INVALID_CONFIG, "--internal needs --subnet", "a DHCP server says which routes there are")


def _check(content: dict[str, Any], present: Iterable[config.NetworkList]) -> None:
    """CNIError for what the plugins would refuse at every ADD."""
    from ocirt.cni.plugins import bridge, overlay, ranges

    network = config.parse(dump_json(content), "the new network")
    plugin = network.plugins[0]
    mtu = protocol.integer(plugin, "mtu")
    least = 1280 if any(":" in text for text in _subnets(plugin)) else 68
    if mtu and not least <= mtu <= 65535:
        raise CNIError(INVALID_CONFIG, f"invalid MTU {mtu}", f"must be {least} to 65535")
    checks = {"bridge": bridge.check_keys, "overlay": overlay.check_keys}
    if plugin["type"] in checks:
        checks[plugin["type"]](Request("STATUS", derive(network, plugin, {}, None)))
        _refuse_shared(plugin, present)
    ipam = protocol.table(network.plugins[0], "ipam")
    if protocol.get(ipam, "type") == "host-local":
        for set in ranges.parse(ipam, []):
            for r in set:
                if r.gateway and not contains(r.subnet, r.gateway):
                    raise CNIError(
                        INVALID_CONFIG, f"gateway {ip_text(r.gateway)} is not in subnet {cidr_text(r.subnet)}"
                    )
                if r.first > r.last:
                    raise CNIError(INVALID_CONFIG, f"no address of the IP range is in subnet {cidr_text(r.subnet)}")


def _subnets(plugin: dict[str, Any]) -> list[str]:
    sets = protocol.array(protocol.table(plugin, "ipam"), "ranges", "ipam")
    return [str(r.get("subnet", "")) for one in sets for r in one]


def _refuse_shared(plugin: dict[str, Any], present: Iterable[config.NetworkList]) -> None:
    """CNIError if another network has the bridge: one of the two couldn't give it its gateway's address."""
    name = protocol.string(plugin, "bridge")
    if protocol.integer(plugin, "vlan") or protocol.truth(plugin, "forceAddress"):
        return
    for network in present:
        if any(protocol.get(other, "bridge") == name for other in network.plugins):
            raise CNIError(INVALID_CONFIG, f"bridge {name!r} is that of network {network.name!r}")


def _normal(subnet: str) -> str:
    try:
        return cidr_text(network_of(parse_cidr(subnet)))
    except ValueError as error:
        raise CNIError(INVALID_CONFIG, "invalid subnet", str(error)) from error


def _in_use(networks: Iterable[config.NetworkList]) -> Iterator[Address]:
    """The subnets of the networks and of the host's interfaces."""
    from ocirt.cni.plugins import ranges
    from ocirt.linux import netlink_route as route

    for network in networks:
        for plugin in network.plugins:
            ipam = protocol.table(plugin, "ipam")
            if protocol.get(ipam, "type") == "host-local":
                try:
                    for set in ranges.parse(ipam, []):
                        yield from (r.subnet for r in set)
                except Error:
                    continue  # a mistake in another network's file is not this one's
    with route.open_route() as host:
        for assigned in route.addresses(host):
            family, data, prefix = assigned.address
            if prefix < len(data) * 8 and data[0] not in (127, 0xFE):
                yield network_of((family, data, prefix))


def _free(used: list[Address]) -> str:
    family, data, _ = parse_cidr(_POOL)
    for i in range(1 << (_PREFIX - 9)):
        candidate = (family, from_number(number(data) + (i << (32 - _PREFIX)), 4), _PREFIX)
        if not any(overlap(candidate, u) for u in used):
            return cidr_text(candidate)
    raise Error(f"no free subnet left in {_POOL}")


def remove(name: str, directory: str, users: Iterable[str]) -> None:
    """Remove a network's file and its bridge; `users` are the containers attached to it, which must be none.

    Raises NotFound, WrongState.
    """
    network = find(name, directory)
    attached = sorted(users)
    if attached:
        raise WrongState(f"network {name!r} is used by {', '.join(attached)}")
    if not network.path:
        raise WrongState(f"network {name!r} is the default network; it has no file to remove")
    _remove_bridges(network)
    os.unlink(network.path)
    for plugin in network.plugins:
        ipam = protocol.table(plugin, "ipam")
        if protocol.get(ipam, "type") == "host-local":
            from ocirt.cni.plugins import host_local

            host_local.forget(protocol.string(ipam, "dataDir"), name)


def _remove_bridges(network: config.NetworkList) -> None:
    from ocirt.linux import netlink_route as route
    from ocirt.linux.netlink import ENODEV

    with route.open_route() as host:
        for plugin in network.plugins:
            name = protocol.string(plugin, "bridge")
            link = route.link(host, name) if name else None
            if link is not None and link.kind == "bridge":
                ports = [
                    other.name for other in route.links(host) if other.master == link.index and other.kind != "vxlan"
                ]
                if not ports:
                    host.request(route.delete_link(name), accept=(ENODEV,))

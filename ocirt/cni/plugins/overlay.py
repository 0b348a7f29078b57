"""overlay: one network over several hosts: a bridge on each, joined by VXLAN (RFC 7348).

All keys of `bridge`, and:

    vni     1 to 16777215, the network's number, the same on every host
    peers   the other hosts: a list of addresses, or the path of a file with one a line,
            or of a directory with such files; this host's own address may be among them.
            A path is watched: the kernel is told of changes at once
    local   this host's address that the others have; by default the one that leads to the first peer
    port    UDP port, 4789

What a container sends to an address nobody knows goes to every peer (there is
no multicast group), and answers teach the bridge where it is. Each host gives
addresses from a part of its own of one subnet, and has a gateway of its own.
"""

from __future__ import annotations

import _socket
import os

from ocirt.cni import protocol, services, table
from ocirt.cni.address import ip_text, parse_ip
from ocirt.cni.plugins import bridge
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, VERSIONS, CNIError
from ocirt.errors import doing
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST, ENOENT, Message, attribute, attributes, be16, u8, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ocirt.cni.request import Request
    from ocirt.cni.result import Result
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status", "sync"]

_KIND = "overlays"
_PORT = 4789
_OVERHEAD = {_socket.AF_INET: 50, _socket.AF_INET6: 70}
_ID, _LOCAL, _TTL, _LEARNING, _PORT_KEY, _LOCAL6 = 1, 4, 5, 7, 15, 17  # IFLA_VXLAN_…
_ANY_MAC = "00:00:00:00:00:00"
_PERMANENT = route.NUD_PERMANENT | route.NUD_NOARP


class _Config:
    """The plugin's own keys, checked."""

    __slots__ = ("bridge", "local", "mtu", "peers", "port", "vni", "vxlan")

    def __init__(self, config: dict[str, Any]) -> None:
        self.vni = _vni(config)
        self.port = protocol.integer(config, "port", _PORT)
        if not 1 <= self.port <= 65535:
            raise CNIError(INVALID_CONFIG, f"invalid port {self.port}", "must be 1 to 65535")
        self.bridge = protocol.string(config, "bridge") or f"oco{self.vni}"
        self.vxlan = f"ocv{self.vni}"
        self.mtu = protocol.integer(config, "mtu")
        local = protocol.string(config, "local")
        try:
            self.peers = _peers(protocol.get(config, "peers", []))
            self.local = parse_ip(local)[1] if local else b""
        except ValueError as error:
            raise CNIError(INVALID_CONFIG, "invalid address in peers or local", str(error)) from error
        if not self.local:
            self.local = _local_address(self.peers, self.port)
        self.peers -= {self.local}
        if any(len(p) != len(self.local) for p in self.peers):
            raise CNIError(INVALID_CONFIG, "peers and local must be of one address family")

    @property
    def family(self) -> int:
        """The address family of the hosts."""
        return _socket.AF_INET if len(self.local) == 4 else _socket.AF_INET6


def _vni(config: dict[str, Any]) -> int:
    vni = protocol.integer(config, "vni")
    if not 1 <= vni < 1 << 24:
        raise CNIError(INVALID_CONFIG, f"invalid vni {vni}", "must be 1 to 16777215")
    return vni


def _peers(value: Any) -> set[bytes]:
    """The hosts' addresses; ValueError for a line that is none."""
    if isinstance(value, str):
        try:
            return _read_peers(value)
        except OSError as error:
            raise CNIError(NOT_AVAILABLE, f"peers {value!r} can't be read", error.strerror or "") from error
    listed = protocol.listing(value)
    if listed is None or not all(isinstance(v, str) for v in listed):
        raise CNIError(INVALID_CONFIG, "invalid value of peers", "must be a list of addresses or a path")
    return {parse_ip(v)[1] for v in listed}


def _read_peers(path: str) -> set[bytes]:
    files = [path]
    if os.path.isdir(path):
        files = [os.path.join(path, n) for n in sorted(os.listdir(path)) if not n.startswith(".")]
    found: set[bytes] = set()
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                text = line.partition("#")[0].strip()
                if text:
                    found.add(parse_ip(text)[1])
    return found


def _local_address(peers: Iterable[bytes], port: int) -> bytes:
    """The address that packets to the first peer would leave with."""
    first = min(peers, default=b"")
    if not first:
        raise CNIError(INVALID_CONFIG, "overlay needs `local` as long as there are no peers")
    family = _socket.AF_INET if len(first) == 4 else _socket.AF_INET6
    made = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        made.connect((ip_text(first), port))
        return parse_ip(made.getsockname()[0])[1]
    except OSError as error:
        raise CNIError(NOT_AVAILABLE, f"no route to peer {ip_text(first)}", error.strerror or "") from error
    finally:
        made.close()


def _underlay(host: Socket, local: bytes) -> Link:
    """The interface that has our address."""
    for assigned in route.addresses(host):
        if assigned.address[1] == local:
            link = route.link(host, index=assigned.index)
            if link is not None:
                return link
    raise CNIError(NOT_AVAILABLE, f"no interface has the address {ip_text(local)}")


def _with_mtu(request: Request, config: _Config) -> Request:
    """The request as the bridge plugin gets it: room for the outer headers, our bridge's name."""
    if not config.mtu:
        with route.open_route() as host:
            config.mtu = _underlay(host, config.local).mtu - _OVERHEAD[config.family]
    changed = {k: v for k, v in request.config.items() if k.casefold() not in ("mtu", "bridge")}
    changed.update(mtu=config.mtu, bridge=config.bridge)
    return request.again(config=changed)


def _for_bridge(request: Request) -> Request:
    """The same without a look at the hosts: taking back must work when peers and addresses are gone."""
    config = dict(request.config)
    if not protocol.get(config, "bridge"):
        config["bridge"] = f"oco{protocol.integer(config, 'vni')}"
    return request.again(config=config)


def check_keys(request: Request) -> None:
    """CNIError for a configuration that every call would refuse, whatever the host's addresses and peers are."""
    _vni(request.config)
    bridge.check_keys(_for_bridge(request))


def add(request: Request) -> Result:
    """Connect the container to the bridge, and the bridge to the other hosts."""
    config = _Config(request.config)
    result = bridge.add(_with_mtu(request, config))
    try:
        with doing("connect to the other hosts"):
            _connect(config)
            _watch(request, config)
    except BaseException:
        bridge.delete(_for_bridge(request))
        raise
    return result


def _connect(config: _Config) -> None:
    with route.open_route() as host:
        master = route.index_of(host, config.bridge)
        link = route.link(host, config.vxlan)
        if link is None:
            change = route.Change().name(config.vxlan).mtu(config.mtu).master(master).up()
            change.kind(
                "vxlan",
                u32(_ID, config.vni),
                attribute(_LOCAL if config.family == _socket.AF_INET else _LOCAL6, config.local),
                u8(_LEARNING, 1),
                u8(_TTL, 64),
                be16(_PORT_KEY, config.port),
            )
            host.request(route.new_link(change, config.vxlan), accept=(EEXIST,))
            link = route.link(host, config.vxlan)
        if link is None or link.kind != "vxlan":
            raise CNIError(INTERNAL, f"{config.vxlan!r} exists but is not a vxlan")
        if link.master != master:
            raise CNIError(INTERNAL, f"vni {config.vni} is in use by another bridge than {config.bridge!r}")
        _set_peers(host, link, config.peers)


def _watch(request: Request, config: _Config) -> None:
    """Start what watches the peers' path, one process for all containers of the network on this host."""
    if not isinstance(protocol.get(request.config, "peers"), str):
        return
    comment = f"{request.network}/{config.vni}/{ip_text(config.local)}"
    if services.is_running(_KIND, comment):
        return
    services.stop(_KIND, comment)  # the record of one that has died
    try:
        service = services.Service(_KIND, comment, {})
    except FileExistsError:
        return  # another container is just starting it
    try:
        description = {"plugin": request.config, "link": config.vxlan}
        service.spawn("ocirt.cni.watching:launch", (), description, ())
    except BaseException:
        service.abandon()
        raise
    service.close()


def _present(host: Socket, link: Link) -> set[bytes]:
    """The peers that the kernel sends what nobody knows to."""
    import struct

    found: set[bytes] = set()
    request = struct.pack("=BxxxiHBB", route.AF_BRIDGE, link.index, 0, 0, 0)
    for payload in host.dump(Message(route.RTM_GETNEIGH, 0, request, f"RTM_GETNEIGH {link.name}")):
        _, index, _, _, _ = struct.unpack_from("=BxxxiHBB", payload)
        attrs = attributes(payload, 12)
        if index == link.index and attrs.get(route.NDA_LLADDR) == bytes(6) and route.NDA_DST in attrs:
            found.add(attrs[route.NDA_DST])
    return found


def _set_peers(host: Socket, link: Link, wanted: set[bytes]) -> None:
    present = _present(host, link)
    messages = [
        route.delete_neighbour(link.index, p, _ANY_MAC, family=route.AF_BRIDGE, flags=route.NTF_SELF)
        for p in present - wanted
    ]
    messages += [
        route.new_neighbour(link.index, p, _ANY_MAC, family=route.AF_BRIDGE, flags=route.NTF_SELF, state=_PERMANENT)
        for p in wanted - present
    ]
    if messages:
        host.request(*messages, accept=(EEXIST, ENOENT))


def sync(plugin: dict[str, Any]) -> None:
    """Read the peers again and tell the kernel; nothing if the network isn't up on this host."""
    config = _Config(plugin)
    with route.open_route() as host:
        link = route.link(host, config.vxlan)
        if link is not None:
            _set_peers(host, link, config.peers)


def delete(request: Request) -> None:
    """Disconnect the container; the connection between the hosts stays as long as the network."""
    bridge.delete(_for_bridge(request))


def check(request: Request) -> None:
    """Is everything as `request.previous` says, with every peer known?"""
    config = _Config(request.config)
    bridge.check(_with_mtu(request, config))
    with route.open_route() as host:
        link = route.link(host, config.vxlan)
        if link is None or not link.up:
            raise CNIError(INTERNAL, f"{config.vxlan} is missing or down")
        missing = config.peers - _present(host, link)
        if missing:
            raise CNIError(INTERNAL, f"peers are not connected: {', '.join(sorted(map(ip_text, missing)))}")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Take back what is stale; without any attachment the connection to the other hosts as well."""
    bridge.gc(_for_bridge(request), valid)
    if not valid:
        from ocirt.cni.plugins import links

        belongs = table.of_network(request.network)
        services.collect(_KIND, belongs)
        links.delete_on_host(f"ocv{protocol.integer(request.config, 'vni')}")


def status(request: Request) -> None:
    """CNIError (50) if this host has no address for the others, or the bridge can't work."""
    config = _Config(request.config)
    with route.open_route() as host:
        _underlay(host, config.local)
    bridge.status(_with_mtu(request, config))

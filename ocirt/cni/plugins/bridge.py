"""bridge: a pair of virtual interfaces, one in the container, one in a bridge of the host."""

from __future__ import annotations

import time

from ocirt.cni import protocol, table
from ocirt.cni.address import cidr_text, from_number, network_of, number, parse_cidr, parse_ip
from ocirt.cni.plugins import bridge_ports, ipam, links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, LIMITED_CONNECTIVITY, NOT_AVAILABLE, VERSIONS, CNIError
from ocirt.cni.request import run_all
from ocirt.cni.result import Result
from ocirt.errors import Error, Undo, doing
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cni.request import Request
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Address, Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_DEFAULT = "cni0"


class _Config:
    """The plugin's keys, checked."""

    __slots__ = (
        "bridge",
        "dad",
        "default_gateway",
        "disabled",
        "force_address",
        "gateway",
        "mac",
        "masquerade",
        "masquerade_backend",
        "mtu",
        "port",
        "promiscuous",
    )

    def __init__(self, request: Request) -> None:
        config = request.config
        self.bridge = protocol.string(config, "bridge") or _DEFAULT
        if not protocol.valid_ifname(self.bridge):
            raise CNIError(INVALID_CONFIG, f"invalid bridge name {self.bridge!r}")
        self.default_gateway = protocol.truth(config, "isDefaultGateway")
        self.gateway = protocol.truth(config, "isGateway") or self.default_gateway
        self.force_address = protocol.truth(config, "forceAddress")
        self.masquerade = protocol.truth(config, "ipMasq")
        self.masquerade_backend = links.masquerade_backend(request)
        self.mtu = links.wanted_mtu(request)
        self.promiscuous = protocol.truth(config, "promiscMode")
        self.dad = protocol.truth(config, "enabledad")
        self.disabled = protocol.truth(config, "disableContainerInterface")
        self.port = bridge_ports.Port(config)
        self.mac = request.wanted_mac() if request.command == "ADD" else ""
        if self.promiscuous and self.port.hairpin:
            raise CNIError(INVALID_CONFIG, "cannot set hairpin mode and promiscuous mode at the same time")
        if self.disabled and ipam.type_of(request):
            raise CNIError(INVALID_CONFIG, "cannot use IPAM when disableContainerInterface is set")


def check_keys(request: Request) -> None:
    """CNIError for a configuration that every call would refuse."""
    _Config(request)


def add(request: Request) -> Result:
    """Connect the container; what was made is taken back if a step fails."""
    config = _Config(request)
    with (
        request.sandbox() as sandbox,
        route.open_route() as host,
        route.open_route(sandbox.fd) as inside,
        Undo() as undo,
    ):
        links.refuse_taken(inside, request.ifname)
        result = Result()
        if ipam.type_of(request) and not ipam.comes_late(request):
            result = ipam.add(request)
            undo.add("release the addresses", lambda: ipam.forward(request, "DEL"))
        bridge = _ensure_bridge(host, config)
        gateway = bridge
        if config.gateway and not ipam.comes_late(request):
            gateway = config.port.gateway_link(host, bridge)
            _make_gateway(host, gateway, config, result)
        name = links.host_name(request)
        undo.add("delete the pair", lambda: links.delete_on_host(name))
        _make_pair(request, host, inside, config, bridge, sandbox.fd, name)
        link = route.link(inside, request.ifname)
        port = route.link(host, name)
        if link is None or port is None:
            raise CNIError(INTERNAL, f"the pair {name}, {request.ifname} went away while it was set up")
        if ipam.comes_late(request):
            inside.request(route.set_link(route.Change().up(), f"{request.ifname} (up)", link.index))
            _wait_for_port(host, name)
            result = ipam.add(request)
            undo.add("release the addresses", lambda: ipam.forward(request, "DEL"))
        ipam.own_dns(request, result)
        result.interfaces = [
            {"name": config.bridge, "mac": bridge.mac, "mtu": bridge.mtu},
            {"name": name, "mac": port.mac, "mtu": port.mtu},
            {"name": request.ifname, "mac": link.mac, "mtu": link.mtu, "sandbox": request.netns},
        ]
        if gateway is not bridge:
            result.interfaces.append({"name": gateway.name, "mac": gateway.mac, "mtu": gateway.mtu})
        for ip in result.ips:
            ip["interface"] = 2
        config.port.set(host, bridge, port, request, link.mac)
        undo.add("drop the spoof check", lambda: config.port.unset(request))
        if not config.disabled:
            with doing(f"configure {request.ifname}"):
                links.prepare(sandbox.fd, request.ifname, result, dad=config.dad)
                links.configure(inside, link.index, result, 2, dad=config.dad)
        if config.masquerade:
            undo.add("stop masquerading", lambda: links.unmasquerade(request, result))
            links.masquerade(request, result)
        if not config.disabled:
            _wait_for_port(host, name)
    return result


def _ensure_bridge(host: Socket, config: _Config) -> Link:
    """The bridge, made if it isn't there."""
    found = route.link(host, config.bridge)
    if found is None:
        # A bridge whose address nobody set takes the lowest of its ports', which changes under its neighbours.
        change = route.Change().name(config.bridge).mtu(config.mtu).mac(links.random_mac()).up()
        host.request(route.new_link(change.kind("bridge"), config.bridge), accept=(EEXIST,))
        links.write_sysctl(f"net/ipv6/conf/{config.bridge}/accept_ra", "0", missing_ok=True)
        links.use_link_local_at_once(config.bridge)
        found = route.link(host, config.bridge)
    if found is None or found.kind != "bridge":
        raise CNIError(INTERNAL, f"{config.bridge!r} already exists but is not a bridge")
    if not found.up or config.promiscuous:
        change = route.Change().up()
        if config.promiscuous:
            change.flag(route.IFF_PROMISC)
        host.request(route.set_link(change, config.bridge, found.index))
    return found


def _make_gateway(host: Socket, link: Link, config: _Config, result: Result) -> None:
    """Give the link the gateway's addresses; the result's addresses name them, and default routes lead there."""
    wanted: list[Address] = []
    for ip in result.ips:
        family, data, prefix = parse_cidr(ip["address"])
        if "gateway" not in ip:
            first = number(network_of((family, data, prefix))[1]) + 1
            ip["gateway"] = cidr_text((family, from_number(first, len(data)), prefix)).partition("/")[0]
        wanted.append((family, parse_ip(ip["gateway"])[1], prefix))
    if config.default_gateway:
        links.add_default_routes(result)
    have = [a.address for a in route.addresses(host, link.index)]
    for address in wanted:
        if address in have:
            continue
        for other in have:
            if other in wanted or not _conflict(address, other):
                continue
            if not config.force_address:
                raise CNIError(
                    INTERNAL,
                    f"{link.name!r} already has an IP address different from {cidr_text(address)}",
                    f"it has {cidr_text(other)}; forceAddress would replace it",
                )
            host.request(route.delete_address(link.index, other), accept=(99,))
        if address[0] == route.AF_INET6:
            links.write_sysctl(f"net/ipv6/conf/{link.name}/disable_ipv6", "0", missing_ok=True)
        flags = route.IFA_F_NODAD if address[0] == route.AF_INET6 else 0
        host.request(route.new_address(link.index, address, flags=flags), accept=(EEXIST,))
    links.enable_forwarding(links.families(result))


def _conflict(address: Address, other: Address) -> bool:
    from ocirt.cni.address import overlap

    return address[0] == other[0] and (address[0] == route.AF_INET or overlap(address, other))


def _make_pair(
    request: Request, host: Socket, inside: Socket, config: _Config, bridge: Link, netns: int, name: str
) -> None:
    """One message makes both ends where they belong, with their names: nothing to move or rename."""
    mine = links.ALIAS + links.owner(request).comment
    mtu = config.mtu or bridge.mtu
    change = route.Change().name(name).mtu(mtu).master(bridge.index).up()
    peer = route.Change().name(request.ifname).mtu(mtu).mac(config.mac).netns(netns)
    pair = route.veth(change, peer, f"{name} (peer {request.ifname})")
    try:
        host.request(pair)
    except Error as error:
        reason = links.taken(error, inside, request.ifname)
        if reason is not error or error.errno != EEXIST:
            raise reason from error
        # left by an ADD of this same attachment that was killed
        host.request(route.delete_link(name))
        host.request(pair)
    host.request(route.set_link(route.Change().alias(mine), f"{name} (alias)", route.index_of(host, name)))


def _wait_for_port(host: Socket, name: str) -> None:
    """Until the bridge forwards to the port: the kernel learns of the carrier in the background."""
    delay = 0.0002
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        link = route.link(host, name)
        if link is not None and link.operstate == route.OPER_UP:
            return
        time.sleep(delay)
        delay = min(delay * 2, 0.05)
    raise CNIError(INTERNAL, f"bridge port in error state: {name} doesn't come up")


def delete(request: Request) -> None:
    """Take back what the ids alone say, then what the namespace still has."""
    config = _Config(request)

    def delete_pair() -> None:
        if not links.delete_on_host(links.host_name(request), request.sockets):
            links.delete_inside(request, "veth")

    def unmasquerade() -> None:
        if config.masquerade:
            links.unmasquerade(request, request.previous)

    # rules first, so that the kernel is through with them when the pair is gone; the address last, so that who gets
    # it next doesn't meet it
    run_all(unmasquerade, lambda: config.port.unset(request), delete_pair, lambda: ipam.forward(request))


def check(request: Request) -> None:
    """Is everything as `request.previous` says?"""
    config = _Config(request)
    ipam.forward(request)
    result = request.previous
    assert result is not None
    with route.open_route() as host:
        bridge = route.link(host, config.bridge)
        if bridge is None or bridge.kind != "bridge":
            raise CNIError(INTERNAL, f"bridge {config.bridge} does not exist")
        if config.promiscuous and not bridge.promiscuity:
            raise CNIError(INTERNAL, f"bridge {config.bridge} is not in promiscuous mode")
        with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside:
            link = route.link(inside, request.ifname)
            if not config.disabled:
                link = links.check_interface(request, inside, result)
        port = route.link(host, index=link.peer) if link is not None else None
        if port is None or port.master != bridge.index:
            raise CNIError(INTERNAL, f"interface {request.ifname} has no port in bridge {config.bridge}")
        config.port.check(port)
    if config.masquerade and config.masquerade_backend != "iptables":
        _check_masquerade(request, result)


def _check_masquerade(request: Request, result: Result) -> None:
    from ocirt.linux import netlink_nft

    with request.nft() as nft:
        for ip in result.container_ips(request.ifname):
            family, data, _ = parse_cidr(ip["address"])
            if netlink_nft.element(nft, family, table.NAME, "outgoing", netlink_nft.Element(data)) is None:
                raise CNIError(INTERNAL, f"{ip['address']} is not masqueraded")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Take back addresses, pairs and rules of this network that belong to no valid attachment."""
    config = _Config(request)
    belongs = table.of_network(request.network)
    keep = frozenset(table.Owner(request.network, *pair).comment for pair in valid)

    run_all(
        lambda: ipam.forward(request),
        lambda: links.delete_stale(belongs, keep),
        lambda: config.port.collect(belongs, keep),
        lambda: links.collect_masquerading(request, belongs, keep),
    )


def status(request: Request) -> None:
    """CNIError if ADD can't work: an interface in the bridge's place, no nftables, an exhausted pool."""
    config = _Config(request)
    with route.open_route() as host:
        bridge = route.link(host, config.bridge)
        if bridge is not None and bridge.kind != "bridge":
            raise CNIError(NOT_AVAILABLE, f"{config.bridge!r} already exists but is not a bridge")
        if bridge is not None and not bridge.up:
            raise CNIError(LIMITED_CONNECTIVITY, f"bridge {config.bridge} is down")
        if bridge is not None:
            config.port.check_kernel(bridge)
    if config.masquerade and config.masquerade_backend != "iptables":
        _check_nftables(request)
    ipam.forward(request)


def _check_nftables(request: Request) -> None:
    from ocirt.linux.netlink_nft import IP, has_table

    try:
        with request.nft() as nft:
            has_table(nft, IP, table.NAME)
    except Error as error:
        raise CNIError(NOT_AVAILABLE, "the kernel has no nftables", str(error)) from error

"""ptp: a pair of virtual interfaces without a bridge; the host routes to each container by itself."""

from __future__ import annotations

from ocirt.cni import protocol, table
from ocirt.cni.address import network_of, parse_cidr, parse_ip
from ocirt.cni.plugins import ipam, links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, VERSIONS, CNIError
from ocirt.cni.request import run_all
from ocirt.cni.result import Result
from ocirt.errors import Error, Undo, doing
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cni.request import Request
    from ocirt.linux.netlink import Message, Socket
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]


def add(request: Request) -> Result:
    """Make the pair, the container's addresses and routes, and the host's route to it."""
    mtu = links.wanted_mtu(request)
    masquerade = protocol.truth(request.config, "ipMasq")
    links.masquerade_backend(request)
    with (
        request.sandbox() as sandbox,
        route.open_route() as host,
        route.open_route(sandbox.fd) as inside,
        Undo() as undo,
    ):
        links.refuse_taken(inside, request.ifname)
        result = ipam.add(request)
        undo.add("release the addresses", lambda: ipam.forward(request, "DEL"))
        if any("gateway" not in ip for ip in result.ips):
            raise CNIError(INVALID_CONFIG, "ptp needs a gateway for each address", "from the IPAM plugin")
        ipam.own_dns(request, result)
        links.enable_forwarding(links.families(result))
        name = links.host_name(request)
        undo.add("delete the pair", lambda: links.delete_on_host(name))
        _make_pair(request, host, inside, mtu, sandbox.fd, name)
        links.use_link_local_at_once(name)
        near, far = route.link(inside, request.ifname), route.link(host, name)
        if near is None or far is None:
            raise CNIError(INTERNAL, f"the pair {name}, {request.ifname} went away while it was set up")
        result.interfaces = [
            {"name": name, "mac": far.mac, "mtu": far.mtu},
            {"name": request.ifname, "mac": near.mac, "mtu": near.mtu, "sandbox": request.netns},
        ]
        for ip in result.ips:
            ip["interface"] = 1
        with doing(f"configure {request.ifname}"):
            links.prepare(sandbox.fd, request.ifname, result)
            inside.request(*_inside(result, near))
        host.request(*_on_host(result, far), accept=(EEXIST,))
        if masquerade:
            undo.add("stop masquerading", lambda: links.unmasquerade(request, result))
            links.masquerade(request, result)
    return result


def _make_pair(request: Request, host: Socket, inside: Socket, mtu: int, netns: int, name: str) -> None:
    change = route.Change().name(name).mtu(mtu).up()
    peer = route.Change().name(request.ifname).mtu(mtu).mac(request.wanted_mac()).netns(netns)
    pair = route.veth(change, peer, f"{name} (peer {request.ifname})")
    try:
        host.request(pair)
    except Error as error:
        reason = links.taken(error, inside, request.ifname)
        if reason is not error or error.errno != EEXIST:
            raise reason from error
        host.request(route.delete_link(name))  # left by an ADD of this attachment that was killed
        host.request(pair)
    mine = links.ALIAS + links.owner(request).comment
    host.request(route.set_link(route.Change().alias(mine), f"{name} (alias)", route.index_of(host, name)))


def _inside(result: Result, link: Link) -> list[Message]:
    """Addresses; the gateway on the link itself; the rest of the subnet through the gateway; the result's routes."""
    messages: list[Message] = []
    for ip in result.ips:
        address = parse_cidr(ip["address"])
        flags = route.IFA_F_NOPREFIXROUTE
        if address[0] == route.AF_INET6:
            flags |= route.IFA_F_NODAD
        messages.append(route.new_address(link.index, address, flags=flags))
    messages.append(route.set_link(route.Change().up(), f"{link.name} (up)", link.index))
    for ip in result.ips:
        family, data, prefix = parse_cidr(ip["address"])
        gateway = parse_ip(ip["gateway"])[1]
        bits = len(data) * 8
        direct = route.Route((family, gateway, bits), b"", link.index)
        direct.source = data
        messages.append(route.new_route(direct, replace=True))
        if prefix < bits:
            subnet = route.Route(network_of((family, data, prefix)), gateway, link.index)
            subnet.source = data
            messages.append(route.new_route(subnet, replace=True))
    messages += [route.new_route(r, replace=True) for r in links.routes_of(result, link.index)]
    return messages


def _on_host(result: Result, link: Link) -> list[Message]:
    messages: list[Message] = []
    for ip in result.ips:
        family, data, _ = parse_cidr(ip["address"])
        bits = len(data) * 8
        flags = route.IFA_F_NODAD if family == route.AF_INET6 else 0
        messages.append(route.new_address(link.index, (family, parse_ip(ip["gateway"])[1], bits), flags=flags))
        messages.append(route.new_route(route.Route((family, data, bits), b"", link.index), replace=True))
    return messages


def delete(request: Request) -> None:
    """Take back what the ids alone say, then what the namespace still has."""

    def delete_pair() -> None:
        if not links.delete_on_host(links.host_name(request), request.sockets):
            links.delete_inside(request, "veth")

    def drop_rules() -> None:
        if protocol.truth(request.config, "ipMasq"):
            links.unmasquerade(request, request.previous)

    run_all(drop_rules, delete_pair, lambda: ipam.forward(request))  # in the order of the bridge plugin


def check(request: Request) -> None:
    """Is everything as `request.previous` says?"""
    ipam.forward(request)
    assert request.previous is not None
    with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside, route.open_route() as host:
        link = links.check_interface(request, inside, request.previous)
        far = route.link(host, index=link.peer)
        if far is None:
            raise CNIError(INTERNAL, f"interface {request.ifname} has no other end on the host")
        there = {r.destination for r in route.routes(host) if r.index == far.index}
        for ip in request.previous.container_ips(request.ifname):
            family, data, _ = parse_cidr(ip["address"])
            if (family, data, len(data) * 8) not in there:
                raise CNIError(INTERNAL, f"the host has no route to {ip['address']}")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Take back addresses, pairs and rules of this network that belong to no valid attachment."""
    belongs = table.of_network(request.network)
    keep = frozenset(table.Owner(request.network, *pair).comment for pair in valid)

    run_all(
        lambda: ipam.forward(request),
        lambda: links.delete_stale(belongs, keep),
        lambda: links.collect_masquerading(request, belongs, keep),
    )


def status(request: Request) -> None:
    """CNIError if the IPAM plugin can't work."""
    ipam.forward(request)

"""What the plugins that make an interface share: names, addresses, routes, undoing."""

from __future__ import annotations

import os
import time

from ocirt.cni import apart, protocol, table
from ocirt.cni.address import parse_cidr, parse_ip
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, CNIError
from ocirt.cni.table import Owner
from ocirt.errors import Error, doing
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST, ENODEV, Inside, Message, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ocirt.cni.request import Request, Sockets
    from ocirt.cni.result import Result
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

#: How an interface on the host says whose it is, so that GC finds it without any file.
ALIAS = "ocirt:"

#: IPv6 gives routes 1024 by itself
_LATER_METRIC = 2048


def owner(request: Request) -> Owner:
    """The attachment, as comments of nftables elements and aliases of interfaces name it."""
    return Owner(request.network, request.container, request.ifname)


def host_name(of: Request | Owner, prefix: str = "veth") -> str:
    """The host's end of the attachment's pair.

    Made from the ids alone: DEL finds it when namespace, cache and result are
    gone, and a second ADD of the same attachment can't leave a stale one.
    """
    from zlib import adler32, crc32

    data = f"{of.network}/{of.container}/{of.ifname}".encode()
    return f"{prefix}{crc32(data):08x}{adler32(data) & 0xFFF:03x}"


CHAIN = "must be the name of a chain of iptables: 1 to 28 characters, no spaces"


def is_chain(name: str) -> bool:
    """May a chain of iptables have this name?"""
    return (
        name.isascii()
        and name.isprintable()
        and 0 < len(name) <= 28
        and not set(name) & set(" \"'\\")
        and name[0] != "-"
    )


def random_mac() -> str:
    """A random hardware address, locally administered."""
    data = bytearray(os.urandom(6))
    data[0] = data[0] & 0xFE | 0x02
    return data.hex(":")


def write_sysctl(path: str, value: str, *, missing_ok: bool = False) -> None:
    """Write /proc/sys/PATH in the namespace that the thread is in, unless it has the value."""
    try:
        fd = os.open(f"/proc/sys/{path}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if missing_ok and error.errno in (2, 20):
            return
        raise CNIError(INTERNAL, f"could not set sysctl {path}", error.strerror or "") from error
    try:
        if os.read(fd, 4096).decode().strip() != value:
            os.pwrite(fd, value.encode(), 0)
    except OSError as error:
        raise CNIError(INTERNAL, f"could not set sysctl {path} to {value!r}", error.strerror or "") from error
    finally:
        os.close(fd)


def read_sysctl(path: str) -> str:
    """/proc/sys/PATH in the namespace that the thread is in; raises CNIError."""
    try:
        with open(f"/proc/sys/{path}", "rb", buffering=0) as file:
            return file.read(4096).decode().strip()
    except OSError as error:
        raise CNIError(INTERNAL, f"could not read sysctl {path}", error.strerror or "") from error


def use_link_local_at_once(name: str) -> None:
    """Have the host's interface look for no duplicate of its link-local address, before it has a carrier.

    While it does, the kernel asks for no neighbour behind the interface on
    behalf of others: what is forwarded to the first container of a bridge, or
    to any of ptp's, is lost for a second or two.
    """
    write_sysctl(f"net/ipv6/conf/{name}/accept_dad", "0", missing_ok=True)


def enable_forwarding(families: Iterable[int]) -> None:
    """Let the host forward packets of these address families."""
    for family in families:
        if family == route.AF_INET:
            write_sysctl("net/ipv4/ip_forward", "1")
        elif read_sysctl("net/ipv6/conf/all/forwarding") != "1":
            _go_on_accepting_routers()
            write_sysctl("net/ipv6/conf/all/forwarding", "1")


def _go_on_accepting_routers() -> None:
    """A host that forwards doesn't listen to routers any more, and would lose its own address and default route.

    accept_ra 2 is: listen all the same. Interfaces that don't listen stay as they are.
    """
    directory = "/proc/sys/net/ipv6/conf"
    for name in os.listdir(directory):
        if name in ("all", "lo"):
            continue
        try:
            if read_sysctl(f"net/ipv6/conf/{name}/accept_ra") == "1":
                write_sysctl(f"net/ipv6/conf/{name}/accept_ra", "2")
        except CNIError:
            continue  # the interface is gone


def families(result: Result) -> set[int]:
    """The address families of the result's addresses."""
    return {route.AF_INET6 if ":" in ip["address"] else route.AF_INET for ip in result.ips}


def prepare(netns: int, ifname: str, result: Result, *, dad: bool = False) -> None:
    """Set the sysctls of an interface before it goes up: announce addresses, IPv6 on and without delay."""
    with Inside(netns):
        write_sysctl(f"net/ipv4/conf/{ifname}/arp_notify", "1", missing_ok=True)
        if route.AF_INET6 not in families(result):
            return
        for name in ("lo", ifname):
            write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "0", missing_ok=True)
        own = f"net/ipv6/conf/{ifname}"
        write_sysctl(f"{own}/accept_dad", "1" if dad else "0", missing_ok=True)
        if dad:
            write_sysctl(f"{own}/enhanced_dad", "1", missing_ok=True)
        write_sysctl(f"{own}/ndisc_notify", "1", missing_ok=True)
        write_sysctl(f"{own}/keep_addr_on_down", "1", missing_ok=True)


def configure(inside: Socket, index: int, result: Result, interface: int, *, dad: bool = False) -> None:
    """Give the link `index` the result's addresses for `interface`, set it up, and add the routes: one datagram."""
    messages: list[Message] = []
    for ip in result.ips:
        if ip.get("interface", interface) == interface:
            address = parse_cidr(ip["address"])
            flags = route.IFA_F_NODAD if address[0] == route.AF_INET6 and not dad else 0
            messages.append(route.new_address(index, address, flags=flags))
    messages.append(route.set_link(route.Change().up(), "(up)", index))
    messages += [route.new_route(r) for r in _after_others(inside, routes_of(result, index), index)]
    inside.request(*messages)
    if dad:
        wait_for_dad(inside, index)


_DAD_SECONDS = 5.0


def configure_only(request: Request, netns: int, inside: Socket, link: Link, result: Result) -> None:
    """Give the addresses to the one interface that the plugin has made, and tell of it in the result."""
    result.interfaces = [{"name": request.ifname, "mac": link.mac, "mtu": link.mtu, "sandbox": request.netns}]
    for ip in result.ips:
        ip["interface"] = 0
    with doing(f"configure {request.ifname}"):
        prepare(netns, request.ifname, result)
        configure(inside, link.index, result, 0)


def wait_for_dad(inside: Socket, index: int) -> None:
    """Until the kernel has found the link's IPv6 addresses to be nobody else's; CNIError for one that is."""
    end = time.monotonic() + _DAD_SECONDS
    while True:
        found = [a for a in route.addresses(inside, index) if a.address[0] == route.AF_INET6]
        for a in found:
            if a.flags & route.IFA_F_DADFAILED:
                raise CNIError(INTERNAL, f"another host on the network has the address {route.show(a.address)}")
        if not any(a.flags & route.IFA_F_TENTATIVE for a in found):
            return
        if time.monotonic() > end:
            raise CNIError(INTERNAL, f"duplicate address detection isn't through after {_DAD_SECONDS:.0f} s")
        time.sleep(0.02)


def _after_others(inside: Socket, routes: list[route.Route], index: int) -> list[route.Route]:
    """Give default routes a metric if another network's is there: that one goes on to be used."""
    default = [r for r in routes if r.destination[2] == 0 and not r.priority and not r.table]
    if default:
        taken = {r.destination[0] for r in route.routes(inside) if r.destination[2] == 0 and r.index != index}
        for r in default:
            if r.destination[0] in taken:
                r.priority = _LATER_METRIC + index
    return routes


def routes_of(result: Result, index: int) -> list[route.Route]:
    """The result's routes out of the link `index`; one without a gateway takes that of its family's address."""
    gateways: dict[int, bytes] = {}
    for ip in result.ips:
        if "gateway" in ip:
            family, data = parse_ip(ip["gateway"])
            gateways.setdefault(family, data)
    made: list[route.Route] = []
    for item in result.routes:
        destination = parse_cidr(item["dst"])
        scope = item.get("scope")
        gateway = parse_ip(item["gw"])[1] if "gw" in item else gateways.get(destination[0], b"")
        if scope in (route.RT_SCOPE_LINK, route.RT_SCOPE_HOST) and "gw" not in item:
            gateway = b""  # on the link itself
        one = route.Route(destination, gateway, index)
        one.mtu, one.advmss, one.priority, one.table = (
            int(item.get(k, 0)) for k in ("mtu", "advmss", "priority", "table")
        )
        one.scope = -1 if scope is None else int(scope)
        made.append(one)
    return made


def add_default_routes(result: Result) -> None:
    """isDefaultGateway: a default route for each family that has none yet, with a gateway or without."""
    for ip in result.ips:
        if "gateway" not in ip:
            continue
        default = "::/0" if ":" in ip["address"] else "0.0.0.0/0"
        if not any(parse_cidr(r["dst"])[2] == 0 and (":" in r["dst"]) == (":" in default) for r in result.routes):
            result.routes.append({"dst": default, "gw": ip["gateway"]})


def masquerade_backend(request: Request) -> str:
    """ipMasqBackend, nftables without it."""
    backend = protocol.string(request.config, "ipMasqBackend") or "nftables"
    if backend not in ("nftables", "iptables"):
        raise CNIError(INVALID_CONFIG, f"unknown ipMasqBackend {backend!r}", "must be nftables or iptables")
    return backend


def masquerade(request: Request, result: Result) -> None:
    """Give what leaves the network of the result's addresses the host's address."""
    if masquerade_backend(request) == "iptables":
        from ocirt.cni import iptables

        iptables.masquerade(owner(request), [ip["address"] for ip in result.ips])
        return
    with request.nft() as nft:
        for ip in result.ips:
            table.add_address(nft, "outgoing", parse_cidr(ip["address"]), owner(request))


def unmasquerade(request: Request, result: Result | None) -> None:
    """Stop it."""
    mine = owner(request)
    if masquerade_backend(request) == "iptables":
        from ocirt.cni import iptables

        iptables.unmasquerade(mine)
        return
    known = result.container_ips(request.ifname) if result and request.complete else []
    with request.nft() as nft:
        dropped = [table.drop_address(nft, "outgoing", parse_cidr(ip["address"]), mine) for ip in known]
        if not dropped or not all(dropped):
            table.drop_owned(nft, ("outgoing",), lambda comment: comment == mine.comment)


def collect_masquerading(request: Request, belongs: Callable[[str], bool], keep: frozenset[str]) -> None:
    """Stop it for attachments of the network that aren't in `keep`."""
    with request.nft() as nft:
        table.drop_owned(nft, ("outgoing",), lambda comment: belongs(comment) and comment not in keep)
    if masquerade_backend(request) == "iptables":
        from ocirt.cni import iptables

        iptables.collect(belongs, keep)


def delete_inside(request: Request, kind: str) -> None:
    """Delete the container's interface if the namespace and the interface are there and it is of this kind."""
    sandbox = request.sandbox_if_there()
    if sandbox is None:
        return
    with sandbox, route.open_route(sandbox.fd) as inside:
        found = route.link(inside, request.ifname)
        if found is not None and found.kind == kind:
            inside.request(route.delete_link(index=found.index), accept=(ENODEV,))


def delete_on_host(name: str, sockets: Sockets | None = None) -> bool:
    """Delete an interface of the host; False if there is none. `sockets`: the chain's, closed soon after."""
    with route.open_route() as host:
        found = route.link(host, name)
        if found is None:
            return False
        apart.delete(host, found, sockets.descriptors() if sockets else ())
        return True


def delete_stale(belongs: Any, keep: frozenset[str]) -> None:
    """Delete the host's interfaces whose alias `belongs` to the network and isn't in `keep`, all at one stroke.

    A group is deleted in the time of one link: most of it is the kernel
    waiting until nobody looks at them any more.
    """
    with route.open_route() as host:
        stale = [
            link
            for link in route.links(host)
            if link.alias.startswith(ALIAS)
            and belongs(link.alias[len(ALIAS) :])
            and link.alias[len(ALIAS) :] not in keep
        ]
        if not stale:
            return
        group = int.from_bytes(os.urandom(4), "little") | 0x40000000
        host.request(
            *(
                route.set_link(
                    route.Change().attribute(u32(route.IFLA_GROUP, group)), f"{link.name} (group)", link.index
                )
                for link in stale
            ),
            accept=(ENODEV,),
        )
        everything = route.Change().attribute(u32(route.IFLA_GROUP, group)).pack()
        host.request(Message(route.RTM_DELLINK, 0, everything, "RTM_DELLINK (group)"), accept=(ENODEV,))


def refuse_taken(inside: Socket, ifname: str) -> None:
    """CNIError if the container has an interface of the name: asked before anything is made, so that nothing is undone.

    Whoever attaches an attachment twice must not lose what the first time made.
    """
    if route.link(inside, ifname) is not None:
        raise CNIError(INTERNAL, f"container interface name {ifname!r} already exists")


def taken(error: Error, inside: Socket, ifname: str) -> Error:
    """What to raise when making a pair failed: an interface of the name in the container is the caller's mistake."""
    if error.errno == EEXIST and route.link(inside, ifname) is not None:
        return CNIError(INTERNAL, f"container interface name {ifname!r} already exists")
    return error


def check_interface(request: Request, inside: Socket, result: Result) -> Link:
    """CHECK: the container's interface with its hardware address, addresses and routes, as in `result`."""
    link = route.link(inside, request.ifname)
    if link is None:
        raise CNIError(INTERNAL, f"interface {request.ifname} does not exist in the container")
    if not link.up:
        raise CNIError(INTERNAL, f"interface {request.ifname} is down")
    for item in result.interfaces:
        if item["name"] == request.ifname and item.get("sandbox"):
            if item.get("mac") and item["mac"].lower() != link.mac:
                raise CNIError(INTERNAL, f"interface {request.ifname} has MAC {link.mac}, expected {item['mac']}")
            break
    else:
        raise CNIError(INVALID_CONFIG, f"interface {request.ifname} is not in prevResult")
    have = {a.address for a in route.addresses(inside, link.index)}
    for ip in result.container_ips(request.ifname):
        if parse_cidr(ip["address"]) not in have:
            raise CNIError(INTERNAL, f"failed to find {ip['address']} on interface {request.ifname}")
    there = [(r.destination, r.gateway) for r in route.routes(inside)]
    for wanted in routes_of(result, link.index):
        if not any(d == wanted.destination and g in (wanted.gateway, b"") for d, g in there):
            raise CNIError(INTERNAL, f"expected route {route.show(wanted.destination)} not found in the container")
    return link


def wanted_mtu(request: Request) -> int:
    """`mtu` of the configuration, 0 without it."""
    mtu = protocol.integer(request.config, "mtu")
    if mtu < 0 or mtu > 65535:
        raise CNIError(INVALID_CONFIG, f"invalid MTU {mtu}", "must be 0 to 65535")
    return mtu

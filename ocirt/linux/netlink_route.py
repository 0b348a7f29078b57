"""rtnetlink: links, addresses, routes, neighbours (rtnetlink(7)).

Functions with the name of a thing build the message that makes, changes or
takes it away; several of them go to `Socket.request` as one datagram. The
functions that read (`link`, `links`, `addresses`, `routes`) ask at once.
Addresses are (family, bytes of the address, prefix length).
"""

from __future__ import annotations

import struct

from ocirt.errors import Error
from ocirt.linux.netlink import (
    ENODEV,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    ROUTE,
    Message,
    Socket,
    attribute,
    attributes,
    c_string,
    host_u32,
    nest,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

IFF_UP, IFF_BROADCAST, IFF_LOOPBACK, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x2, 0x8, 0x100, 0x200

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_NET_NS_PID, IFLA_IFALIAS, IFLA_GROUP = 13, 16, 18, 19, 20, 27
IFLA_GROUP, IFLA_NET_NS_FD, IFLA_PROMISCUITY, IFLA_LINK_NETNSID = 27, 28, 30, 37
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
_VETH_INFO_PEER = 1

IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO, IFA_RT_PRIORITY = 1, 2, 3, 4, 8, 11, 9
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x40, 0x80, 0x200
IFA_F_MANAGETEMPADDR = 0x100

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 254, 0, 253, 254
_RTPROT_BOOT, _RTN_UNICAST = 3, 1

NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT, NUD_NOARP, NTF_SELF = 0x80, 0x40, 0x02

OPER_UP = 6

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")

Address = tuple[int, bytes, int]


def open_route(netns: int | None = None) -> Socket:
    """A rtnetlink socket in the namespace `netns` (a descriptor) or the caller's."""
    return Socket(ROUTE, netns)


class Link:
    """A network interface as the kernel describes it.

    kind   of rtnetlink: `veth`, `bridge`, `macvlan`, … ; "" for hardware
    mac    text, "" if the interface has none
    peer   index of the other end (veth) or of the device below (macvlan), 0 if none
    """

    __slots__ = ("alias", "data", "flags", "index", "kind", "mac", "master", "mtu", "name", "operstate", "peer",
                 "promiscuity", "slave", "txqlen")  # fmt: skip

    def __init__(self, payload: bytes) -> None:
        _, _, index, flags, _ = _IFINFO.unpack_from(payload)
        self.index: int = index
        self.flags: int = flags
        found = attributes(payload, 16)
        info = attributes(found.get(IFLA_LINKINFO, b""))
        self.name = c_string(found.get(IFLA_IFNAME, b""))
        self.alias = c_string(found.get(IFLA_IFALIAS, b""))
        self.mac = mac_text(found.get(IFLA_ADDRESS, b""))
        self.kind = c_string(info.get(IFLA_INFO_KIND, b""))
        self.data = attributes(info.get(IFLA_INFO_DATA, b""))
        self.slave = attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))
        self.mtu, self.master, self.peer, self.txqlen, self.promiscuity = (
            host_u32(found[a]) if a in found else 0
            for a in (IFLA_MTU, IFLA_MASTER, IFLA_LINK, IFLA_TXQLEN, IFLA_PROMISCUITY)
        )
        self.operstate = found.get(IFLA_OPERSTATE, b"\0")[0]

    @property
    def up(self) -> bool:
        """Is it set up (administratively)?"""
        return bool(self.flags & IFF_UP)


def mac_text(data: bytes) -> str:
    """A hardware address as `02:42:…`."""
    return data.hex(":") if data.strip(b"\0") or len(data) == 6 else ""


def mac_bytes(value: str) -> bytes:
    """The bytes of `02:42:…`; raises ValueError for anything that isn't six of them."""
    data = bytes.fromhex(value.replace(":", "").replace("-", ""))
    if len(data) != 6:
        raise ValueError(value)
    return data


class Change:
    """The attributes and flags of a link message, filled by chaining: `Change().name("eth0").up()`."""

    __slots__ = ("_attributes", "flags", "mask")

    def __init__(self) -> None:
        self._attributes: list[bytes] = []
        self.flags = 0
        self.mask = 0

    def attribute(self, data: bytes) -> Self:
        """Add an attribute that is packed already."""
        self._attributes.append(data)
        return self

    def flag(self, flag: int, on: bool = True) -> Self:
        """Set or clear one IFF_ flag."""
        self.mask |= flag
        self.flags = self.flags | flag if on else self.flags & ~flag
        return self

    def up(self, on: bool = True) -> Self:
        """Set the link up, or down."""
        return self.flag(IFF_UP, on)

    def name(self, name: str) -> Self:
        """Name it so."""
        return self.attribute(text(IFLA_IFNAME, name))

    def mtu(self, mtu: int) -> Self:
        """Set the MTU; 0 leaves it."""
        return self.attribute(u32(IFLA_MTU, mtu)) if mtu else self

    def mac(self, mac: str) -> Self:
        """Set the hardware address; "" leaves it."""
        return self.attribute(attribute(IFLA_ADDRESS, mac_bytes(mac))) if mac else self

    def alias(self, alias: str) -> Self:
        """Set ifalias; "" removes it."""
        return self.attribute(attribute(IFLA_IFALIAS, alias.encode()))

    def master(self, index: int) -> Self:
        """Enslave it to the link `index`; 0 releases it."""
        return self.attribute(u32(IFLA_MASTER, index))

    def netns(self, fd: int) -> Self:
        """Move it to (or make it in) this network namespace."""
        return self.attribute(u32(IFLA_NET_NS_FD, fd))

    def kind(self, kind: str, *data: bytes) -> Self:
        """What kind of link to make, with the attributes of that kind."""
        info = [attribute(IFLA_INFO_KIND, kind.encode())]
        if data:
            info.append(nest(IFLA_INFO_DATA, *data))
        return self.attribute(nest(IFLA_LINKINFO, *info))

    def port(self, *data: bytes) -> Self:
        """Attributes of a bridge's port: IFLA_BRPORT_…"""
        return self.attribute(
            nest(IFLA_LINKINFO, attribute(IFLA_INFO_SLAVE_KIND, b"bridge"), nest(IFLA_INFO_SLAVE_DATA, *data))
        )

    def pack(self, index: int = 0) -> bytes:
        """ifinfomsg and the attributes."""
        return _IFINFO.pack(AF_UNSPEC, 0, index, self.flags, self.mask) + b"".join(self._attributes)


def new_link(change: Change, shown: str) -> Message:
    """Make a link; EEXIST if the name is taken."""
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, change.pack(), f"RTM_NEWLINK {shown}")


def set_link(change: Change, shown: str, index: int = 0) -> Message:
    """Change the link `index`, or, if that is 0, the one that the change's name says.

    RTM_NEWLINK without NLM_F_CREATE: the one message that changes both a link
    and its port of a bridge.
    """
    return Message(RTM_NEWLINK, 0, change.pack(index), f"RTM_NEWLINK {shown}")


def delete_link(name: str = "", index: int = 0) -> Message:
    """Delete the link of this name or index; ENODEV if there is none."""
    change = Change().name(name) if name else Change()
    return Message(RTM_DELLINK, 0, change.pack(index), f"RTM_DELLINK {name or index}")


def veth(change: Change, peer: Change, shown: str) -> Message:
    """Make a pair: this end by `change`, the other by `peer` (its namespace by `netns`)."""
    return new_link(change.kind("veth", attribute(_VETH_INFO_PEER, peer.pack())), shown)


def link(socket: Socket, name: str = "", index: int = 0) -> Link | None:
    """The link of this name or index, None if there is none."""
    change = Change().name(name) if name else Change()
    payload = socket.ask(Message(RTM_GETLINK, 0, change.pack(index), f"RTM_GETLINK {name or index}"))
    return Link(payload) if payload is not None else None


def index_of(socket: Socket, name: str) -> int:
    """The index of the link of this name; Error (ENODEV) if there is none."""
    found = link(socket, name)
    if found is None:
        raise Error(f"RTM_GETLINK {name}: no such device", ENODEV)
    return found.index


def links(socket: Socket) -> list[Link]:
    """Every link of the namespace."""
    return [Link(p) for p in socket.dump(Message(RTM_GETLINK, 0, Change().pack(), "RTM_GETLINK"))]


def new_address(
    index: int,
    address: Address,
    *,
    flags: int = 0,
    scope: int = 0,
    label: str = "",
    peer: bytes = b"",
    metric: int = 0,
    broadcast: bytes | None = None,
) -> Message:
    """Put an address on a link; EEXIST if it has it.

    Without `broadcast` (b"" for none) IPv4 gets the usual one, but for /31 and /32. IFA_F_NODAD in `flags`
    spares IPv6 the second of duplicate address detection. `peer` is the other
    end of a point-to-point link, `metric` that of the route to the prefix.
    """
    parts = [_address(index, address, flags, scope, peer)]
    family, data, prefix = address
    if broadcast is None and family == AF_INET and prefix < 31:
        broadcast = (int.from_bytes(data, "big") | (1 << (32 - prefix)) - 1).to_bytes(4, "big")
    if broadcast:
        parts.append(attribute(IFA_BROADCAST, broadcast))
    if label:
        parts.append(text(IFA_LABEL, label))
    if flags > 0xFF:
        parts.append(u32(IFA_FLAGS, flags))
    if metric:
        parts.append(u32(IFA_RT_PRIORITY, metric))
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, b"".join(parts), f"RTM_NEWADDR {show(address)}")


def delete_address(index: int, address: Address) -> Message:
    """Take an address from a link; EADDRNOTAVAIL if it hasn't it."""
    return Message(RTM_DELADDR, 0, _address(index, address, 0, 0, b""), f"RTM_DELADDR {show(address)}")


def _address(index: int, address: Address, flags: int, scope: int, peer: bytes) -> bytes:
    family, data, prefix = address
    return b"".join(
        (
            _IFADDR.pack(family, prefix, flags & 0xFF, scope, index),
            attribute(IFA_LOCAL, data),
            attribute(IFA_ADDRESS, peer or data),
        )
    )


class Assigned:
    """An address of a link: `address`, `flags` (IFA_F_…), `scope`, `index` of the link, `label` and the other end."""

    __slots__ = ("address", "broadcast", "flags", "index", "label", "peer", "priority", "protocol", "scope")

    def __init__(self, payload: bytes) -> None:
        family, prefix, flags, self.scope, self.index = _IFADDR.unpack_from(payload)
        found = attributes(payload, 8)
        data = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
        self.address: Address = (family, data, prefix)
        self.peer = found.get(IFA_ADDRESS, data)
        self.broadcast = found.get(IFA_BROADCAST, b"")
        self.flags = host_u32(found[IFA_FLAGS]) if IFA_FLAGS in found else flags
        self.label = c_string(found.get(IFA_LABEL, b""))
        self.priority = host_u32(found[IFA_RT_PRIORITY]) if IFA_RT_PRIORITY in found else 0
        self.protocol = found.get(IFA_PROTO, b"\0")[0]


def addresses(socket: Socket, index: int = 0) -> list[Assigned]:
    """The addresses of the link `index`, or of all."""
    payload = _IFADDR.pack(AF_UNSPEC, 0, 0, 0, index)
    found = [Assigned(p) for p in socket.dump(Message(RTM_GETADDR, 0, payload, "RTM_GETADDR"))]
    return [a for a in found if index in (0, a.index)]


class Route:
    """A route: `destination` (family, bytes, prefix length), gateway (bytes or b""), and the rest as numbers.

    scope -1 means the usual one: link without a gateway, universe with it.
    """

    __slots__ = ("advmss", "destination", "gateway", "index", "mtu", "priority", "protocol", "scope", "source",
                 "table")  # fmt: skip

    def __init__(self, destination: Address, gateway: bytes = b"", index: int = 0) -> None:
        self.destination = destination
        self.gateway = gateway
        self.index = index
        self.mtu = 0
        self.advmss = 0
        self.priority = 0
        self.table = 0
        self.scope = -1
        self.source = b""
        self.protocol = _RTPROT_BOOT


def new_route(route: Route, *, replace: bool = False) -> Message:
    """Add a route; EEXIST if there is one to this destination, unless it shall be replaced."""
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Message(RTM_NEWROUTE, flags, _route(route), f"RTM_NEWROUTE {_show_route(route)}")


def delete_route(route: Route) -> Message:
    """Remove a route; ESRCH if there is none."""
    return Message(RTM_DELROUTE, 0, _route(route), f"RTM_DELROUTE {_show_route(route)}")


def _route(route: Route) -> bytes:
    family, data, prefix = route.destination
    scope = route.scope
    if scope < 0:
        scope = RT_SCOPE_LINK if not route.gateway and family == AF_INET else RT_SCOPE_UNIVERSE
    table = route.table or RT_TABLE_MAIN
    parts = [_RTMSG.pack(family, prefix, 0, 0, table if table < 256 else 0, route.protocol, scope, _RTN_UNICAST, 0)]
    if prefix:
        parts.append(attribute(RTA_DST, data))
    if route.gateway:
        parts.append(attribute(RTA_GATEWAY, route.gateway))
    if route.source:
        parts.append(attribute(RTA_PREFSRC, route.source))
    for kind, value in ((RTA_OIF, route.index), (RTA_PRIORITY, route.priority)):
        if value:
            parts.append(u32(kind, value))
    if table > 255:
        parts.append(u32(RTA_TABLE, table))
    metrics = [u32(k, v) for k, v in ((_RTAX_MTU, route.mtu), (_RTAX_ADVMSS, route.advmss)) if v]
    if metrics:
        parts.append(nest(RTA_METRICS, *metrics))
    return b"".join(parts)


def routes(socket: Socket, family: int = AF_UNSPEC) -> list[Route]:
    """The unicast routes of all tables."""
    payload = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    found: list[Route] = []
    for data in socket.dump(Message(RTM_GETROUTE, 0, payload, "RTM_GETROUTE")):
        kind, prefix, _, _, table, protocol, scope, type_, _ = _RTMSG.unpack_from(data)
        if type_ != _RTN_UNICAST:
            continue
        attrs = attributes(data, 12)
        width = 4 if kind == AF_INET else 16
        route = Route((kind, attrs.get(RTA_DST, bytes(width)), prefix), attrs.get(RTA_GATEWAY, b""))
        route.index, route.priority = (host_u32(attrs[a]) if a in attrs else 0 for a in (RTA_OIF, RTA_PRIORITY))
        route.table = host_u32(attrs[RTA_TABLE]) if RTA_TABLE in attrs else table
        route.scope, route.protocol, route.source = scope, protocol, attrs.get(RTA_PREFSRC, b"")
        metrics = attributes(attrs.get(RTA_METRICS, b""))
        route.mtu, route.advmss = (host_u32(metrics[m]) if m in metrics else 0 for m in (_RTAX_MTU, _RTAX_ADVMSS))
        found.append(route)
    return found


def new_neighbour(
    index: int, destination: bytes, mac: str, *, family: int, flags: int = 0, state: int = NUD_PERMANENT
) -> Message:
    """Set a neighbour or (family AF_BRIDGE) an entry of a forwarding database, which may have several destinations."""
    append = family == AF_BRIDGE and mac == "00:00:00:00:00:00"
    how = 0x800 if append else NLM_F_REPLACE
    payload = _NDMSG.pack(family, index, state, flags, 0)
    payload += attribute(NDA_DST, destination) + attribute(NDA_LLADDR, mac_bytes(mac))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | how, payload, f"RTM_NEWNEIGH {mac}")


def delete_neighbour(index: int, destination: bytes, mac: str, *, family: int, flags: int = 0) -> Message:
    """Remove a neighbour or an entry of a forwarding database; ENOENT if there is none."""
    payload = _NDMSG.pack(family, index, 0, flags, 0)
    payload += attribute(NDA_DST, destination) + attribute(NDA_LLADDR, mac_bytes(mac))
    return Message(RTM_DELNEIGH, 0, payload, f"RTM_DELNEIGH {mac}")


def show(address: Address) -> str:
    """An address as text: `10.88.0.2/16`."""
    import _socket

    return f"{_socket.inet_ntop(address[0], address[1])}/{address[2]}"


def _show_route(route: Route) -> str:
    import _socket

    via = f" via {_socket.inet_ntop(route.destination[0], route.gateway)}" if route.gateway else ""
    return f"{show(route.destination)}{via}"

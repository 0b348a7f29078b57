"""The port of a container in a bridge: hairpin, isolation, VLANs, the check of source hardware addresses."""

from __future__ import annotations

import struct

from ocirt.cni import protocol, table
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, CNIError
from ocirt.errors import Error
from ocirt.linux import netlink_nft as nft
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST, ENOENT, Message, attribute, nest, u8, u16, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ocirt.cni.request import Request
    from ocirt.cni.result import Result
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

_SPOOFING = ("checked", "allowed")
_IFLA_AF_SPEC, _VLAN_INFO, _BR_VLAN_FILTERING = 26, 2, 7
_DEFAULT_PVID = 39  # IFLA_BR_VLAN_DEFAULT_PVID: kernels without VLANs don't tell it
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16
_IFLA_VLAN_ID, _SELF = 1, 2
_EOPNOTSUPP = 95
_NO_VLANS = "the kernel's bridges have no VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)"
_VLAN = struct.Struct("=HH")


class Port:
    """hairpinMode, portIsolation, macspoofchk, vlan, vlanTrunk, preserveDefaultVlan of the bridge plugin."""

    __slots__ = ("hairpin", "isolated", "keep_default", "spoof_check", "trunk", "vlan")

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.hairpin = protocol.truth(config, "hairpinMode")
        self.isolated = protocol.truth(config, "portIsolation")
        self.spoof_check = protocol.truth(config, "macspoofchk")
        self.keep_default = protocol.truth(config, "preserveDefaultVlan")
        self.vlan = protocol.integer(config, "vlan")
        if not 0 <= self.vlan <= 4094:
            raise CNIError(INVALID_CONFIG, f"invalid VLAN ID {self.vlan}", "must be 0 to 4094")
        self.trunk = [r for i, item in enumerate(protocol.array(config, "vlanTrunk")) for r in _ranges(item, i)]

    def set(self, host: Socket, bridge: Link, port: Link, request: Request, mac: str) -> None:
        """Set what the configuration asks for."""
        data: list[bytes] = []
        if self.hairpin:
            data.append(u8(route.IFLA_BRPORT_MODE, 1))
        if self.isolated:
            data.append(u8(route.IFLA_BRPORT_ISOLATED, 1))
        if data:
            host.request(route.set_link(route.Change().port(*data), f"{port.name} (port)", port.index))
        if self.vlan or self.trunk:
            self._set_vlans(host, bridge, port, self.trunk)
        if self.spoof_check:
            _check_source(port.name, mac, links.owner(request).comment)

    def gateway_link(self, host: Socket, bridge: Link) -> Link:
        """The interface of the host that has the gateway's addresses: the bridge, or with a VLAN one in that.

        It is `<bridge>.<vlan>`, as the reference plugin names its own, and
        stays as long as the bridge.
        """
        if not self.vlan:
            return bridge
        name = f"{bridge.name}.{self.vlan}"
        if not protocol.valid_ifname(name):
            raise CNIError(INVALID_CONFIG, f"{name!r} is too long for an interface", "the bridge needs a shorter name")
        if route.link(host, name) is None:
            self._make_gateway_link(host, bridge, name)
            links.write_sysctl(f"net/ipv6/conf/{name}/accept_ra", "0", missing_ok=True)
            links.use_link_local_at_once(name)
        found = route.link(host, name)
        if found is not None and found.kind == "vlan" and found.peer == bridge.index:
            host.request(
                _vlan(route.RTM_SETLINK, bridge, 0, self.vlan, own=True),
                route.set_link(route.Change().up(), f"{name} (up)", found.index),
            )
            return found
        port = route.link(host, index=found.peer) if found else None
        if found is None or port is None or port.master not in (0, bridge.index):
            raise CNIError(INTERNAL, f"{name!r} exists but does not lead into bridge {bridge.name}")
        host.request(
            route.set_link(route.Change().master(bridge.index).up(), f"{port.name} (port, up)", port.index),
            route.set_link(route.Change().up(), f"{name} (up)", found.index),
        )
        self._set_vlans(host, bridge, port, [])
        return found

    def _make_gateway_link(self, host: Socket, bridge: Link, name: str) -> None:
        """A VLAN interface, or on a kernel without (8021q) the reference plugin's way, a pair with a port in the VLAN.

        What comes through the pair is bridged before it is routed: with
        bridge-nf-call-iptables it is masqueraded too early, and lost.
        """
        change = route.Change().name(name).attribute(u32(route.IFLA_LINK, bridge.index)).up()
        try:
            host.request(route.new_link(change.kind("vlan", u16(_IFLA_VLAN_ID, self.vlan)), name), accept=(EEXIST,))
        except Error as error:
            if error.errno != _EOPNOTSUPP:
                raise
            peer = f"oc{bridge.index:x}v{self.vlan}"
            change = route.Change().name(name).mtu(bridge.mtu).mac(links.random_mac()).up()
            other = route.Change().name(peer).mtu(bridge.mtu)
            host.request(route.veth(change, other, f"{name} (peer {peer})"), accept=(EEXIST,))

    def _set_vlans(self, host: Socket, bridge: Link, port: Link, trunk: list[tuple[int, int]]) -> None:
        filtering = route.Change().kind("bridge", u8(_BR_VLAN_FILTERING, 1))
        try:
            host.request(route.set_link(filtering, f"{bridge.name} (vlan_filtering)", bridge.index))
        except Error as error:
            if error.errno != _EOPNOTSUPP:
                raise
            raise CNIError(NOT_AVAILABLE, _NO_VLANS, "vlan and vlanTrunk need it") from error
        messages: list[Message] = []
        if not self.keep_default:
            messages.append(_vlan(route.RTM_DELLINK, port, 0, 1))
        # a trunk without a native VLAN keeps 1 for what comes untagged
        messages.append(_vlan(route.RTM_SETLINK, port, _PVID | _UNTAGGED, self.vlan or 1))
        for first, last in trunk:
            messages.append(_vlan(route.RTM_SETLINK, port, 0, first, last))
        host.request(*messages, accept=(ENOENT,))

    def check(self, port: Link) -> None:
        """CNIError if the port isn't as the configuration says."""
        for on, kind, name in (
            (self.hairpin, route.IFLA_BRPORT_MODE, "hairpin mode"),
            (self.isolated, route.IFLA_BRPORT_ISOLATED, "isolation"),
        ):
            if on and port.slave.get(kind, b"\0")[:1] != b"\1":
                raise CNIError(INTERNAL, f"port {port.name} is without {name}")

    def check_kernel(self, bridge: Link) -> None:
        """CNIError (50) if VLANs are asked for and the kernel has none."""
        if (self.vlan or self.trunk) and _DEFAULT_PVID not in bridge.data:
            raise CNIError(NOT_AVAILABLE, _NO_VLANS, "vlan and vlanTrunk need it")

    def unset(self, request: Request) -> None:
        """Take back what isn't gone with the port itself."""
        if self.spoof_check:
            mine = links.owner(request).comment
            _drop(lambda comment: comment == mine)

    def collect(self, belongs: Callable[[str], bool], keep: frozenset[str]) -> None:
        """Take back what belongs to no valid attachment, also of the time when the check was on."""
        try:
            _drop(lambda comment: belongs(comment) and comment not in keep)
        except Error:
            if self.spoof_check:
                raise  # otherwise a kernel without these tables, which can have nothing


def _ranges(item: Any, index: int) -> list[tuple[int, int]]:
    """`{"id": n}`, `{"minID": a, "maxID": b}` or all three as [(first, last)]."""
    found = protocol.mapping(item) or {}
    made: list[tuple[int, int]] = []
    for first, last in (("minID", "maxID"), ("id", "id")):
        if any(protocol.get(found, key) is not None for key in (first, last)):
            made.append((protocol.integer(found, first), protocol.integer(found, last)))
    if not made or not all(1 <= first <= last <= 4094 for first, last in made):
        raise CNIError(
            INVALID_CONFIG,
            f"invalid vlanTrunk[{index}]: {item!r}",
            "must be {id}, {minID, maxID} or both, 1 to 4094, in order",
        )
    return made


def _vlan(type: int, port: Link, flags: int, first: int, last: int = 0, *, own: bool = False) -> Message:
    """Put a port, or the bridge's `own` end, into VLANs."""
    if last > first:
        infos = [
            attribute(_VLAN_INFO, _VLAN.pack(flags | _RANGE_BEGIN, first)),
            attribute(_VLAN_INFO, _VLAN.pack(flags | _RANGE_END, last)),
        ]
    else:
        infos = [attribute(_VLAN_INFO, _VLAN.pack(flags, first))]
    payload = struct.pack("=BxHiII", route.AF_BRIDGE, 0, port.index, 0, 0) + nest(
        _IFLA_AF_SPEC, *([u16(0, _SELF)] if own else []), *infos
    )
    return Message(type, 0, payload, f"RTM_SETLINK {port.name} (VLAN {first})")


def _static() -> list[Message]:
    """The bridge's table: frames from a checked port must bear a source address allowed there."""
    name = table.NAME
    load = nft.meta(nft.R0, nft.META_IIFNAME)
    source = nft.payload(nft.R0 + 4, nft.LINK, 6, 6)
    return [
        nft.table(nft.BRIDGE, name),
        nft.make_set(nft.BRIDGE, name, "checked", (nft.IFNAME,), id=1),
        nft.make_set(nft.BRIDGE, name, "allowed", (nft.IFNAME, nft.ETHER), id=2),
        nft.base_chain(nft.BRIDGE, name, "source", type="filter", hook=nft.PREROUTING, priority=nft.PRIORITY_RAW),
        nft.rule(
            nft.BRIDGE,
            name,
            "source",
            load,
            nft.lookup(nft.R0, "checked"),
            source,
            nft.lookup(nft.R0, "allowed", inverted=True),
            nft.verdict(nft.DROP),
        ),
    ]


def _check_source(port: str, mac: str, comment: str) -> None:
    name = port.encode().ljust(16, b"\0")
    messages = [
        *nft.add_elements(nft.BRIDGE, table.NAME, "checked", [nft.Element(name, comment=comment)]),
        *nft.add_elements(
            nft.BRIDGE, table.NAME, "allowed", [nft.Element(name + route.mac_bytes(mac) + b"\0\0", comment=comment)]
        ),
    ]
    with nft.open_nft() as socket:
        try:
            nft.commit(socket, messages)
        except Error as error:
            if error.errno != ENOENT:
                raise
            try:
                nft.commit(socket, _static())
            except Error as other:
                if other.errno != EEXIST:
                    raise
            nft.commit(socket, messages)


def restore(socket: Socket, owner: table.Owner, result: Result) -> None:
    """Check the port's source addresses again after a flushed ruleset; nothing if they are still checked."""
    if any(e.comment == owner.comment for e in nft.elements(socket, nft.BRIDGE, table.NAME, "allowed")):
        return
    for item in result.interfaces:
        if item["name"] == owner.ifname and item.get("sandbox"):
            _check_source(links.host_name(owner), item["mac"], owner.comment)


def _drop(mine: Callable[[str], bool]) -> None:
    with nft.open_nft() as socket:
        for set in _SPOOFING:
            found = [e for e in nft.elements(socket, nft.BRIDGE, table.NAME, set) if e.comment and mine(e.comment)]
            table.drop_elements(socket, nft.BRIDGE, set, found)

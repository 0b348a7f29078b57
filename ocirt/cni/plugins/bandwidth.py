"""bandwidth: limits of what an interface may receive (ingress) and send (egress)."""

from __future__ import annotations

import os

from ocirt.cni import protocol, table
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, UNSUPPORTED_FIELD, CNIError
from ocirt.errors import Error, Undo
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import ENODEV

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyroute2 import IPRoute

    from ocirt.cni.request import Request
    from ocirt.cni.result import Result
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_LATENCY = "25ms"
_INGRESS = 0xFFFF0000
_ETH_P_ALL = 0x0003
_MAX_BURST = 1 << 32


class _Limits:
    """Rates in bits a second and bursts in bits; 0 is no limit."""

    __slots__ = ("egress", "egress_burst", "ingress", "ingress_burst")

    def __init__(self, request: Request) -> None:
        source = request.config
        where = ""
        if not any(protocol.get(source, k) for k in ("ingressRate", "ingressBurst", "egressRate", "egressBurst")):
            source, where = protocol.table(request.runtime, "bandwidth", "runtimeConfig"), "runtimeConfig.bandwidth"
        for key in ("unshapedSubnets", "shapedSubnets"):
            if protocol.array(source, key, where) or protocol.array(request.config, key):
                raise CNIError(
                    UNSUPPORTED_FIELD,
                    f"{key} {protocol.get(source, key)!r}",
                    "limits hold for all addresses; leave it out",
                )
        self.ingress = protocol.integer(source, "ingressRate", 0, where)
        self.ingress_burst = protocol.integer(source, "ingressBurst", 0, where)
        self.egress = protocol.integer(source, "egressRate", 0, where)
        self.egress_burst = protocol.integer(source, "egressBurst", 0, where)
        for name, rate, burst in (
            ("ingress", self.ingress, self.ingress_burst),
            ("egress", self.egress, self.egress_burst),
        ):
            if rate < 0 or burst < 0 or (rate > 0) != (burst > 0):
                raise CNIError(
                    INVALID_CONFIG, f"invalid {name} limits: rate {rate}, burst {burst}", "both must be set, or none"
                )
            if burst // 8 >= _MAX_BURST:
                raise CNIError(INVALID_CONFIG, f"{name}Burst is {burst}", "must be less than 4 GB")


def _host_end(request: Request, result: Result, host: Socket) -> Link:
    """The host's end of the container's pair."""
    with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside:
        link = route.link(inside, request.ifname)
    if link is None or link.kind != "veth":
        raise CNIError(INVALID_CONFIG, f"interface {request.ifname} of the container is no virtual pair")
    names = [i["name"] for i in result.interfaces if not i.get("sandbox")]
    far = route.link(host, index=link.peer)
    if far is None or (names and far.name not in names):
        raise CNIError(INVALID_CONFIG, f"the host's end of {request.ifname} is not in prevResult")
    return far


def add(request: Request) -> Result:
    """Set the limits; nothing to limit is fine."""
    limits = _Limits(request)
    result = request.needs_previous()
    if not limits.ingress and not limits.egress:
        return result
    with route.open_route() as host, Undo() as undo:
        far = _host_end(request, result, host)
        if limits.ingress:
            _shape(far.index, limits.ingress, limits.ingress_burst)
        if limits.egress:
            name = links.host_name(request, "bwp")
            undo.add("delete the ifb", lambda: links.delete_on_host(name))
            mine = links.ALIAS + links.owner(request).comment
            host.request(route.delete_link(name), accept=(ENODEV,))
            host.request(route.new_link(route.Change().name(name).mtu(far.mtu).up().kind("ifb"), name))
            ifb = route.index_of(host, name)
            host.request(route.set_link(route.Change().alias(mine), f"{name} (alias)", ifb))
            _redirect(far.index, ifb)
            _shape(ifb, limits.egress, limits.egress_burst)
            found = route.link(host, name)
            result.interfaces.append({"name": name, "mac": found.mac if found else ""})
    return result


def _tc() -> IPRoute:
    """pyroute2, imported only here: limits are rare, and its import is long."""
    from pyroute2 import IPRoute

    return IPRoute()


def _shape(index: int, rate: int, burst: int) -> None:
    """A token bucket for what leaves by the link (bits a second, bits)."""
    with _tc() as tc:
        tc.tc("replace", "tbf", index, "1:", rate=rate // 8, burst=burst // 8, latency=_LATENCY)


def _redirect(index: int, ifb: int) -> None:
    """Send what comes in by the link through the ifb, where it leaves and can be limited."""
    with _tc() as tc:
        tc.tc("add", "ingress", index, "ffff:")
        tc.tc(
            "add-filter",
            "u32",
            index,
            parent=_INGRESS,
            prio=1,
            protocol=_ETH_P_ALL,
            target=0x10000,
            keys=["0x0/0x0+0"],
            action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": ifb},
        )


def check(request: Request) -> None:
    """CNIError if a limit isn't there."""
    limits = _Limits(request)
    if not limits.ingress and not limits.egress:
        return
    assert request.previous is not None
    with route.open_route() as host:
        far = _host_end(request, request.previous, host)
        wanted = [(far, limits.ingress)] if limits.ingress else []
        if limits.egress:
            ifb = route.link(host, links.host_name(request, "bwp"))
            if ifb is None:
                raise CNIError(INTERNAL, "the interface that limits what the container sends is missing")
            wanted.append((ifb, limits.egress))
    with _tc() as tc:
        for link, rate in wanted:
            if not any(_rate(q) == rate // 8 for q in tc.get_qdiscs(link.index)):
                raise CNIError(INTERNAL, f"{link.name} is without its limit of {rate} bit/s")


def _rate(qdisc: Any) -> int:
    if qdisc.get_attr("TCA_KIND") != "tbf":
        return -1
    parameters = qdisc.get_nested("TCA_OPTIONS", "TCA_TBF_PARMS")
    return int(parameters["rate"]) if parameters else -1


def delete(request: Request) -> None:
    """The limits of the pair go with it; the ifb is deleted."""
    links.delete_on_host(links.host_name(request, "bwp"), request.sockets)


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Delete what belongs to no valid attachment of this network."""
    keep = frozenset(table.Owner(request.network, *pair).comment for pair in valid)
    links.delete_stale(table.of_network(request.network), keep)


def status(request: Request) -> None:
    """CNIError (50) if pyroute2 is missing, or the kernel lacks the interface by which sending is limited."""
    limits = _Limits(request)
    from importlib.util import find_spec

    if find_spec("pyroute2") is None:
        raise CNIError(NOT_AVAILABLE, "the Python package pyroute2 is not installed")
    if limits.egress:
        _try_ifb()


def _try_ifb() -> None:
    name = f"bwt{os.urandom(5).hex()}"
    with route.open_route() as host:
        try:
            host.request(route.new_link(route.Change().name(name).kind("ifb"), name))
        except Error as error:
            raise CNIError(NOT_AVAILABLE, "the kernel has no ifb interfaces", str(error)) from error
    links.delete_on_host(name)

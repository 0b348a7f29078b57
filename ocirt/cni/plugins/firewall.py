"""firewall: which containers reach each other.

`ingressPolicy`: `open` leaves it to others; `same-bridge` keeps what comes from
the containers of other protected networks out; `isolated` what comes from the
container's own network as well. A port that is mapped stays open to all.

Containers behind one bridge are known by its name. Without a bridge (ptp) each
has an interface of its own on the host: a group of interfaces, set here, says
which belong together.

With `"backend": "iptables"` the container's traffic is accepted in iptables'
FORWARD chain instead, for hosts where that drops by default: no other table can
overrule a drop.
"""

from __future__ import annotations

import sys

from ocirt.cni import protocol, table
from ocirt.cni.address import parse_cidr
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, UNSUPPORTED_FIELD, CNIError
from ocirt.errors import Error, Undo
from ocirt.linux import netlink_nft as nft
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST, ENOENT, u8, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.cni.request import Request
    from ocirt.cni.result import Result
    from ocirt.cni.table import Owner
    from ocirt.linux.netlink import Socket

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
_POLICIES = ("", "open", "same-bridge", "isolated")
_ADMIN = "CNI-ADMIN"
_BACKENDS = ("", "nftables", "iptables")


def _config(request: Request) -> tuple[str, str]:
    """(policy, backend)."""
    zone, chain = (protocol.string(request.config, k) for k in ("firewalldZone", "iptablesAdminChainName"))
    # the reference plugin's iptables passes over it as well: its zone has a default
    if zone and protocol.string(request.config, "backend") != "iptables":
        raise CNIError(
            UNSUPPORTED_FIELD, f"firewalldZone {zone!r}", "firewalld leaves the plugin's tables alone; leave it out"
        )
    if chain and protocol.string(request.config, "backend") not in ("", "iptables"):
        raise CNIError(
            UNSUPPORTED_FIELD,
            f"iptablesAdminChainName {chain!r} needs iptables",
            'set "backend": "iptables", or leave it out',
        )
    if chain and not links.is_chain(chain):
        raise CNIError(INVALID_CONFIG, f"iptablesAdminChainName is {chain!r}", links.CHAIN)
    policy = protocol.string(request.config, "ingressPolicy")
    if policy not in _POLICIES:
        raise CNIError(INVALID_CONFIG, f"unknown ingress policy {policy!r}", "must be open, same-bridge or isolated")
    backend = protocol.string(request.config, "backend")
    if backend not in _BACKENDS:
        raise CNIError(INVALID_CONFIG, f"unrecognized firewall backend {backend!r}", "must be nftables or iptables")
    return policy or "open", backend or ("iptables" if chain else "nftables")


def _elements(owner: Owner, result: Result, policy: str) -> dict[int, dict[str, list[nft.Element]]]:
    """{family: {set: elements}} for the container's addresses behind the first interface of the result."""
    if not result.interfaces:
        raise CNIError(INVALID_CONFIG, "interfaces required in prevResult")
    bridge = result.interfaces[0]["name"].encode().ljust(16, b"\0")
    group = table.group_of(owner.network).to_bytes(4, sys.byteorder) if _pair(result) else b""
    comment = owner.comment
    made: dict[int, dict[str, list[nft.Element]]] = {}
    for ip in result.container_ips(owner.ifname):
        family, data, _ = parse_cidr(ip["address"])
        sets = made.setdefault(family, {})
        sets.setdefault("protected", []).append(nft.Element(data, comment=comment))
        if group and policy != "isolated":
            sets.setdefault("neighbours", []).append(nft.Element(group + data, comment=comment))
            continue
        sets.setdefault("members", []).append(nft.Element(bridge + data, comment=comment))
        if policy == "isolated":
            sets.setdefault("isolated", []).append(nft.Element(bridge + data, comment=comment))
    return made


def _pair(result: Result) -> str:
    """The host's end of a pair that no bridge joins to others, "" if there is a bridge."""
    near, far = [*result.interfaces[:2], {}, {}][:2]
    return near["name"] if near and not near.get("sandbox") and far.get("sandbox") else ""


def add(request: Request) -> Result:
    """Put the container's addresses into the sets of its policy."""
    policy, backend = _config(request)
    result = request.needs_previous()
    if backend == "iptables":
        from ocirt.cni import iptables

        admin = protocol.string(request.config, "iptablesAdminChainName") or _ADMIN
        addresses = [ip["address"] for ip in result.container_ips(request.ifname)]
        iptables.accept(links.owner(request), addresses, admin)
    if policy == "open":
        return result
    with request.nft() as socket, Undo() as undo:
        undo.add("open the firewall", lambda: _drop(request, _mine(request)))
        restore(socket, links.owner(request), result, policy)
        if policy == "isolated":
            _isolate(result)
        elif _pair(result):
            group = route.Change().attribute(u32(route.IFLA_GROUP, table.group_of(request.network)))
            with route.open_route() as host:
                name = _pair(result)
                host.request(route.set_link(group.name(name), f"{name} (group)"))
    return result


def restore(socket: Socket, owner: Owner, result: Result, policy: str) -> None:
    """Put the addresses into the sets, whether they are there or not."""
    for family, sets in _elements(owner, result, policy).items():
        for name, elements in sets.items():
            _add(socket, family, name, elements)


def _add(socket: Socket, family: int, name: str, elements: list[nft.Element]) -> None:
    """Add elements; those of a container that had the address and didn't clean up are taken over."""
    messages = nft.add_elements(family, table.NAME, name, elements)
    try:
        table.commit(socket, messages, (family,))
    except Error as error:
        if error.errno == ENOENT and name == "neighbours":
            table.ensure_neighbours(socket, family)
        elif error.errno == EEXIST:
            for element in elements:
                table.drop_elements(socket, family, name, [element])
        else:
            raise
        nft.commit(socket, messages)


def _isolate(result: Result) -> None:
    """Set the flag of the bridge's port: frames between isolated ports never reach the tables of IP."""
    with route.open_route() as host:
        for item in result.interfaces[1:]:
            port = route.link(host, item["name"]) if not item.get("sandbox") else None
            if port is not None and port.master:
                isolated = route.Change().port(u8(route.IFLA_BRPORT_ISOLATED, 1))
                host.request(route.set_link(isolated, f"{port.name} (isolated)", port.index))


def _mine(request: Request) -> Callable[[str], bool]:
    comment = links.owner(request).comment
    return lambda other: other == comment


def _drop(request: Request, stale: Callable[[str], bool]) -> None:
    with request.nft() as socket:
        table.drop_owned(socket, table.FIREWALL_SETS, stale)


def delete(request: Request) -> None:
    """Take the container's addresses out again."""
    policy, backend = _config(request)
    if backend == "iptables":
        from ocirt.cni import iptables

        iptables.unaccept(links.owner(request))
    if policy == "open":
        return
    known = request.previous
    if known is None or not known.interfaces or not request.complete:
        _drop(request, _mine(request))
        return
    mine = _mine(request)
    with request.nft() as socket:
        for family, sets in _elements(links.owner(request), known, policy).items():
            for name, elements in sets.items():
                there = [nft.element(socket, family, table.NAME, name, e) for e in elements]
                table.drop_elements(socket, family, name, [e for e in there if e and mine(e.comment)])


def check(request: Request) -> None:
    """CNIError if an address isn't in the sets."""
    policy, backend = _config(request)
    assert request.previous is not None
    if backend == "iptables":
        from ocirt.cni import iptables

        iptables.check_accepted(links.owner(request))
    if policy == "open":
        return
    with request.nft() as socket:
        for family, sets in _elements(links.owner(request), request.previous, policy).items():
            for name, elements in sets.items():
                for element in elements:
                    if nft.element(socket, family, table.NAME, name, element) is None:
                        raise CNIError(INTERNAL, f"an address of {request.container} is missing in the set {name}")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Take out what belongs to no valid attachment of this network."""
    _, backend = _config(request)
    belongs = table.of_network(request.network)
    keep = frozenset(table.Owner(request.network, *pair).comment for pair in valid)
    if backend == "iptables":
        from ocirt.cni import iptables

        iptables.collect(belongs, keep)
    _drop(request, lambda comment: belongs(comment) and comment not in keep)


def status(request: Request) -> None:
    """CNIError (50) if the kernel or the host lacks what the backend needs."""
    _, backend = _config(request)
    if backend == "iptables":
        from ocirt.cni import iptables

        iptables.check_available()
        return
    try:
        with request.nft() as socket:
            nft.has_table(socket, nft.IP, table.NAME)
    except Error as error:
        raise CNIError(NOT_AVAILABLE, "the kernel has no nftables", str(error)) from error

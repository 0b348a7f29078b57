"""portmap: ports of the host that lead to the container.

`backend` chooses how: `nftables` (maps in a table of ours), `proxy` (a program
that takes connections and passes them on; one for all ports of an attachment)
or `iptables` (rules as the reference plugin writes them).
"""

from __future__ import annotations

from ocirt.cni import holders, ports, protocol, table
from ocirt.cni.address import cidr_text, parse_cidr
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, UNSUPPORTED_FIELD, VERSIONS, CNIError
from ocirt.errors import Error, Undo
from ocirt.linux import netlink_conntrack, netlink_nft
from ocirt.linux import netlink_route as route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ocirt.cni.ports import PortMapping
    from ocirt.cni.request import Request
    from ocirt.cni.result import Result
    from ocirt.cni.table import Owner
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Address

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_IPTABLES = "CNI-HOSTPORT-DNAT"  # the chain of all mapped ports, ours and the reference plugin's
_BACKENDS = ("nftables", "proxy", "iptables")


#: Keys that are words of iptables: without a backend they choose it, as it is the reference plugin's own choice.
_ONLY_IPTABLES = ("conditionsV4", "conditionsV6", "externalSetMarkChain")


def backend_of(config: Mapping[str, Any]) -> str:
    """The backend that the configuration says, or that its keys need."""
    needs_iptables = any(protocol.get(config, key) for key in _ONLY_IPTABLES)
    return protocol.string(config, "backend") or ("iptables" if needs_iptables else "nftables")


class _Config:
    """The plugin's keys, checked."""

    __slots__ = ("backend", "mappings", "mark_bit", "marking", "masquerade_all", "snat")

    def __init__(self, request: Request) -> None:
        config = request.config
        self.backend = backend_of(config)
        if self.backend not in _BACKENDS:
            raise CNIError(INVALID_CONFIG, f"backend is {self.backend!r}", f"must be one of {', '.join(_BACKENDS)}")
        self.snat = protocol.truth(config, "snat", True)
        self.masquerade_all = protocol.truth(config, "masqAll")
        self.mark_bit = protocol.integer(config, "markMasqBit", 13)
        if not 0 <= self.mark_bit <= 31:
            raise CNIError(INVALID_CONFIG, f"markMasqBit is {self.mark_bit}", "must be 0 to 31")
        self.marking = protocol.string(config, "externalSetMarkChain")
        if self.marking:
            if protocol.get(config, "markMasqBit") is not None:
                raise CNIError(INVALID_CONFIG, "cannot specify externalSetMarkChain and markMasqBit")
            if not links.is_chain(self.marking):
                raise CNIError(INVALID_CONFIG, f"externalSetMarkChain is {self.marking!r}", links.CHAIN)
            self.mark_bit = -1
        if self.backend != "iptables":
            for key in _ONLY_IPTABLES:
                value = protocol.get(config, key)
                if value:
                    raise CNIError(
                        UNSUPPORTED_FIELD,
                        f"{key} {value!r} needs iptables",
                        'set "backend": "iptables", or leave it out',
                    )
        self.mappings: list[PortMapping] = ports.parse(protocol.array(request.runtime, "portMappings", "runtimeConfig"))


def _containers(request: Request, result: Result) -> dict[int, Address]:
    """The first address of each family of the container's interface."""
    found: dict[int, Address] = {}
    for ip in result.container_ips(request.ifname):
        address = parse_cidr(ip["address"])
        found.setdefault(address[0], address)
    return found


def add(request: Request) -> Result:
    """Map the ports; CNIError that names the holder of one that is taken."""
    config = _Config(request)
    result = request.needs_previous()
    if not config.mappings:
        return result
    containers = _containers(request, result)
    if not containers:
        raise CNIError(INVALID_CONFIG, f"prevResult has no address for interface {request.ifname}")
    holders.check_addresses(config.mappings)
    _refuse_taken(request, config, containers)
    if config.backend == "proxy":
        from ocirt.cni import proxies

        proxies.start(links.owner(request), config.mappings, {f: a[1] for f, a in containers.items()})
        return result
    holders.check_free(config.mappings, containers)
    if config.backend == "iptables":
        from ocirt.cni import iptables

        iptables.map_ports(
            request,
            config.mappings,
            containers,
            snat=config.snat,
            everyone=config.masquerade_all,
            marking=config.marking or iptables.marking_chain(config.mark_bit),
            bit=config.mark_bit,
        )
    else:
        _map(request, config, containers)
    if config.snat and 2 in containers:
        _allow_loopback(result)
    _forget_udp(request, config.mappings)
    return result


def _refuse_taken(request: Request, config: _Config, containers: dict[int, Address]) -> None:
    """CNIError if one of the other backends has one of the ports; what the own one has, it sees itself."""
    owner = links.owner(request)
    try:
        with request.nft() as nft:
            if config.backend != "nftables":
                ports.refuse_taken(nft, config.mappings, owner)
            by_rules = config.backend != "iptables" and _iptables_maps(nft)
    except Error as error:
        if isinstance(error, CNIError) or config.backend != "iptables":
            raise
        return  # a host without nftables
    if by_rules:
        from ocirt.cni import iptables

        for family in containers:
            iptables.refuse_taken(family, ports.for_family(config.mappings, family), owner)


def _iptables_maps(nft: Socket) -> bool:
    """Does iptables map ports of containers here? Asked without running it, or importing what does."""
    if any(netlink_nft.chain_uses(nft, family, "nat", _IPTABLES) >= 0 for family in table.FAMILIES):
        return True
    try:
        with open("/proc/thread-self/net/ip_tables_names", encoding="ascii") as file:
            return "nat" in file.read().split()
    except OSError:
        return False  # the kernel has no iptables of the old kind


def _map(request: Request, config: _Config, containers: dict[int, Address]) -> None:
    owner = links.owner(request)
    with request.nft() as nft, Undo() as undo:
        ports.add(nft, config.mappings, {f: a[1] for f, a in containers.items()}, owner)
        undo.add("unmap the ports", lambda: ports.remove(nft, config.mappings, owner))
        sets = [s for s, on in (("hairpin", config.snat), ("everyone", config.masquerade_all)) if on]
        for name in sets:
            undo.add("stop masquerading", _dropper(nft, name, owner))
            for address in containers.values():
                table.add_address(nft, name, address, owner)


def _dropper(nft: Socket, name: str, owner: Owner) -> Callable[[], object]:
    return lambda: table.drop_owned(nft, (name,), lambda comment: comment == owner.comment)


def _allow_loopback(result: Result) -> None:
    """Let connections to 127.0.0.1 leave by the bridge; the table's `loopback` chain keeps others from using that."""
    for item in result.interfaces:
        if not item.get("sandbox"):
            links.write_sysctl(f"net/ipv4/conf/{item['name']}/route_localnet", "1", missing_ok=True)


def _forget_udp(request: Request, mappings: list[PortMapping]) -> None:
    """A client that goes on sending keeps its old entry, and with it the old destination."""
    wanted = [m for m in mappings if m.protocol == "udp"]
    if not wanted:
        return
    with route.open_route() as host:
        local = {a.address[1] for a in route.addresses(host)}

    def is_mapped(address: bytes, port: int) -> bool:
        # what containers ask others on such a port (53, say) is no business of this one
        here = address in local or address[:1] == b"\x7f"
        return here and any(0 <= port - m.host < m.count and m.address in (b"", address) for m in wanted)

    with request.nft() as nft:
        netlink_conntrack.forget(nft, netlink_nft.UDP, is_mapped)


def delete(request: Request) -> None:
    """Unmap what is this attachment's, also without runtimeConfig and without prevResult."""
    config = _Config(request)
    owner = links.owner(request)
    if config.backend == "proxy":
        from ocirt.cni import proxies

        proxies.stop(owner)
        return
    if config.backend == "iptables":
        from ocirt.cni import iptables

        iptables.unmap_ports(request)
    else:
        with request.nft() as nft:
            ports.remove(nft, config.mappings if request.complete else (), owner)
            for name, on in (("hairpin", config.snat), ("everyone", config.masquerade_all)):
                if on:
                    _drop(nft, name, request, owner)
    _forget_udp(request, config.mappings)


def _drop(nft: Socket, name: str, request: Request, owner: Owner) -> None:
    told = request.previous if request.complete else None
    known = list(_containers(request, told).values()) if told else []
    dropped = [table.drop_address(nft, name, address, owner) for address in known]
    if not dropped or not all(dropped):
        _dropper(nft, name, owner)()


def check(request: Request) -> None:
    """CNIError if a mapping is missing."""
    config = _Config(request)
    if not config.mappings:
        return
    assert request.previous is not None
    containers = _containers(request, request.previous)
    owner = links.owner(request)
    if config.backend == "proxy":
        from ocirt.cni import proxies

        proxies.check(owner)
    elif config.backend == "iptables":
        from ocirt.cni import iptables

        iptables.check_ports(request)
    else:
        with request.nft() as nft:
            ports.check(nft, config.mappings, {f: a[1] for f, a in containers.items()}, owner)
            if config.snat:
                for family, address in containers.items():
                    key = netlink_nft.Element(address[1])
                    if netlink_nft.element(nft, family, table.NAME, "hairpin", key) is None:
                        raise CNIError(INTERNAL, f"{cidr_text(address)} is not reached from its own network")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Unmap what belongs to no valid attachment of this network."""
    config = _Config(request)
    belongs = table.of_network(request.network)
    keep = frozenset(table.Owner(request.network, *pair).comment for pair in valid)
    if config.backend == "proxy":
        from ocirt.cni import proxies

        proxies.collect(belongs, keep)
    elif config.backend == "iptables":
        from ocirt.cni import iptables

        iptables.collect(belongs, keep)
    else:
        with request.nft() as nft:
            names = (*table.PORT_MAPS, "hairpin", "everyone")
            table.drop_owned(nft, names, lambda comment: belongs(comment) and comment not in keep)


def status(request: Request) -> None:
    """CNIError (50) if the backend can't work here."""
    config = _Config(request)
    if config.backend == "iptables":
        from ocirt.cni import iptables

        iptables.check_available()
    elif config.backend == "nftables":
        try:
            with request.nft() as nft:
                netlink_nft.has_table(nft, netlink_nft.IP, table.NAME)
        except Error as error:
            raise CNIError(NOT_AVAILABLE, "the kernel has no nftables", str(error)) from error

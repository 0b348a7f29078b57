"""Ports of the host mapped to a container by the maps of the table `ocirt`."""

from __future__ import annotations

from ocirt.cni import protocol, table
from ocirt.cni.address import ip_text, parse_ip
from ocirt.cni.protocol import INVALID_CONFIG, CNIError
from ocirt.errors import Error
from ocirt.linux import netlink_nft as nft
from ocirt.linux.netlink import EEXIST, ENOTEMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from ocirt.cni.table import Owner
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_nft import Element

PROTOCOLS = {"tcp": nft.TCP, "udp": nft.UDP, "sctp": nft.SCTP}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_EXPECTED = (EEXIST, ENOTEMPTY)


class PortMapping:
    """`count` consecutive ports of the host, from `host` on, and where they lead: the container's from `inside` on.

    protocol  tcp, udp or sctp
    address   of the host, bytes; b"" for all
    """

    __slots__ = ("address", "count", "host", "inside", "protocol")

    def __init__(self, protocol: str, address: bytes, host: int, inside: int, count: int = 1) -> None:
        self.protocol = protocol
        self.address = address
        self.host = host
        self.inside = inside
        self.count = count

    @property
    def is_range(self) -> bool:
        """One interval element does if the ports stay what they are."""
        return self.count > 1 and self.host == self.inside

    def goes_on(self, after: PortMapping) -> bool:
        """Does the other begin where this one ends, on both sides?"""
        return (self.protocol, self.address, self.host + self.count, self.inside + self.count) == (
            after.protocol,
            after.address,
            after.host,
            after.inside,
        )

    def __str__(self) -> str:
        where = f"{ip_text(self.address)}:" if self.address else ""
        last = f"-{self.host + self.count - 1}" if self.count > 1 else ""
        return f"{where}{self.host}{last}/{self.protocol}"


def parse(items: Iterable[Any]) -> list[PortMapping]:
    """runtimeConfig.portMappings: [{hostPort, containerPort, protocol, hostIP, range}], keys in any case.

    Raises CNIError (7) that names the entry. An entry with hostPort 0 maps nothing.
    Entries that go on where the one before ends become one: engines write a
    range port by port.
    """
    found: list[PortMapping] = []
    for i, raw in enumerate(items):
        where = f"portMappings[{i}]"
        item = protocol.mapping(raw)
        if item is None:
            raise CNIError(INVALID_CONFIG, f"{where} must be an object", repr(raw))
        host = protocol.integer(item, "hostPort", 0, where)
        if host == 0:
            continue
        inside = protocol.integer(item, "containerPort", 0, where)
        count = protocol.integer(item, "range", 0, where) or 1
        kind = protocol.string(item, "protocol", "tcp", where).lower() or "tcp"
        if kind not in PROTOCOLS:
            raise CNIError(INVALID_CONFIG, f"{where}.protocol is {kind!r}", "must be tcp, udp or sctp")
        for name, port in (("hostPort", host), ("containerPort", inside)):
            if port < 1 or count < 1 or port + count - 1 > 65535:
                raise CNIError(INVALID_CONFIG, f"invalid {name} number {where}: {port}", "must be 1 to 65535")
        text = protocol.string(item, "hostIP", "", where)
        try:
            address = parse_ip(text)[1] if text else b""
        except ValueError as error:
            raise CNIError(INVALID_CONFIG, f"{where}.hostIP", str(error)) from error
        mapping = PortMapping(kind, address, host, inside, count)
        if found and found[-1].goes_on(mapping):
            found[-1].count += count
        else:
            found.append(mapping)
    return found


def for_family(mappings: Iterable[PortMapping], family: int) -> list[PortMapping]:
    """The mappings that mean this family: those without an address of the host, or with one of it; 0.0.0.0 is all."""
    size = 4 if family == nft.IP else 16
    chosen: list[PortMapping] = []
    for m in mappings:
        if m.address and len(m.address) != size:
            continue
        unspecified = m.address == bytes(size)
        chosen.append(PortMapping(m.protocol, b"", m.host, m.inside, m.count) if unspecified else m)
    return chosen


def _service(protocol: str, port: int) -> bytes:
    return bytes((PROTOCOLS[protocol], 0, 0, 0)) + port.to_bytes(2, "big") + b"\0\0"


def elements(
    mappings: Iterable[PortMapping], container: bytes, comment: str, *, strict: bool = True
) -> dict[str, list[Element]]:
    """{map: its new elements} for mappings of one family to the container's address.

    Unless not `strict`, CNIError (7) for a port with two places to lead to.
    """
    made: dict[str, dict[bytes, Element]] = {}
    for m in mappings:
        into = made.setdefault(("host" if m.address else "") + ("ranges" if m.is_range else "ports"), {})
        if m.is_range:
            first, last = (m.address + _service(m.protocol, p) for p in (m.host, m.host + m.count - 1))
            new = [nft.Element(first, container, comment, last)]
        else:
            new = [
                nft.Element(
                    m.address + _service(m.protocol, m.host + i),
                    container + (m.inside + i).to_bytes(2, "big") + b"\0\0",
                    comment,
                )
                for i in range(m.count)
            ]
        for element in new:
            there = into.setdefault(element.key, element)
            if strict and (there.data, there.end) != (element.data, element.end):
                raise CNIError(INVALID_CONFIG, f"host port {m} is mapped twice")
    return {name: list(found.values()) for name, found in made.items()}


def add(socket: Socket, mappings: Sequence[PortMapping], containers: Mapping[int, bytes], owner: Owner) -> None:
    """Map the ports to the container's addresses {family: bytes}, all or none.

    Raises CNIError that names the holder of a port that is taken. Equal keys
    meet in the kernel (EEXIST); a port bound to one address of the host and the
    same bound to all are different keys, so whoever adds looks afterwards, and
    of two that meet at least one sees the other.
    """
    made = {
        family: elements(for_family(mappings, family), address, owner.comment) for family, address in containers.items()
    }
    messages = [
        m
        for family, maps in made.items()
        for name, new in maps.items()
        for m in nft.add_elements(family, table.NAME, name, new)
    ]
    if not messages:
        return
    try:
        table.commit(socket, messages, tuple(made))
    except Error as error:
        if error.errno in _EXPECTED:
            for family, maps in made.items():
                _refuse_taken(socket, family, maps, owner, everywhere=True)
        raise
    try:
        for family, maps in made.items():
            _refuse_taken(socket, family, maps, owner)
    except CNIError:
        remove(socket, mappings, owner)
        raise


def _split(family: int, key: bytes) -> tuple[bytes, bytes]:
    """(address of the host or b"", proto . port) of a key."""
    size = 4 if family == nft.IP else 16
    return (key[:size], key[size:]) if len(key) > 8 else (b"", key)


def _span(family: int, element: Element) -> tuple[bytes, int, int, int]:
    """(address of the host or b"", protocol, first and last port) of an element."""
    address, service = _split(family, element.key)
    first = int.from_bytes(service[4:6], "big")
    last = int.from_bytes(_split(family, element.end)[1][4:6], "big") if element.end else first
    return address, service[0], first, last


def _refuse_taken(
    socket: Socket, family: int, maps: Mapping[str, list[Element]], owner: Owner, *, everywhere: bool = False
) -> None:
    """CNIError if the table has one of the elements' ports for another owner, or `everywhere`, for this one too.

    That keys of one map are different is the kernel's business: unless
    `everywhere`, a map is looked at for the others' elements only.
    """
    wanted: dict[tuple[int, int], set[bytes]] = {}
    for new in maps.values():
        for element in new:
            address, protocol, first, last = _span(family, element)
            for port in range(first, last + 1):
                wanted.setdefault((protocol, port), set()).add(address)
    for name in table.PORT_MAPS:
        if not everywhere and list(maps) == [name]:
            continue
        for there in nft.elements(socket, family, table.NAME, name):
            if there.comment == owner.comment and not everywhere:
                continue
            clash = _meeting(wanted, *_span(family, there))
            if clash is not None:
                raise _taken(clash, there, owner)


def _meeting(
    wanted: Mapping[tuple[int, int], set[bytes]], address: bytes, kind: int, first: int, last: int
) -> tuple[bytes, int, int] | None:
    """(address, protocol, port) of a wanted port that the span of another has as well."""
    if first == last:
        ports: Iterable[int] = (first,)
    elif last - first < len(wanted):
        ports = range(first, last + 1)
    else:
        ports = sorted(port for protocol, port in wanted if protocol == kind and first <= port <= last)
    for port in ports:
        addresses = wanted.get((kind, port), ())
        for mine in addresses:
            if not mine or not address or mine == address:
                return mine, kind, port
    return None


def _taken(clash: tuple[bytes, int, int], there: Element, owner: Owner) -> CNIError:
    address, kind, port = clash
    where = f"{ip_text(address)}:" if address else ""
    holder = "this attachment already" if there.comment == owner.comment else table.holder(there.comment)
    return CNIError(protocol.INTERNAL, f"host port {where}{port}/{_NAMES.get(kind, kind)} is taken by {holder}")


_FEW = 16


def remove(socket: Socket, mappings: Sequence[PortMapping], owner: Owner) -> None:
    """Unmap what is the owner's: the known ports if they are few, whatever bears his comment otherwise."""
    if mappings and sum(1 if m.is_range else m.count for m in mappings) <= _FEW:
        for family in table.FAMILIES:
            for name, wanted in elements(for_family(mappings, family), b"", "", strict=False).items():
                there = [nft.element(socket, family, table.NAME, name, element) for element in wanted]
                table.drop_elements(socket, family, name, [e for e in there if e and e.comment == owner.comment])
        return
    collect(socket, lambda comment: comment == owner.comment)


def collect(socket: Socket, stale: Callable[[str], bool]) -> None:
    """Unmap what bears a stale comment."""
    table.drop_owned(socket, table.PORT_MAPS, stale)


def check(socket: Socket, mappings: Sequence[PortMapping], containers: Mapping[int, bytes], owner: Owner) -> None:
    """CNIError for a mapping that isn't there, or isn't the owner's."""
    for family, address in containers.items():
        for name, wanted in elements(for_family(mappings, family), address, owner.comment).items():
            if len(wanted) <= _FEW:
                present = [nft.element(socket, family, table.NAME, name, element) for element in wanted]
            else:
                present = list(nft.elements(socket, family, table.NAME, name))
            there = {(e.key, e.end, e.data, e.comment) for e in present if e is not None}
            for element in wanted:
                if (element.key, element.end, element.data, element.comment) not in there:
                    where, kind, first, last = _span(family, element)
                    missing = PortMapping(_NAMES[kind], where, first, first, last - first + 1)
                    raise CNIError(protocol.INTERNAL, f"host port {missing} is not mapped")


def refuse_taken(socket: Socket, mappings: Sequence[PortMapping], owner: Owner) -> None:
    """CNIError if the table has one of the ports for somebody else (for backends that don't use the maps)."""
    for family in table.FAMILIES:
        maps = elements(for_family(mappings, family), bytes(4 if family == nft.IP else 16), owner.comment)
        # a map that stands for nothing, so that all four are looked at
        _refuse_taken(socket, family, {"": [e for new in maps.values() for e in new]}, owner)

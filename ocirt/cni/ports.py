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

    def __str__(self) -> str:
        where = f"{ip_text(self.address)}:" if self.address else ""
        last = f"-{self.host + self.count - 1}" if self.count > 1 else ""
        return f"{where}{self.host}{last}/{self.protocol}"


def parse(items: Iterable[Any]) -> list[PortMapping]:
    """runtimeConfig.portMappings: [{hostPort, containerPort, protocol, hostIP, range}], keys in any case.

    Raises CNIError (7) that names the entry. An entry with hostPort 0 maps nothing.
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
        found.append(PortMapping(kind, address, host, inside, count))
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


def elements(mappings: Iterable[PortMapping], container: bytes, comment: str) -> dict[str, list[Element]]:
    """{map: its new elements} for mappings of one family to the container's address."""
    made: dict[str, list[Element]] = {}
    for m in mappings:
        name = ("host" if m.address else "") + ("ranges" if m.is_range else "ports")
        into = made.setdefault(name, [])
        if m.is_range:
            first, last = (m.address + _service(m.protocol, p) for p in (m.host, m.host + m.count - 1))
            into.append(nft.Element(first, container, comment, last))
            continue
        for i in range(m.count):
            data = container + (m.inside + i).to_bytes(2, "big") + b"\0\0"
            into.append(nft.Element(m.address + _service(m.protocol, m.host + i), data, comment))
    return made


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
            _raise_taken(socket, made, owner, error)
        raise
    for family, maps in made.items():
        clash = _clash(socket, family, maps, owner)
        if clash is not None:
            remove(socket, mappings, owner)
            raise clash


def _raise_taken(socket: Socket, made: Mapping[int, Mapping[str, list[Element]]], owner: Owner, error: Error) -> None:
    for family, maps in made.items():
        for name, new in maps.items():
            for element in new:
                there = nft.element(socket, family, table.NAME, name, element)
                if there is not None:
                    raise _taken(family, element, there, owner) from error
        clash = _clash(socket, family, maps, owner)
        if clash is not None:
            raise clash from error


def _taken(family: int, element: Element, there: Element, owner: Owner) -> CNIError:
    same = there.comment == owner.comment
    holder = "this attachment already" if same else table.holder(there.comment)
    return CNIError(protocol.INTERNAL, f"host port {_show(family, element)} is taken by {holder}")


def _show(family: int, element: Element) -> str:
    address, service = _split(family, element.key)
    where = f"{ip_text(address)}:" if address else ""
    last = f"-{int.from_bytes(_split(family, element.end)[1][4:6], 'big')}" if element.end else ""
    return f"{where}{int.from_bytes(service[4:6], 'big')}{last}/{_NAMES.get(service[0], service[0])}"


def _split(family: int, key: bytes) -> tuple[bytes, bytes]:
    """(address of the host or b"", proto . port) of a key."""
    size = 4 if family == nft.IP else 16
    return (key[:size], key[size:]) if len(key) > 8 else (b"", key)


class _Span:
    """The ports of an element: (protocol, first, last, address or b"")."""

    __slots__ = ("address", "first", "last", "protocol")

    def __init__(self, family: int, element: Element) -> None:
        self.address, service = _split(family, element.key)
        self.protocol = service[0]
        self.first = int.from_bytes(service[4:6], "big")
        self.last = int.from_bytes(_split(family, element.end)[1][4:6], "big") if element.end else self.first

    def meets(self, other: _Span) -> bool:
        return (
            self.protocol == other.protocol
            and self.first <= other.last
            and other.first <= self.last
            and (not self.address or not other.address or self.address == other.address)
        )


def _clash(socket: Socket, family: int, maps: Mapping[str, list[Element]], owner: Owner) -> CNIError | None:
    """An element of another owner in another map that means one of the same ports."""
    for name, new in maps.items():
        for other in table.PORT_MAPS:
            if other == name:
                continue
            if len(new) == 1 and other == "ports" and not new[0].end:
                there = nft.element(socket, family, table.NAME, other, nft.Element(_split(family, new[0].key)[1]))
                present = [there] if there else []
            else:
                present = nft.elements(socket, family, table.NAME, other)
            foreign = [(e, _Span(family, e)) for e in present if e.comment != owner.comment]
            if not foreign:
                continue
            for element in new:
                span = _Span(family, element)
                for there, theirs in foreign:
                    if span.meets(theirs):
                        return _taken(family, element, there, owner)
    return None


_FEW = 16


def remove(socket: Socket, mappings: Sequence[PortMapping], owner: Owner) -> None:
    """Unmap what is the owner's: the known ports if they are few, whatever bears his comment otherwise."""
    if mappings and sum(1 if m.is_range else m.count for m in mappings) <= _FEW:
        for family in table.FAMILIES:
            for name, wanted in elements(for_family(mappings, family), b"", "").items():
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
            for element in wanted:
                there = nft.element(socket, family, table.NAME, name, element)
                if there is None or there.comment != owner.comment or there.data != element.data:
                    raise CNIError(protocol.INTERNAL, f"host port {_show(family, element)} is not mapped")


def holder_of(socket: Socket, mappings: Sequence[PortMapping], owner: Owner) -> CNIError | None:
    """What to raise if the table has one of the ports for somebody else (for backends that don't use the maps)."""
    for family in table.FAMILIES:
        maps = elements(for_family(mappings, family), bytes(4 if family == nft.IP else 16), owner.comment)
        for name, wanted in maps.items():
            for element in wanted:
                there = nft.element(socket, family, table.NAME, name, element)
                if there is not None and there.comment != owner.comment:
                    return _taken(family, element, there, owner)
        clash = _clash(socket, family, maps, owner)
        if clash is not None:
            return clash
    return None

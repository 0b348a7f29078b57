"""The nftables table `ocirt`, one for IPv4 and one for IPv6, in which everything of ours stands.

It is static: made once by the first attachment that needs it, then only
elements of its maps come and go. A mapped port is one element, found by hash
however many there are; that a port is taken is the kernel's EEXIST.

    ports, hostports      proto . port → address . port          (hostports: bound to one address of the host)
    ranges, hostranges    proto . port-port → address            (the port stays)
    outgoing              source → chain of its network          (what leaves the network)
    hairpin               destination → chain of its network     (a mapped port used from inside the network)
    everyone              destinations whose every client is masqueraded (masqAll)
    protected, members    addresses, and interface . address: what comes from another network is dropped
    isolated              interface . address: what comes from the same network is dropped
    neighbours            group of interfaces . address: the same as members, for containers without a bridge

An element's comment says whose it is, so that what a container left behind is
found without the container, its namespace or any file.
"""

from __future__ import annotations

import sys

from ocirt.errors import Error
from ocirt.linux import netlink_nft as nft
from ocirt.linux.netlink import EBUSY, EEXIST, ENOENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocirt.linux.netlink import Message, Socket
    from ocirt.linux.netlink_nft import Element
    from ocirt.linux.netlink_route import Address

NAME = "ocirt"
FAMILIES = (nft.IP, nft.IP6)

#: Maps whose elements belong to one attachment.
PORT_MAPS = ("ports", "hostports", "ranges", "hostranges")
ADDRESS_MAPS = ("outgoing", "hairpin", "everyone")
FIREWALL_SETS = ("protected", "members", "isolated", "neighbours")

_SOURCE = {nft.IP: (12, 4), nft.IP6: (8, 16)}  # offset and length in the header
_DESTINATION = {nft.IP: (16, 4), nft.IP6: (24, 16)}
_ADDRESS = {nft.IP: nft.IPV4, nft.IP6: nft.IPV6}
_MULTICAST = {nft.IP: bytes((0xF0, 0, 0, 0)), nft.IP6: bytes((0xFF, *bytes(15)))}
_MULTICAST_NET = {nft.IP: bytes((224, 0, 0, 0)), nft.IP6: bytes((0xFF, *bytes(15)))}


def source(family: int, register: int = nft.REG1) -> bytes:
    """Load the packet's source address."""
    return nft.payload(register, nft.NETWORK, *_SOURCE[family])


def destination(family: int, register: int = nft.REG1) -> bytes:
    """Load the packet's destination address."""
    return nft.payload(register, nft.NETWORK, *_DESTINATION[family])


def _translated(operator: int = nft.NEQ) -> bytes:
    """Go on if the connection's destination was rewritten; with EQ if it was not."""
    status = nft.STATUS_DNAT.to_bytes(4, sys.byteorder)
    return nft.ct(nft.REG1, nft.CT_STATUS) + nft.mask(nft.REG1, status) + nft.compare(nft.REG1, operator, bytes(4))


def static(family: int) -> list[Message]:
    """The messages that make the table of `family`; all fail with EEXIST but the first if it is there."""
    address = _ADDRESS[family]
    port, host = (nft.PROTO, nft.SERVICE), (address, nft.PROTO, nft.SERVICE)
    sets = (
        ("ports", port, (address, nft.SERVICE), False),
        ("hostports", host, (address, nft.SERVICE), False),
        ("ranges", port, (address,), True),
        ("hostranges", host, (address,), True),
        ("outgoing", (address,), (nft.VERDICT,), False),
        ("hairpin", (address,), (nft.VERDICT,), False),
        ("everyone", (address,), (), False),
        ("protected", (address,), (), False),
        ("members", (nft.IFNAME, address), (), False),
        ("isolated", (nft.IFNAME, address), (), False),
    )
    messages = [nft.table(family, NAME)]
    for number, (name, key, data, interval) in enumerate(sets, 1):
        messages.append(nft.make_set(family, NAME, name, key, data, interval=interval, id=number))
    messages.append(nft.chain(family, NAME, "mapped"))
    for name, hook, priority in (
        ("prerouting", nft.PREROUTING, nft.PRIORITY_DSTNAT),
        ("output", nft.OUTPUT, nft.PRIORITY_DSTNAT),
        ("postrouting", nft.POSTROUTING, nft.PRIORITY_SRCNAT),
    ):
        messages.append(nft.base_chain(family, NAME, name, type="nat", hook=hook, priority=priority))
    messages += _dnat_rules(family)
    local = nft.fib_daddr_type(nft.REG1) + nft.compare(nft.REG1, nft.EQ, (2).to_bytes(4, sys.byteorder))
    for name in ("prerouting", "output"):
        messages.append(nft.rule(family, NAME, name, local, nft.verdict(nft.JUMP, "mapped")))
    messages += _postrouting_rules(family)
    messages += _forward_rules(family)
    messages += _neighbours(family, len(sets) + 1)
    return messages


def _forward_rules(family: int) -> list[Message]:
    """Who may talk to whom; a port that is mapped is open to everybody who reaches the host."""
    untouched = _translated(nft.EQ)
    by_interface = nft.meta(nft.R0, nft.META_IIFNAME) + destination(family, nft.R0 + 4)
    between = (
        destination(family)
        + nft.lookup(nft.REG1, "protected")
        + source(family)
        + nft.lookup(nft.REG1, "protected")
        + by_interface
        + nft.lookup(nft.R0, "members", inverted=True)
    )
    within = by_interface + nft.lookup(nft.R0, "isolated")
    chain = nft.base_chain(family, NAME, "forward", type="filter", hook=nft.FORWARD, priority=nft.PRIORITY_FILTER)
    return [chain, *(nft.rule(family, NAME, "forward", untouched, r, nft.verdict(nft.DROP)) for r in (between, within))]


def _neighbours(family: int, id: int = 1) -> list[Message]:
    """The set of that name and its rule, before the others: for `static`, and tables that were made without it."""
    by_group = nft.meta(nft.R0, nft.META_IIFGROUP) + destination(family, nft.R0 + 1)
    found = nft.lookup(nft.R0, "neighbours")
    return [
        nft.make_set(family, NAME, "neighbours", (nft.GROUP, _ADDRESS[family]), id=id),
        nft.rule(family, NAME, "forward", by_group, found, nft.verdict(nft.RETURN), first=True),
    ]


def group_of(network: str) -> int:
    """The group of the host's ends of pairs that have no bridge, by which the kernel sees them as one network."""
    from zlib import crc32

    return crc32(network.encode()) | 1 << 30  # none that somebody would choose by hand


def _dnat_rules(family: int) -> list[Message]:
    """Look the destination up: ports bound to an address of the host first."""
    words = _ADDRESS_WORDS[family]
    rules: list[Message] = []
    for name, with_address, with_port in (
        ("hostports", True, True),
        ("ports", False, True),
        ("hostranges", True, False),
        ("ranges", False, False),
    ):
        register = nft.R0
        load = b""
        if with_address:
            load = destination(family, register)
            register += words
        load += nft.meta(register, nft.META_L4PROTO) + nft.payload(register + 1, nft.TRANSPORT, 2, 2)
        found = nft.lookup(nft.R0, name, to=nft.R0)
        rules.append(
            nft.rule(
                family, NAME, "mapped", load, found, nft.dnat(family, nft.R0, nft.R0 + words if with_port else None)
            )
        )
    return rules


_ADDRESS_WORDS = {nft.IP: 1, nft.IP6: 4}


def _postrouting_rules(family: int) -> list[Message]:
    rules: list[Message] = []
    if family == nft.IP:
        from_loopback = (
            source(family) + nft.mask(nft.REG1, bytes((255, 0, 0, 0))) + nft.compare(nft.REG1, nft.EQ, b"\x7f\0\0\0")
        )
        rules.append(nft.rule(family, NAME, "postrouting", _translated(), from_loopback, nft.masquerade()))
        # A port bound to 127.0.0.1 must not be reached from the wire: destinations are rewritten before the
        # kernel's own check for such martians, and route_localnet on the bridges takes that check away
        # (CVE-2020-8558).
        rules.append(
            nft.base_chain(family, NAME, "loopback", type="filter", hook=nft.PREROUTING, priority=nft.PRIORITY_RAW)
        )
        not_lo = nft.meta(nft.REG1, nft.META_IIFNAME) + nft.compare(nft.REG1, nft.NEQ, b"lo".ljust(16, b"\0"))
        to_loopback = (
            destination(family)
            + nft.mask(nft.REG1, bytes((255, 0, 0, 0)))
            + nft.compare(nft.REG1, nft.EQ, b"\x7f\0\0\0")
        )
        rules.append(nft.rule(family, NAME, "loopback", not_lo, to_loopback, nft.verdict(nft.DROP)))
    by_destination = destination(family)
    rules += (
        nft.rule(
            family,
            NAME,
            "postrouting",
            _translated(),
            by_destination,
            nft.lookup(nft.REG1, "everyone"),
            nft.masquerade(),
        ),
        nft.rule(family, NAME, "postrouting", _translated(), by_destination, nft.lookup(nft.REG1, "hairpin", to=0)),
        nft.rule(family, NAME, "postrouting", source(family), nft.lookup(nft.REG1, "outgoing", to=0)),
    )
    return rules


def commit(socket: Socket, messages: Sequence[Message], families: Sequence[int] = FAMILIES) -> None:
    """Commit `messages`; if the table isn't there (first use, a flushed ruleset), make it and commit again."""
    try:
        nft.commit(socket, messages)
    except Error as error:
        if error.errno != ENOENT:
            raise
        ensure(socket, families)
        nft.commit(socket, messages)


def ensure(socket: Socket, families: Sequence[int] = FAMILIES) -> bool:
    """Make the tables that aren't there; True if one was made."""
    made = False
    for family in families:
        if nft.has_table(socket, family, NAME):
            continue
        try:
            nft.commit(socket, static(family))
            made = True
        except Error as error:
            if error.errno != EEXIST:  # another process was first
                raise
    return made


def ensure_neighbours(socket: Socket, family: int) -> None:
    """Make the set `neighbours` in a table that was made without it."""
    try:
        nft.commit(socket, _neighbours(family))
    except Error as error:
        if error.errno != EEXIST:  # another process was first
            raise


# --- whose an element is --------------------------------------------------------------------------------------


class Owner:
    """An attachment as the comment of an element names it: `network/container/interface`.

    Comments hold 127 bytes; what is longer goes by digests and the start of the
    id, and so does an interface whose name holds what iptables can't quote.
    """

    __slots__ = ("comment", "container", "ifname", "network")

    def __init__(self, network: str, container: str, ifname: str) -> None:
        self.network = network
        self.container = container
        self.ifname = ifname
        comment = f"{network}/{container}/{ifname}"
        if len(comment.encode()) > 120 or not ifname.isascii() or '"' in ifname or "\\" in ifname:
            comment = f"{_long_prefix(network)}{_digest(f'{container}/{ifname}')}/{container[:48]}"
        self.comment = comment


def _digest(value: str) -> str:
    from hashlib import sha256

    return sha256(value.encode()).hexdigest()[:24]


def _long_prefix(network: str) -> str:
    return f"#{_digest(network)}/"


def of_network(network: str) -> Callable[[str], bool]:
    """Does a comment name an attachment to this network?"""
    prefixes = (f"{network}/", _long_prefix(network))
    return lambda comment: comment.startswith(prefixes)


def holder(comment: str) -> str:
    """A comment in words, for an error."""
    parts = comment.split("/")
    if len(parts) == 3 and not comment.startswith("#"):
        return f"container {parts[1]} (network {parts[0]}, {parts[2]})"
    return f"container {parts[-1]}…" if comment.startswith("#") else f"an attachment {comment!r}"


# --- addresses that are masqueraded ---------------------------------------------------------------------------


#: in each chain that elements jump to
_RULES = 1


def _network(family: int, address: Address) -> tuple[str, bytes, bytes]:
    """(name of the chain's second half, network address, mask)."""
    import _socket

    _, data, prefix = address
    bits = len(data) * 8
    mask = ((1 << bits) - 1) ^ ((1 << (bits - prefix)) - 1)
    base = (int.from_bytes(data, "big") & mask).to_bytes(len(data), "big")
    text = _socket.inet_ntop(family, base).replace(":", ".")
    return f"{text}/{prefix}", base, mask.to_bytes(len(data), "big")


def _chain_of(set: str, family: int, address: Address) -> tuple[str, list[Message]]:
    """The chain that an element of `set` jumps to, and what makes it."""
    name, base, mask = _network(family, address)
    name = f"{set}-{name}"
    made = [nft.chain(family, NAME, name)]
    if set == "hairpin":
        same = source(family) + nft.mask(nft.REG1, mask) + nft.compare(nft.REG1, nft.EQ, base)
        made.append(nft.rule(family, NAME, name, same, nft.masquerade()))
        return name, made
    other = destination(family) + nft.mask(nft.REG1, mask) + nft.compare(nft.REG1, nft.NEQ, base)
    unicast = (
        destination(family)
        + nft.mask(nft.REG1, _MULTICAST[family])
        + nft.compare(nft.REG1, nft.NEQ, _MULTICAST_NET[family])
    )
    made.append(nft.rule(family, NAME, name, other, unicast, nft.masquerade()))
    return name, made


def family_of(address: Address) -> int:
    """The nftables family of an address: the numbers of AF_INET and AF_INET6 are the same."""
    return address[0]


def add_address(socket: Socket, set: str, address: Address, owner: Owner) -> None:
    """Put the address of a container (with its prefix) into `outgoing`, `hairpin` or `everyone`.

    An address that is there already is taken over: the address is the owner's
    now, and whoever had it before didn't clean up. What is there is asked for
    before: the kernel takes 10 ms to give up a transaction that fails.
    """
    from ocirt.linux.netlink_nft import Element

    family = family_of(address)
    chain, make = ("", []) if set == "everyone" else _chain_of(set, family, address)
    element = Element(address[1], chain, owner.comment)
    add = nft.add_elements(family, NAME, set, [element])
    for _ in range(50):
        messages = add if not chain or nft.chain_uses(socket, family, NAME, chain) >= 0 else [*make, *add]
        try:
            nft.commit(socket, messages)
            return
        except Error as error:
            if error.errno == ENOENT:
                ensure(socket, (family,))
            elif error.errno != EEXIST:
                raise
        there = nft.element(socket, family, NAME, set, Element(address[1]))
        if there is not None:
            drop_elements(socket, family, set, [there])
    raise Error(f"nft: element of {set} can't be added", EBUSY)


def drop_elements(socket: Socket, family: int, set: str, elements: Sequence[Element]) -> None:
    """Remove elements, and the chains that only they jumped to."""
    if not elements:
        return
    messages = nft.delete_elements(family, NAME, set, elements)
    chains = [e.data for e in elements if isinstance(e.data, str) and e.data]
    unused = [
        nft.delete_chain(family, NAME, chain)
        for chain in dict.fromkeys(chains)
        if nft.chain_uses(socket, family, NAME, chain) == chains.count(chain) + _RULES
    ]
    try:
        nft.commit(socket, [*messages, *unused])
        return
    except Error as error:
        if error.errno not in (ENOENT, EBUSY):
            raise
    if unused:  # another container has just begun to use the chain
        drop_without_chains = [nft.Element(e.key, comment=e.comment, end=e.end) for e in elements]
        drop_elements(socket, family, set, drop_without_chains)
    elif len(elements) > 1:  # one of them was gone: the others still go
        for element in elements:
            drop_elements(socket, family, set, [element])


def drop_address(socket: Socket, set: str, address: Address, owner: Owner) -> bool:
    """Remove the address if it is the owner's; False if it isn't there or somebody else's."""
    from ocirt.linux.netlink_nft import Element

    family = family_of(address)
    found = nft.element(socket, family, NAME, set, Element(address[1]))
    if found is None or found.comment != owner.comment:
        return False
    drop_elements(socket, family, set, [found])
    return True


def drop_owned(socket: Socket, sets: Sequence[str], mine: Callable[[str], bool]) -> int:
    """Remove every element of `sets` whose comment is `mine`; how many there were."""
    count = 0
    for family in FAMILIES:
        for set in sets:
            found = [e for e in nft.elements(socket, family, NAME, set) if e.comment and mine(e.comment)]
            drop_elements(socket, family, set, found)
            count += len(found)
    return count

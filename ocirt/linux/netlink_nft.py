"""nfnetlink's nftables: tables, chains, rules, sets and maps as messages of one transaction.

Functions build messages or, for rules, the bytes of expressions; `commit` sends
a list of messages as one batch that happens whole or not at all. Names follow
linux/netfilter/nf_tables.h; numbers in attributes are in network order.

A rule is the concatenation of expressions that pass values through registers:
REG1 (16 bytes) and, for concatenated keys, the 4-byte registers from R0 on.
"""

from __future__ import annotations

from ocirt.linux.netlink import (
    NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Socket,
    attribute,
    attributes,
    be32,
    c_string,
    each_attribute,
    nest,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

IP, IP6, INET, BRIDGE = 2, 10, 1, 7  # families: NFPROTO_…
FAMILY_NAMES = {IP: "ip", IP6: "ip6", INET: "inet", BRIDGE: "bridge"}

_SUBSYSTEM = 10 << 8
(_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE, _GETRULE, _DELRULE, _NEWSET, _GETSET,
 _DELSET, _NEWELEM, _GETELEM, _DELELEM) = (_SUBSYSTEM | n for n in range(15))  # fmt: skip
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NLM_F_APPEND = 0x800

# hooks and priorities of base chains
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
PRIORITY_RAW, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT = -300, -100, 0, 100

# sets
_SET_INTERVAL, _SET_MAP, _SET_CONCAT = 0x4, 0x8, 0x80
IPV4, IPV6, PROTO, SERVICE, IFNAME, ETHER, GROUP = 7, 8, 12, 13, 41, 9, 35  # key types as nft numbers them
VERDICT = 0xFFFFFF00
_LENGTH = {IPV4: 4, IPV6: 16, PROTO: 1, SERVICE: 2, IFNAME: 16, ETHER: 6, GROUP: 4, VERDICT: 16}

# registers
REG1, REG2, R0 = 1, 2, 8

# verdicts
DROP, ACCEPT, JUMP, GOTO, RETURN = 0, 1, -3, -4, -5

# cmp
EQ, NEQ = 0, 1

META_OIFNAME, META_IIFNAME, META_L4PROTO, META_IIFGROUP = 7, 6, 16, 21
CT_STATUS, CT_STATE = 2, 0
STATUS_DNAT = 0x20
LINK, NETWORK, TRANSPORT = 0, 1, 2

TCP, UDP, SCTP = 6, 17, 132


def open_nft(netns: int | None = None) -> Socket:
    """A nfnetlink socket in the namespace `netns` (a descriptor) or the caller's."""
    return Socket(NETFILTER, netns)


def commit(socket: Socket, messages: Iterable[Message]) -> None:
    """Send `messages` as one transaction; Error with the errno of the first that failed, and nothing has happened."""
    messages = list(messages)
    ends = (
        Message(_BATCH_BEGIN, 0, b"\0\0\0\x0a", "nft transaction"),
        Message(_BATCH_END, NLM_F_ACK, b"\0\0\0\x0a", "nft transaction"),
    )
    size = sum(len(m.payload) for m in messages)
    if size > 60_000:
        socket.enlarge(size * 2)
    socket.batch(messages, ends)


def _message(type: int, flags: int, family: int, shown: str, *parts: bytes) -> Message:
    names = FAMILY_NAMES.get(family, "")
    return Message(type, flags, bytes((family, 0, 0, 0)) + b"".join(parts), f"nft {shown.format(family=names)}")


# --- tables, chains, rules -----------------------------------------------------------------------------------


def table(family: int, name: str) -> Message:
    """Make the table, or find it there."""
    return _message(_NEWTABLE, NLM_F_CREATE, family, f"add table {{family}} {name}", text(1, name), be32(2, 0))


def delete_table(family: int, name: str) -> Message:
    """Remove the table with all that is in it; ENOENT if there is none."""
    return _message(_DELTABLE, 0, family, f"delete table {{family}} {name}", text(1, name))


def chain(family: int, table: str, name: str, *, excl: bool = True) -> Message:
    """Make a chain to jump to; EEXIST if it is there."""
    flags = NLM_F_CREATE | (NLM_F_EXCL if excl else 0)
    return _message(_NEWCHAIN, flags, family, f"add chain {{family}} {table} {name}", text(1, table), text(3, name))


def base_chain(family: int, table: str, name: str, *, type: str, hook: int, priority: int) -> Message:
    """Make a chain that the kernel calls at `hook`, policy accept; EEXIST if it is there."""
    hooked = nest(4, be32(1, hook), be32(2, priority & 0xFFFFFFFF))
    return _message(
        _NEWCHAIN,
        NLM_F_CREATE | NLM_F_EXCL,
        family,
        f"add chain {{family}} {table} {name}",
        text(1, table),
        text(3, name),
        hooked,
        be32(5, ACCEPT),
        text(7, type),
    )


def delete_chain(family: int, table: str, name: str) -> Message:
    """Remove a chain with its rules; EBUSY while something jumps to it."""
    return _message(_DELCHAIN, 0, family, f"delete chain {{family}} {table} {name}", text(1, table), text(3, name))


def flush_chain(family: int, table: str, name: str) -> Message:
    """Remove the rules of a chain."""
    return _message(_DELRULE, 0, family, f"flush chain {{family}} {table} {name}", text(1, table), text(2, name))


def rule(family: int, table: str, chain: str, *expressions: bytes, comment: str = "", first: bool = False) -> Message:
    """Append a rule, or put it `first`: expressions as the functions below make them."""
    parts = [text(1, table), text(2, chain), nest(4, *expressions)]
    if comment:
        parts.append(attribute(7, _comment(comment)))
    shown = f"add rule {{family}} {table} {chain}"
    return _message(_NEWRULE, NLM_F_CREATE | (0 if first else _NLM_F_APPEND), family, shown, *parts)


def delete_rule(family: int, table: str, chain: str, handle: int) -> Message:
    """Remove the rule of this handle."""
    parts = (text(1, table), text(2, chain), attribute(3, handle.to_bytes(8, "big")))
    return _message(_DELRULE, 0, family, f"delete rule {{family}} {table} {chain} handle {handle}", *parts)


def rules(socket: Socket, family: int, table: str, chain: str) -> list[tuple[int, str]]:
    """(handle, comment) of each rule of a chain; nothing if there is no such chain."""
    request = _message(_GETRULE, 0, family, f"list chain {{family}} {table} {chain}", text(1, table), text(2, chain))
    found: list[tuple[int, str]] = []
    for payload in socket.dump(request):
        attrs = attributes(payload, 4)
        if c_string(attrs.get(1, b"")) == table and c_string(attrs.get(2, b"")) == chain:
            found.append((int.from_bytes(attrs[3], "big"), _read_comment(attrs.get(7, b""))))
    return found


def chains(socket: Socket, family: int, table: str) -> list[str]:
    """The names of the table's chains; nothing if there is no such table."""
    request = _message(_GETCHAIN, 0, family, f"list chains {{family}} {table}", text(1, table))
    found = (attributes(p, 4) for p in socket.dump(request))
    return [c_string(a[3]) for a in found if c_string(a.get(1, b"")) == table]


def chain_uses(socket: Socket, family: int, table: str, name: str) -> int:
    """How many rules are in the chain and jumps lead to it, together; -1 if there is no such chain."""
    shown = f"list chain {{family}} {table} {name}"
    payload = socket.ask(_message(_GETCHAIN, 0, family, shown, text(1, table), text(3, name)))
    if payload is None:
        return -1
    return int.from_bytes(attributes(payload, 4).get(6, b""), "big")


def has_table(socket: Socket, family: int, name: str) -> bool:
    """Is there such a table?"""
    return socket.ask(_message(_GETTABLE, 0, family, f"list table {{family}} {name}", text(1, name))) is not None


def is_table_gone(type: int, payload: bytes, name: str) -> bool:
    """Does a message of the multicast group say that a table of this name was removed (whatever is there by now)?"""
    return type == _DELTABLE and c_string(attributes(payload, 4).get(1, b"")) == name


# --- sets, maps and their elements ---------------------------------------------------------------------------


def make_set(
    family: int, table: str, name: str, key: Sequence[int], data: Sequence[int] = (), *, interval: bool = False, id: int
) -> Message:
    """Make a set, or with `data` a map: the types of the key's and the data's parts; EEXIST if it is there.

    `id` tells the sets of one transaction apart. Several parts are a
    concatenation, each padded to four bytes.
    """
    flags = (_SET_INTERVAL if interval else 0) | (_SET_MAP if data else 0)
    description = b""
    if interval and len(key) > 1:
        flags |= _SET_CONCAT
        description = nest(9, nest(2, *(nest(1, be32(1, _LENGTH[k])) for k in key)))
    parts = [text(1, table), text(2, name), be32(3, flags), be32(4, _type(key)), be32(5, _size(key)), be32(10, id)]
    if data:
        parts += (be32(6, _type(data)), be32(7, _size(data)))
    flags_ = NLM_F_CREATE | NLM_F_EXCL
    return _message(_NEWSET, flags_, family, f"add set {{family}} {table} {name}", *parts, description)


def _type(parts: Sequence[int]) -> int:
    number = 0
    for part in parts:
        number = number << 6 | part
    return number


def _size(parts: Sequence[int]) -> int:
    if len(parts) == 1:
        return _LENGTH[parts[0]]
    return sum((_LENGTH[p] + 3) & ~3 for p in parts)


class Element:
    """An element of a set or map, all values packed.

    key, end   the key; of an interval both ends, inclusive
    data       of a map; bytes, or the name of the chain that a verdict map jumps to
    comment    whose it is, up to 127 bytes
    """

    __slots__ = ("comment", "data", "end", "key")

    def __init__(self, key: bytes, data: bytes | str = b"", comment: str = "", end: bytes = b"") -> None:
        self.key = key
        self.end = end
        self.data = data
        self.comment = comment

    def pack(self, whole: bool = True) -> bytes:
        """The element's attributes; only what identifies it unless `whole`."""
        parts = [nest(1, attribute(1, self.key))]
        if self.end:
            parts.append(nest(10, attribute(1, self.end)))
        if whole and self.data:
            if isinstance(self.data, str):
                parts.append(nest(2, _verdict_data(JUMP, self.data)))
            else:
                parts.append(nest(2, attribute(1, self.data)))
        if whole and self.comment:
            parts.append(attribute(6, _comment(self.comment)))
        return nest(1, *parts)


_PER_MESSAGE = 500


def add_elements(family: int, table: str, set: str, elements: Sequence[Element]) -> list[Message]:
    """Add elements; EEXIST if one of the keys is taken, ENOTEMPTY if an interval overlaps, ENOENT without the set."""
    return _elements(_NEWELEM, NLM_F_CREATE | NLM_F_EXCL, family, table, set, elements)


def delete_elements(family: int, table: str, set: str, elements: Sequence[Element]) -> list[Message]:
    """Remove elements; ENOENT if one isn't there."""
    return _elements(_DELELEM, 0, family, table, set, elements)


def _elements(type: int, flags: int, family: int, table: str, set: str, elements: Sequence[Element]) -> list[Message]:
    verb = "add" if type == _NEWELEM else "delete"
    whole = type == _NEWELEM
    messages: list[Message] = []
    for start in range(0, len(elements), _PER_MESSAGE):
        packed = nest(3, *(e.pack(whole) for e in elements[start : start + _PER_MESSAGE]))
        shown = f"{verb} element {{family}} {table} {set}"
        messages.append(_message(type, flags, family, shown, text(1, table), text(2, set), packed))
    return messages


def element(socket: Socket, family: int, table: str, set: str, key: Element) -> Element | None:
    """The element of this key as the kernel has it, None if there is none."""
    shown = f"get element {{family}} {table} {set}"
    request = _message(_GETELEM, 0, family, shown, text(1, table), text(2, set), nest(3, key.pack(False)))
    payload = socket.ask(request)
    return next(iter(_read_elements(payload)), None) if payload is not None else None


def elements(socket: Socket, family: int, table: str, set: str) -> list[Element]:
    """All elements of a set; nothing if there is no such set."""
    request = _message(_GETELEM, 0, family, f"list set {{family}} {table} {set}", text(1, table), text(2, set))
    return [e for payload in socket.dump(request) for e in _read_elements(payload)]


def _read_elements(payload: bytes) -> Iterable[Element]:
    for _, item in each_attribute(attributes(payload, 4).get(3, b"")):
        found = attributes(item)
        data = attributes(found.get(2, b""))
        verdict = attributes(data.get(2, b""))
        yield Element(
            attributes(found.get(1, b"")).get(1, b""),
            c_string(verdict.get(2, b"")) if verdict else data.get(1, b""),
            _read_comment(found.get(6, b"")),
            attributes(found.get(10, b"")).get(1, b""),
        )


def _comment(comment: str) -> bytes:
    data = comment.encode()[:127] + b"\0"
    return bytes((0, len(data))) + data


def _read_comment(data: bytes) -> str:
    """The comment among the type-length-values of user data."""
    offset = 0
    while offset + 2 <= len(data):
        if data[offset] == 0:
            return c_string(data[offset + 2 : offset + 2 + data[offset + 1]])
        offset += 2 + data[offset + 1]
    return ""


# --- expressions ---------------------------------------------------------------------------------------------


def _expression(name: str, *parts: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *parts))


def payload(register: int, base: int, offset: int, length: int) -> bytes:
    """Load bytes of a header: LINK, NETWORK or TRANSPORT."""
    return _expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length))


def meta(register: int, key: int) -> bytes:
    """Load what the kernel knows about the packet."""
    return _expression("meta", be32(2, key), be32(1, register))


def ct(register: int, key: int) -> bytes:
    """Load what connection tracking knows."""
    return _expression("ct", be32(2, key), be32(1, register))


def fib_daddr_type(register: int) -> bytes:
    """Load the type of the destination address: 2 is one of the host's own."""
    return _expression("fib", be32(1, register), be32(2, 3), be32(3, 2))


def compare(register: int, operator: int, data: bytes) -> bytes:
    """Go on if the register's bytes are EQ or NEQ `data`."""
    return _expression("cmp", be32(1, register), be32(2, operator), nest(3, attribute(1, data)))


def mask(register: int, mask: bytes) -> bytes:
    """The register's bytes and `mask`."""
    zero = nest(5, attribute(1, bytes(len(mask))))
    return _expression(
        "bitwise", be32(1, register), be32(2, register), be32(3, len(mask)), nest(4, attribute(1, mask)), zero
    )


def lookup(register: int, set: str, *, to: int | None = None, inverted: bool = False) -> bytes:
    """Go on if the key in the register is in the set; of a map put the data into `to` (0: it is a verdict)."""
    parts = [text(1, set), be32(2, register)]
    if to is not None:
        parts.append(be32(3, to))
    if inverted:
        parts.append(be32(5, 1))
    return _expression("lookup", *parts)


def load(register: int, data: bytes) -> bytes:
    """Put a constant into the register."""
    return _expression("immediate", be32(1, register), nest(2, attribute(1, data)))


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule: ACCEPT, DROP, RETURN, or JUMP or GOTO a chain."""
    return _expression("immediate", be32(1, 0), nest(2, _verdict_data(code, chain)))


def _verdict_data(code: int, chain: str) -> bytes:
    parts = [be32(1, code & 0xFFFFFFFF)]
    if chain:
        parts.append(text(2, chain))
    return nest(2, *parts)


def dnat(family: int, address: int, port: int | None) -> bytes:
    """Rewrite the destination to the address and port in these registers."""
    parts = [be32(1, 1), be32(2, family), be32(3, address)]
    if port is not None:
        parts.append(be32(5, port))
    return _expression("nat", *parts)


def masquerade() -> bytes:
    """Rewrite the source to the address of the interface that the packet leaves by."""
    return _expression("masq")

"""protobuf's wire format, by tables: what containerd and a shim say to each other is small, and importing protobuf
costs five times a bare interpreter's start.

A message is a dict; what isn't in it has its default. A table gives each field's number its name and its kind:

    PERSON = {1: ("name", STRING), 2: ("age", UINT32), 3: ("children", [CHILD]), 4: ("notes", {})}

kind  one of the constants; a table: a message; [kind]: repeated; {}: map<string, string>
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Table = dict[int, tuple[str, Any]]

STRING, BYTES, BOOL, INT32, INT64, UINT32, UINT64, DOUBLE = range(1, 9)

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MASK64 = (1 << 64) - 1
_ENTRY: Table = {1: ("key", STRING), 2: ("value", STRING)}
_DEPTH_MAX = 32


def encode(table: Table, message: dict[str, Any]) -> bytes:
    """A message's bytes, without fields that have their default (proto3). ValueError for an unknown name."""
    out = bytearray()
    known = 0
    for number, (name, kind) in table.items():
        if name in message:
            known += 1
            _field(out, number, kind, message[name])
    if known != len(message):
        names = {name for name, _ in table.values()}
        raise ValueError(f"no such field: {', '.join(sorted(set(message) - names))}")
    return bytes(out)


def _field(out: bytearray, number: int, kind: Any, value: Any) -> None:
    if kind.__class__ is dict:
        if kind:
            _bytes(out, number, encode(kind, value))
        else:
            for key, text in value.items():
                _bytes(out, number, encode(_ENTRY, {"key": key, "value": text}))
    elif not value:
        return
    elif kind.__class__ is list:
        _repeated(out, number, kind[0], value)
    elif kind == STRING:
        _bytes(out, number, value.encode())
    elif kind == BYTES:
        _bytes(out, number, value)
    elif kind == DOUBLE:
        _varint(out, number << 3 | _FIXED64)
        from struct import pack  # in metrics only

        out += pack("<d", value)
    else:
        _varint(out, number << 3)
        _varint(out, int(value))


def _repeated(out: bytearray, number: int, kind: Any, values: Any) -> None:
    if kind.__class__ is dict:
        for value in values:
            _bytes(out, number, encode(kind, value))
    elif kind in (STRING, BYTES):
        for value in values:
            _bytes(out, number, value.encode() if kind == STRING else value)
    else:  # packed
        inner = bytearray()
        for value in values:
            _varint(inner, int(value))
        _bytes(out, number, bytes(inner))


def _bytes(out: bytearray, number: int, value: bytes) -> None:
    _varint(out, number << 3 | _LENGTH)
    _varint(out, len(value))
    out += value


def _varint(out: bytearray, value: int) -> None:
    value &= _MASK64
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def decode(table: Table, data: bytes) -> dict[str, Any]:
    """The message in `data`; fields that the table doesn't know are passed over. ValueError if it isn't one."""
    return _decode(table, data, {}, _DEPTH_MAX)


def _decode(table: Table, data: bytes, message: dict[str, Any], depth: int) -> dict[str, Any]:
    if depth == 0:
        raise ValueError("messages are nested too deeply")
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        number, form = key >> 3, key & 7
        value: Any
        if form == _VARINT:
            value, at = _read_varint(data, at)
        elif form == _LENGTH:
            size, at = _read_varint(data, at)
            value = data[at : at + size]
            at += size
        elif form in (_FIXED64, _FIXED32):
            size = 8 if form == _FIXED64 else 4
            value = data[at : at + size]
            at += size
        else:
            raise ValueError(f"field {number} has wire type {form}")
        if at > end:
            raise ValueError(f"field {number} is cut off")
        if number == 0:
            raise ValueError("field number 0")
        entry = table.get(number)
        if entry is not None:
            _store(message, entry[0], entry[1], form, value, depth)
    return message


def _store(message: dict[str, Any], name: str, kind: Any, form: int, value: Any, depth: int) -> None:
    """Put a field's value where it belongs; one of another wire type is unknown, and passed over."""
    if kind.__class__ is list:
        found = message.setdefault(name, [])
        inner = kind[0]
        if form == _LENGTH and inner.__class__ is not dict and inner not in (STRING, BYTES):
            at = 0
            while at < len(value):
                number, at = _read_varint(value, at)
                found.append(_scalar(inner, number))
        elif _form_of(inner) == form:
            found.append(_decode(inner, value, {}, depth - 1) if inner.__class__ is dict else _scalar(inner, value))
    elif _form_of(kind) != form:
        return
    elif kind.__class__ is not dict:
        message[name] = _scalar(kind, value)
    elif kind:
        # the same message twice is merged
        message[name] = _decode(kind, value, message.get(name, {}), depth - 1)
    else:
        pair = _decode(_ENTRY, value, {}, depth - 1)
        message.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")


def _form_of(kind: Any) -> int:
    if kind.__class__ is dict or kind in (STRING, BYTES):
        return _LENGTH
    return _FIXED64 if kind == DOUBLE else _VARINT


def _scalar(kind: int, value: Any) -> Any:
    if kind == STRING:
        return value.decode()  # UnicodeDecodeError is a ValueError
    if kind == BYTES:
        return value
    if kind == BOOL:
        return value != 0
    if kind == DOUBLE:
        from struct import unpack

        return unpack("<d", value)[0]
    if kind in (INT32, UINT32):
        value &= 0xFFFFFFFF
        return value - (1 << 32) if kind == INT32 and value >> 31 else value
    return value - (1 << 64) if kind == INT64 and value >> 63 else value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & _MASK64, at
            shift += 7
            if shift > 63:
                raise ValueError("a number is longer than ten bytes")
    except IndexError:
        raise ValueError("a number is cut off") from None

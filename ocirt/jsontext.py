"""JSON by the C scanner and encoder behind `json`.

The `json` package itself brings `re` and `enum`, which takes as long to import
as a bare interpreter takes to start: it is imported only to say where a text is
wrong.
"""

from __future__ import annotations

import _json

from ocirt.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Never

_SPACE = " \t\n\r"


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0.0:  # infinite: JSON has no such number, 1e400 is a way to write it
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


class _Strict:
    """What the scanner wants to know."""

    strict = True  # no control characters in strings
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_scanner: Any = _Strict  # an object with these attributes is all that is wanted
_scan = _json.make_scanner(_scanner)


def parse_json(data: bytes, what: str) -> object:
    """The one JSON value in `data` (UTF-8, RFC 8259): no NaN, no infinity, nothing after it.

    Integers are int, everything with a point or an exponent is float. `what`
    names the input in the InvalidConfig that is raised with line and column.
    """
    try:
        text = data.decode("utf-8")
        start = 0 if text[:1] == "{" else len(text) - len(text.lstrip(_SPACE))
        value, end = _scan(text, start)
        if end == len(text) or not text[end:].strip(_SPACE):
            return value
    except (ValueError, StopIteration, SystemError, RecursionError, MemoryError):
        pass  # SystemError: the scanner has no exception to raise as long as `json` isn't imported
    raise InvalidConfig(f"{what} is not valid JSON: {_why(data)}")


def _why(data: bytes) -> str:
    """What is wrong with `data`, with line and column (only called when something is)."""
    import json

    if not data.strip():
        return "it is empty"
    if data[:3] == b"\xef\xbb\xbf":
        return "it starts with a byte order mark"
    try:
        text = data.decode("utf-8")
        json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"line {line}: not UTF-8 (byte {error.start}: {error.reason})"
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:
        return str(error) if "digits" not in str(error) else "it holds a number with thousands of digits"
    return "unknown reason"


def _refuse_object(value: object) -> Never:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode = _json.make_encoder(
    None,  # no table against cycles: RecursionError tells
    _refuse_object,
    _json.encode_basestring_ascii,
    None,
    ":",
    ",",
    False,
    False,
    False,
)


def dump_json(value: object) -> bytes:
    """`value` as compact JSON in ASCII, keys in their order.

    Bytes that came in by surrogateescape (file names that aren't UTF-8) go out
    as `\\udcXX` and come back the same through parse_json. Raises TypeError or
    ValueError for what JSON can't hold.
    """
    return "".join(_encode(value, 0)).encode("ascii")

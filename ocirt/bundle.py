"""Reading an OCI bundle: config.json once, strictly, and its root filesystem (bundle.md, config.md).

JSON goes through the C scanner and encoder behind `json`; the `json` package
itself (which brings `re` and `enum`, as long to import as a bare interpreter
takes to start) is imported only to say where a text is wrong.
"""

from __future__ import annotations

import _json
import os

from ocirt.errors import Error, InvalidConfig, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Never

    from ocirt.spec import Config

#: A config.json is some 20 to 200 KB; more than this is a mistake or an attack on the memory of the host.
MAX_CONFIG = 16 << 20

_SPACE = " \t\n\r"


class Bundle:
    """A bundle as read: later edits of its files have no effect (runtime.md, Lifecycle, step 2).

    path     absolute, without symbolic links
    config   the parsed config.json, checked by ocirt.validation
    raw      config.json, byte for byte
    rootfs   absolute path of an existing directory, without symbolic links
    """

    __slots__ = ("config", "path", "raw", "rootfs")

    def __init__(self, path: str, config: Config, raw: bytes, rootfs: str) -> None:
        self.path = path
        self.config: Config = config
        self.raw = raw
        self.rootfs = rootfs


def load(bundle: str, config_path: str | None = None) -> Bundle:
    """Read and check the bundle; `config_path` replaces its config.json.

    Raises InvalidConfig with every problem of the configuration at once, Error
    (with the errno) where the bundle, the file or the root filesystem is missing.
    """
    from ocirt.validation import check

    path = directory(bundle)
    raw = read_config(path, config_path)
    config = parse_config(raw)
    check(config, raw)
    return Bundle(path, config, raw, find_rootfs(path, config))


def directory(bundle: str) -> str:
    """The bundle's absolute path; Error if it is no directory."""
    try:
        path = os.path.realpath(bundle, strict=True)
        if not os.path.isdir(path):
            raise NotADirectoryError(20, "Not a directory")
    except OSError as error:
        # runc changes into the bundle, and engines show its sentence to users
        raise _failed(f"chdir {bundle}", error) from error
    return path


def read_config(bundle: str, config_path: str | None = None) -> bytes:
    """The bytes of config.json, read once; Error if it is missing, unreadable or too big."""
    path = os.path.join(bundle, "config.json") if config_path is None else config_path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return _read_all(fd, path)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        reason = _failed(f"open {path}", error)
        raise Error(f"JSON specification file {os.path.basename(path)} not found: {reason}", 2) from error
    except OSError as error:
        raise _failed(f"open {path}", error) from error


def _read_all(fd: int, path: str) -> bytes:
    parts: list[bytes] = []
    left = MAX_CONFIG + 1
    while left and (part := os.read(fd, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise InvalidConfig(f"{path} is longer than {MAX_CONFIG} bytes")
    return b"".join(parts)


def parse_config(raw: bytes) -> Config:
    """The object in config.json, not yet checked; InvalidConfig if it isn't a JSON object."""
    config = parse_json(raw, "config.json")
    if type(config) is not dict:
        raise InvalidConfig(f"config.json holds {_kind(config)}, must be an object")
    return config  # type: ignore[return-value]


def find_rootfs(bundle: str, config: Config) -> str:
    """The absolute path of the root filesystem (config.md, Root: relative to the bundle).

    "A directory MUST exist at the path declared by the field": Error if not.
    """
    declared = config["root"]["path"]
    path = os.path.join(bundle, declared)
    with doing("find the root filesystem"):
        try:
            path = os.path.realpath(path, strict=True)
            if not os.path.isdir(path):
                raise NotADirectoryError(20, "Not a directory")
        except OSError as error:
            raise _failed(f"invalid rootfs: stat {path}", error, f"root.path is {declared!r}") from error
    return path


def _failed(call: str, error: OSError, hint: str = "") -> Error:
    text = (error.strerror or str(error)).lower()
    return Error(f"{call}: {text} ({hint})" if hint else f"{call}: {text}", error.errno or 0)


# --- JSON ---------------------------------------------------------------------------------------------------


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


def _kind(value: object) -> str:
    """A JSON value's type in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return "a string" if isinstance(value, str) else "an array"


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

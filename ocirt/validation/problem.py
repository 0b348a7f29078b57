"""One finding about a configuration, and how paths and values are written in it."""

from __future__ import annotations

from ocirt.validation.kinds import is_array, is_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR = "error"
WARNING = "warning"

#: More characters of a value than this help nobody.
_SHOWN = 80


class Problem:
    """What is wrong with one value.

    severity  "error" (the container isn't created) or "warning" (runtime.md, Warnings: it is, all the same)
    path      where, such as `linux.namespaces[2].type`; "" is the configuration itself
    value     the value as JSON, shortened; "" if there is none
    message   what is wrong or what would be right, in lower case
    hint      what to do about it, "" if there is nothing more to say
    spec      the section of the specification, such as "config-linux.md, Namespaces"
    """

    __slots__ = ("hint", "message", "path", "severity", "spec", "value")

    def __init__(self, severity: str, path: str, value: str, message: str, *, hint: str = "", spec: str = "") -> None:
        self.severity = severity
        self.path = path
        self.value = value
        self.message = message
        self.hint = hint
        self.spec = spec

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.path, self.value, self.message) if part)
        return f"{text} ({self.hint})" if self.hint else text

    def __repr__(self) -> str:
        return f"<Problem {self.severity}: {self}>"

    def as_dict(self) -> dict[str, str]:
        """For --format json."""
        return {name: getattr(self, name) for name in ("severity", "path", "value", "message", "hint", "spec")}


def join(path: str, key: str | int) -> str:
    """The path of `key` in the object or array at `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if key.isidentifier():
        return f"{path}.{key}" if path else key
    return f"{path}[{quote(key)}]"


def join_all(parts: Iterable[str | int]) -> str:
    """A path from its parts."""
    path = ""
    for part in parts:
        path = join(path, part)
    return path


def show(value: object) -> str:
    """A value as JSON, shortened in the middle of nothing: the beginning is what one looks for."""
    try:
        text = _dump(value)
    except (TypeError, ValueError, RecursionError):
        text = f"a Python {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _dump(value: object) -> str:
    if is_object(value) and len(value) > 20:
        return "{…}"
    if is_array(value) and len(value) > 20:
        return f"[{', '.join(_dump(v) for v in value[:3])}, …]"
    if isinstance(value, str):
        return quote(value)
    from ocirt.jsontext import dump_json

    return dump_json(value).decode()


def quote(text: str) -> str:
    """A string as JSON; printable characters stay as they are."""
    from _json import encode_basestring, encode_basestring_ascii

    return encode_basestring(text) if text.isprintable() else encode_basestring_ascii(text)

"""What no part of a configuration may hold, known keys or not: NUL, lone surrogates, absurd nesting.

A NUL ends every string that the kernel is given, so that two programs see two
names; a lone surrogate is no Unicode text and can't be encoded; a structure that
is nested a thousand times ends in a RecursionError somewhere later.
"""

from __future__ import annotations

from ocirt.validation.kinds import is_array, is_object
from ocirt.validation.problem import ERROR, Problem, join, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: A configuration of the specification nests 9 levels.
MAX_DEPTH = 64

_SPEC = "config.md, Valid values"


def clean(value: Any, raw: bytes | None = None) -> list[Problem]:
    """The problems of the strings and the structure of `value`.

    With `raw`, the JSON (UTF-8) that `value` was parsed from, the strings are
    only looked at if the text holds an escape that could make a bad one.
    """
    if raw is not None and not _suspicious(raw) and not _deep(value):
        return []
    found: list[Problem] = []
    _walk(value, "", 0, found)
    return found


def _suspicious(raw: bytes) -> bool:
    """Can a string in this JSON text hold a NUL or a surrogate? Both can only come from an escape."""
    return b"\\u0000" in raw or b"\\ud" in raw or b"\\uD" in raw


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _walk(value: Any, path: str, depth: int, found: list[Problem]) -> None:
    if isinstance(value, str):
        _string(value, path, found)
    elif depth == MAX_DEPTH and (is_array(value) or is_object(value)):
        found.append(Problem(ERROR, path, "", f"is nested more than {MAX_DEPTH} levels deep", spec=_SPEC))
    elif is_array(value):
        for index, inner in enumerate(value):
            _walk(inner, join(path, index), depth + 1, found)
    elif is_object(value):
        for key, inner in value.items():
            if type(key) is not str:  # only from a Python caller
                found.append(Problem(ERROR, path, show(key), "must be a string: keys are strings in JSON", spec=_SPEC))
                continue
            where = join(path, key)
            _string(key, where, found)
            _walk(inner, where, depth + 1, found)
    elif isinstance(value, float):
        if value - value != 0.0:
            found.append(Problem(ERROR, path, repr(value), "is no JSON number", spec=_SPEC))
    elif value is not None and not isinstance(value, (bool, int)):
        found.append(Problem(ERROR, path, "", f"is a Python {type(value).__name__}, must be a JSON value", spec=_SPEC))


def _string(text: str, path: str, found: list[Problem]) -> None:
    if "\0" in text:
        found.append(Problem(ERROR, path, show(text), "must not hold a NUL character", spec=_SPEC))
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        message = "must not hold half of a surrogate pair: it is no Unicode text"
        found.append(Problem(ERROR, path, show(text), message, spec=_SPEC))

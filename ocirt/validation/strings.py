"""What no part of a configuration may hold, known keys or not: NUL, lone surrogates, absurd nesting.

A NUL ends every string that the kernel is given, so that two programs see two
names; a lone surrogate is no Unicode text and can't be encoded; a structure that
is nested a thousand times ends in a RecursionError somewhere later.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.validation.problem import Problem

#: A configuration of the specification nests 9 levels.
MAX_DEPTH = 64


def clean(value: Any, raw: bytes | None = None) -> list[Problem]:
    """The problems of the strings and the structure of `value`.

    With `raw`, the JSON (UTF-8) that `value` was parsed from, the strings are
    only looked at if the text holds an escape that could make a bad one.
    """
    if raw is not None and not _suspicious(raw) and not _deep(value):
        return []
    from ocirt.validation.walk import walk

    found: list[Problem] = []
    walk(value, "", 0, found)
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

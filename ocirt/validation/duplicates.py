"""Keys that stand twice in one object: the last one counts, but not for everybody (RFC 8259, section 4)."""

from __future__ import annotations

from ocirt.validation.kinds import is_array
from ocirt.validation.problem import WARNING, Problem, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Twice:
    """What the decoder gives for an object: its members in order, and the keys that came more than once."""

    __slots__ = ("keys", "members")

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.members: dict[str, Any] = {}
        self.keys: list[str] = []
        for key, value in pairs:
            if key in self.members:
                self.keys.append(key)
            self.members[key] = value


def duplicates(raw: bytes) -> list[Problem]:
    """A warning for each key that is given more than once in the JSON text `raw`, which must be valid."""
    import json

    found: list[Problem] = []
    try:
        _walk(json.loads(raw, object_pairs_hook=_Twice), "", found)
    except RecursionError:
        pass  # reported as too deep
    return found


def _walk(value: Any, path: str, found: list[Problem]) -> None:
    if isinstance(value, _Twice):
        for key in value.keys:
            message = "is given more than once: the last one counts here, and perhaps not elsewhere"
            found.append(Problem(WARNING, join(path, key), "", message, spec="RFC 8259, section 4"))
        for key, inner in value.members.items():
            _walk(inner, join(path, key), found)
    elif is_array(value):
        for index, inner in enumerate(value):
            _walk(inner, join(path, index), found)

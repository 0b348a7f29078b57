"""Looking at every string of a configuration: what strings.clean does when the quick look isn't enough."""

from __future__ import annotations

from ocirt.validation.kinds import is_array, is_object
from ocirt.validation.problem import ERROR, Problem, join, show
from ocirt.validation.strings import MAX_DEPTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPEC = "config.md, Valid values"


def walk(value: Any, path: str, depth: int, found: list[Problem]) -> None:
    """Add the problems of `value`, which stands at `path` and `depth` levels deep, to `found`."""
    if isinstance(value, str):
        _string(value, path, found)
    elif depth == MAX_DEPTH and (is_array(value) or is_object(value)):
        found.append(Problem(ERROR, path, "", f"is nested more than {MAX_DEPTH} levels deep", spec=_SPEC))
    elif is_array(value):
        for index, inner in enumerate(value):
            walk(inner, join(path, index), depth + 1, found)
    elif is_object(value):
        for key, inner in value.items():
            if type(key) is not str:  # only from a Python caller
                found.append(Problem(ERROR, path, show(key), "must be a string: keys are strings in JSON", spec=_SPEC))
                continue
            where = join(path, key)
            _string(key, where, found)
            walk(inner, where, depth + 1, found)
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

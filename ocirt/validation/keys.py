"""Keys that nobody knows but that are near a known one.

Unknown properties must be ignored (config.md, Extensibility: "Runtimes MAY log
unknown properties but MUST otherwise ignore them"), so these are warnings. Keys
that are near nothing are somebody's extension and get none.
"""

from __future__ import annotations

from ocirt.validation.kinds import is_array, is_object
from ocirt.validation.near import nearest
from ocirt.validation.problem import WARNING, Problem, join, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.validation.document import Document

_SPEC = "config.md, Extensibility"


def misspelt(value: Any, name: str, document: Document) -> list[Problem]:
    """A warning for each key that looks misspelt; `name` is the schema's."""
    found: list[Problem] = []
    _walk(value, document.schema(name), "", document, found)
    return found


def _walk(value: Any, schema: dict[str, Any], path: str, document: Document, found: list[Problem]) -> None:
    *_, schema = document.follow(schema)
    if is_array(value) and "items" in schema:
        for index, inner in enumerate(value):
            _walk(inner, schema["items"], join(path, index), document, found)
    elif is_object(value) and "properties" in schema:
        known = schema["properties"]
        for key, inner in value.items():
            if key in known:
                _walk(inner, known[key], join(path, key), document, found)
            elif meant := nearest(key, [k for k in known if k not in value]):
                message = "is not a key of the specification and is ignored"
                found.append(
                    Problem(WARNING, join(path, key), show(inner), message, hint=f"did you mean {meant}?", spec=_SPEC)
                )
    elif is_object(value) and "additionalProperties" in schema:
        for key, inner in value.items():
            _walk(inner, schema["additionalProperties"], join(path, key), document, found)

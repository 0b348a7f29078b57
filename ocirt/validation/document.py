"""The schemas as data, for explaining: parsed once they are needed, never on the fast path."""

from __future__ import annotations

from ocirt.validation.kinds import is_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any


class Document:
    """schemas/ as one document with local references."""

    __slots__ = ("whole",)

    def __init__(self) -> None:
        from ocirt.jsontext import parse_json
        from ocirt.validation.bundled import DOCUMENT

        self.whole: Any = parse_json(DOCUMENT.encode(), "the bundled schemas")

    def schema(self, name: str) -> dict[str, Any]:
        """A schema that jsonschema can use by itself; `name` is its file's, without the ending."""
        return {"$ref": f"#/$defs/{name}", **self.whole}

    def follow(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The schema and those it refers to, one after the other."""
        yield schema
        while "$ref" in schema:
            pointer = schema["$ref"]
            schema = self.whole
            for part in pointer.split("/")[1:]:
                schema = schema[part]
            yield schema

    def annotation(self, schema: dict[str, Any], keyword: str) -> str:
        """The nearest `description` or `$comment` of a schema: its own goes before the one it refers to."""
        return next((s[keyword] for s in self.follow(schema) if keyword in s), "")

    def walk(self, name: str, path: Iterable[str | int]) -> list[dict[str, Any]]:
        """The schemas on the way along a schema path (as jsonschema gives it), each with references followed."""
        here: Any = self.schema(name)
        on_the_way: list[dict[str, Any]] = []
        for part in path:
            if is_object(here):
                followed = list(self.follow(here))
                on_the_way += [s for s in followed if s is not self.whole]
                here = followed[-1]
            try:
                here = here[part]
            except (KeyError, IndexError, TypeError):
                break
        return on_the_way

"""What to do when the generated check didn't say a plain yes: repair, explain, and look for misspelt keys."""

from __future__ import annotations

from ocirt.validation import generated
from ocirt.validation.document import Document
from ocirt.validation.explain import explain
from ocirt.validation.keys import misspelt
from ocirt.validation.repair import repair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.validation.problem import Problem


def look(value: Any, what: str, found: list[Problem]) -> tuple[bool, bool]:
    """Add what is wrong with the shape of `value` to `found`: (is nothing, was something repaired)?"""
    document = Document()
    if not found and getattr(generated, what)(value, []):
        found += misspelt(value, what, document)
        return True, False
    repaired = repair(value, what, document)
    errors: list[Problem] = []
    if found or not getattr(generated, what)(value, []):
        errors = explain(value, what, document)
    shaped = not found and not errors
    found += errors + repaired + misspelt(value, what, document)
    return shaped, bool(repaired)

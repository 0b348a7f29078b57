"""What no schema can say."""

from __future__ import annotations

from ocirt.validation.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def find(what: str, config: Any, shaped: bool) -> list[Problem]:  # noqa: ARG001
    """The problems that the rules find."""
    return []

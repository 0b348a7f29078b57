"""What an error says of undoing that failed, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ocirt.errors import Error, Undo


def failing(*context: str, reason: str = "it stays") -> Callable[[], None]:
    def fail() -> None:
        raise Error(reason, 0, context)

    return fail


def text_of(error: Error, *undoing: tuple[str, Callable[[], None]]) -> str:
    def run() -> None:
        with Undo() as undo:
            for what, function in undoing:
                undo.add(what, function)
            raise error

    with pytest.raises(Error) as caught:
        run()
    return str(caught.value)


def test_a_phrase_is_said_once() -> None:
    said = text_of(Error("no luck"), ("take it down", failing("take it down", "open it")))
    assert said == "no luck; while undoing: take it down: open it: it stays"


def test_what_a_layer_further_in_has_said_is_not_said_again() -> None:
    error = Error("no luck")
    error.note_undoing(Error("it stays"))
    assert text_of(error, ("take it down", failing("open it"))) == "no luck; while undoing: it stays"


def test_different_failures_are_all_said() -> None:
    said = text_of(Error("no luck"), ("close it", failing(reason="it is stuck")), ("take it down", failing()))
    assert said == "no luck; while undoing: take it down: it stays; while undoing: close it: it is stuck"

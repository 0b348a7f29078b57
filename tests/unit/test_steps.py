"""The order of set-up, and the handshake's diagram."""

from __future__ import annotations

import inspect
import re

import pytest

from ocirt.process import steps, sync


@pytest.mark.parametrize("name", ["CREATE", "EXEC"])
def test_order(name: str) -> None:
    order = getattr(steps, name)
    assert len(set(order)) == len(order), "a step stands twice"
    for earlier, later, why in steps.ORDER:
        if earlier in order and later in order:
            assert order.index(earlier) < order.index(later), f"{earlier.__name__} before {later.__name__}: {why}"


def test_every_rule_of_the_order_is_about_create() -> None:
    # a rule about a step that isn't there any more would check nothing
    for earlier, later, why in steps.ORDER:
        assert earlier in steps.CREATE, why
        assert later in steps.CREATE, why


def test_exec_is_made_of_the_steps_of_create() -> None:
    only_exec = [s.__name__ for s in steps.EXEC if s not in steps.CREATE]
    assert only_exec == ["open_root", "wait_for_cgroup"]


@pytest.mark.parametrize("step", sorted({*steps.CREATE, *steps.EXEC}, key=lambda s: s.__name__))
def test_a_step_says_what_it_does(step: object) -> None:
    """The first line of its docstring is the context of its errors."""
    phrase = (inspect.getdoc(step) or "").split("\n")[0]
    assert re.fullmatch(r"[a-z].*[^.]", phrase), "an imperative phrase, lower case, no full stop"
    assert list(inspect.signature(step).parameters) == ["plan"]


def test_the_diagram_names_every_message() -> None:
    diagram = inspect.getdoc(sync) or ""
    drawn = re.findall(r"[|<]-{3,4} ([a-z]+)(?: [A-Z]+)? -", diagram)
    assert [m for m in sync.MESSAGES if m != "error"] == drawn


def test_no_message_is_as_long_as_an_errno() -> None:
    # `init` always has a field behind it
    assert [m for m in sync.MESSAGES if len(m) == 4] == ["init"], "four bytes are the trampoline's"

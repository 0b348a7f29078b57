"""create, start, state, kill, delete: the operations of runtime.md."""

from __future__ import annotations

from tests.harness.box import Box


def test_run(box: Box) -> None:
    assert box.run("echo hello; hostname").out == "hello\nbox\n"

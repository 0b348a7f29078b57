"""What every unit test finds as it was: the log, the one thing in the package that a test can leave changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ocirt import log


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    fresh = log._Target()
    kept = {name: getattr(log._target, name) for name in log._Target.__slots__}
    for name in log._Target.__slots__:
        setattr(log._target, name, getattr(fresh, name))
    yield
    for name, value in kept.items():
        setattr(log._target, name, value)

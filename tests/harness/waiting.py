"""Waiting for what has no event to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(what: Callable[[], object], seconds: float = 10) -> bool:
    """Poll `what` until it is true; False when it still wasn't after `seconds`."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return bool(what())
        time.sleep(0.02)
    return True

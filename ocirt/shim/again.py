"""A worker's operation once more, in a process of its own: from an interpreter whose file nobody can write.

See work and process/seal.py: a container whose processes could reach the worker's interpreter wants that.
"""

from __future__ import annotations

import os

from ocirt import log
from ocirt.jsontext import parse_json
from ocirt.shim.work import handed_over, perform
from ocirt.shim.worker import finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def do(fd: int) -> None:
    """Do the operation that the descriptor holds as JSON; doesn't return."""
    data = b""
    while more := os.read(fd, 1 << 20):
        data += more
    os.close(fd)
    operation: Any = parse_json(data, "the operation")
    for kept in handed_over(operation):
        os.set_inheritable(kept, False)
    log.to_descriptor(operation["log"], operation["level"])  # stderr is the container's
    finish(perform, operation)

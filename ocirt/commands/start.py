"""ocirt start"""

from __future__ import annotations

from ocirt import lifecycle
from ocirt.commands import Options, runtime


def run(options: Options) -> int:
    """Let the process of a created container execute its program."""
    lifecycle.start(runtime(options), options.id)
    return 0

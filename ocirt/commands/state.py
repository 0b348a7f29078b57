"""ocirt state"""

from __future__ import annotations

from ocirt import lifecycle
from ocirt.commands import Options, indented, runtime, write


def run(options: Options) -> int:
    """Print a container's state as JSON."""
    write(indented(lifecycle.state(runtime(options), options.id)) + "\n")
    return 0

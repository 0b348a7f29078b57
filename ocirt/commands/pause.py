"""ocirt pause"""

from __future__ import annotations

from ocirt import operations
from ocirt.commands import Options, runtime


def run(options: Options) -> int:
    """Freeze all processes of a container."""
    operations.pause(runtime(options), options.id)
    return 0

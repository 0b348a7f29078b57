"""ocirt resume"""

from __future__ import annotations

from ocirt import operations
from ocirt.commands import Options, runtime


def run(options: Options) -> int:
    """Thaw a paused container."""
    operations.resume(runtime(options), options.id)
    return 0

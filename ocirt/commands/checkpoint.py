"""ocirt checkpoint"""

from __future__ import annotations

from ocirt.checkpoint import Images, checkpoint
from ocirt.commands import Options, runtime


def run(options: Options) -> int:
    """Save a running container."""
    checkpoint(runtime(options), options.id, Images(options))
    return 0

"""ocirt run"""

from __future__ import annotations

from ocirt import foreground
from ocirt.commands import Options, runtime
from ocirt.commands.create import creation


def run(options: Options) -> int:
    """Create and start a container; in the foreground, give its process's status."""
    return foreground.run(
        runtime(options),
        options.id,
        options.bundle,
        detach=options.detach,
        keep=options.keep,
        subreaper=not options.no_subreaper,
        **creation(options),
    )

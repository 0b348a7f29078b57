"""ocirt run"""

from __future__ import annotations

from ocirt import foreground, log
from ocirt.commands import Options, runtime
from ocirt.commands.create import creation
from ocirt.errors import doing


def run(options: Options) -> int:
    """Create and start a container; in the foreground, give its process's status."""
    if options.profile:
        with doing("write the profile"):
            log.profile(options.profile)
    try:
        return foreground.run(
            runtime(options),
            options.id,
            options.bundle,
            detach=options.detach,
            keep=options.keep,
            subreaper=not options.no_subreaper,
            **creation(options),
        )
    finally:
        log.end_profile()

"""ocirt restore"""

from __future__ import annotations

from ocirt import foreground
from ocirt.checkpoint import Images
from ocirt.commands import Options, runtime


def run(options: Options) -> int:
    """Restore a container; in the foreground, give its process's status."""
    return foreground.restore(
        runtime(options),
        options.id,
        options.bundle,
        Images(options),
        detach=options.detach,
        subreaper=not options.no_subreaper,
        console_socket=options.console_socket,
        pid_file=options.pid_file,
        pidfd_socket=options.pidfd_socket,
    )

"""ocirt delete"""

from __future__ import annotations

from ocirt import lifecycle
from ocirt.commands import Options, each_match, runtime


def run(options: Options) -> int:
    """Remove what create made of a container."""
    rt = runtime(options)
    if options.regex:
        return each_match(rt, options.id, lambda id: lifecycle.delete(rt, id, force=options.force))
    lifecycle.delete(rt, options.id, force=options.force)
    return 0

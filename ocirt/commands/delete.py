"""ocirt delete"""

from __future__ import annotations

from ocirt import lifecycle
from ocirt.commands import Options, each_match, runtime
from ocirt.errors import NotFound


def run(options: Options) -> int:
    """Remove what create made of a container."""
    rt = runtime(options)
    if options.regex:
        return each_match(rt, options.id, lambda id: lifecycle.delete(rt, id, force=options.force))
    try:
        lifecycle.delete(rt, options.id, force=options.force)
    except NotFound:
        # what is to be removed by force is gone: engines call it once more, to be sure
        if not options.force:
            raise
    return 0

"""ocirt events"""

from __future__ import annotations

from ocirt import operations
from ocirt.bundle import dump_json
from ocirt.commands import Options, runtime, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(options: Options) -> int:
    """Print a container's statistics and events, one JSON object a line."""
    rt = runtime(options)
    if options.stats:
        _print({"type": "stats", "id": options.id, "data": operations.stats(rt, options.id)})
        return 0
    for event in operations.events(rt, options.id, operations.seconds(options.interval, "--interval")):
        _print(event)
    return 0


def _print(event: dict[str, Any]) -> None:
    write(dump_json(event).decode() + "\n")

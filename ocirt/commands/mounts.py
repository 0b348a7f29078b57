"""ocirt mounts"""

from __future__ import annotations

from ocirt import mounting
from ocirt.commands import Options, runtime
from ocirt.errors import InvalidConfig

_ACTIONS = {"add": mounting.add, "remove": mounting.remove}


def run(options: Options) -> int:
    """Add mounts to a container that runs, or remove them."""
    action = _ACTIONS.get(options.action)
    if action is None:
        raise InvalidConfig(f"mounts {options.action}: add or remove is wanted")
    action(runtime(options), options.id, mounting.read(options.file))
    return 0

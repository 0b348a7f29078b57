"""ocirt list"""

from __future__ import annotations

from ocirt import lifecycle
from ocirt.commands import Options, columns, indented, runtime, write

HEAD = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def run(options: Options) -> int:
    """List the containers of the root directory."""
    states = lifecycle.containers(runtime(options))
    if options.quiet:
        write("".join(f"{state['id']}\n" for state in states))
    elif options.format == "json":
        write(indented(states) + "\n")
    else:
        names = [name.lower() for name in HEAD]
        write(columns([HEAD, *(tuple(str(state.get(name, "")) for name in names) for state in states)]))
    return 0

"""The public Python API: what `import ocirt` gives.

    import ocirt
    rt = ocirt.Runtime("/run/ocirt")
    ocirt.create(rt, "c1", "/path/to/bundle")
    ocirt.start(rt, "c1")
    ocirt.state(rt, "c1")["status"]

Errors are ocirt.Error and its subclasses. A program that creates containers
should be single-threaded when it does, and call `seal()` at its start if it
creates containers that share a pid namespace (docs/security.md).
"""

from __future__ import annotations

from ocirt.errors import AlreadyExists, Error, InvalidConfig, NotFound, Unsupported, WrongState
from ocirt.foreground import run
from ocirt.lifecycle import Runtime, containers, create, delete, kill, start, state

__all__ = [
    "AlreadyExists",
    "Error",
    "InvalidConfig",
    "NotFound",
    "Runtime",
    "Unsupported",
    "WrongState",
    "containers",
    "create",
    "delete",
    "kill",
    "run",
    "seal",
    "start",
    "state",
]


def seal() -> None:
    """Start this program over from an interpreter whose file can't be written (CVE-2019-5736).

    Returns at once when it already runs from one. The program starts again from
    its first line with the same arguments: call it before anything else.
    """
    import sys

    from ocirt.process.seal import is_sealed, restart

    if not is_sealed():
        restart(tuple(sys.orig_argv[1:]))

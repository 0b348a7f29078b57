"""The plugins of this package, one file each, all of the same shape.

    VERSIONS = …                              the CNI versions that it takes
    def add(request) -> Result                make the attachment
    def check(request) -> None                raise CNIError if it isn't as `request.previous` says
    def delete(request) -> None               take it back: without a namespace, without prevResult, twice
    def gc(request, valid) -> None            take back what belongs to no attachment in `valid`
    def status(request) -> None               raise CNIError (50, 51) if add can't work

A plugin runs in the process of the runtime, or as an executable of its name
(ocirt.cni.executable).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ocirt.cni.request import Request
    from ocirt.cni.result import Result

    class Plugin(Protocol):
        """What a plugin's module has."""

        VERSIONS: tuple[str, ...]

        @staticmethod
        def add(request: Request) -> Result: ...
        @staticmethod
        def check(request: Request) -> None: ...
        @staticmethod
        def delete(request: Request) -> None: ...
        @staticmethod
        def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None: ...
        @staticmethod
        def status(request: Request) -> None: ...


#: CNI's names for the plugins; the module's name has `_` for `-`.
TYPES = (
    "bandwidth",
    "bridge",
    "dhcp",
    "firewall",
    "host-device",
    "host-local",
    "loopback",
    "macvlan",
    "overlay",
    "portmap",
    "ptp",
    "static",
    "tuning",
)


def load(type: str) -> Plugin:
    """The plugin of a type in TYPES, imported when it is first needed."""
    module: Any = __import__(f"ocirt.cni.plugins.{type.replace('-', '_')}", fromlist=("add",))
    found: Plugin = module
    return found

"""Delegating address management to the plugin that `ipam.type` names."""

from __future__ import annotations

from ocirt.cni import protocol
from ocirt.cni.invoke import delegate
from ocirt.cni.protocol import INVALID_CONFIG, CNIError
from ocirt.cni.result import Result
from ocirt.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.request import Request


def type_of(request: Request) -> str:
    """The IPAM plugin, "" if the configuration wants none (an attachment of layer 2)."""
    return protocol.string(protocol.table(request.config, "ipam"), "type", "", "ipam")


def comes_late(request: Request) -> bool:
    """Is the plugin one that needs the interface, since it asks on the wire?"""
    return type_of(request) == "dhcp"


def add(request: Request) -> Result:
    """Addresses, routes and dns for the attachment; if that fails, a DEL follows (SPEC.md, section 4)."""
    kind = type_of(request)
    try:
        result = delegate(request, kind)
    except Error as error:
        _take_back(request, kind, error)
        raise
    if result is None or not result.ips:
        empty = CNIError(INVALID_CONFIG, "IPAM plugin returned missing IP config", kind)
        _take_back(request, kind, empty)
        raise empty
    return result


def _take_back(request: Request, kind: str, error: Error) -> None:
    try:
        delegate(request, kind, "DEL")
    except Error as failure:
        error.note_undoing(failure)


def forward(request: Request, command: str = "") -> None:
    """Pass CHECK, DEL, GC or STATUS on; nothing without an IPAM plugin."""
    kind = type_of(request)
    if kind:
        delegate(request, kind, command)


def own_dns(request: Request, result: Result) -> None:
    """The configuration's `dns` takes the place of the IPAM plugin's when it says anything."""
    dns: dict[str, Any] = protocol.table(request.config, "dns")
    known = ("nameservers", "domain", "search", "options")
    found = {k: protocol.get(dns, k) for k in known if protocol.get(dns, k)}
    if found:
        result.dns = found

"""loopback: the container's `lo`, set up."""

from __future__ import annotations

from ocirt.cni.address import cidr_text
from ocirt.cni.protocol import INTERNAL, VERSIONS, CNIError
from ocirt.cni.result import Result
from ocirt.linux import netlink_route as route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cni.request import Request
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]


def add(request: Request) -> Result:
    """Set `lo` up and tell its addresses; a previous result is passed on as it is."""
    with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside:
        link = _lo(inside)
        inside.request(route.set_link(route.Change().up(), "lo (up)", link.index))
        if request.previous is not None:
            return request.previous.copy()
        result = Result()
        result.interfaces = [{"name": "lo", "mac": link.mac or "00:00:00:00:00:00", "sandbox": request.netns}]
        result.ips = [{"address": cidr_text(a.address), "interface": 0} for a in route.addresses(inside, link.index)]
        return result


def _lo(inside: Socket) -> Link:
    link = route.link(inside, "lo")
    if link is None:
        raise CNIError(INTERNAL, "the network namespace has no loopback interface")
    return link


def check(request: Request) -> None:
    """CNIError if `lo` is down."""
    with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside:
        if not _lo(inside).up:
            raise CNIError(INTERNAL, "lo is down")


def delete(request: Request) -> None:
    """Set `lo` down if the namespace is there."""
    sandbox = request.sandbox_if_there()
    if sandbox is not None:
        with sandbox, route.open_route(sandbox.fd) as inside:
            inside.request(route.set_link(route.Change().up(False), "lo (down)", _lo(inside).index))


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Nothing of this plugin outlives the namespace."""


def status(request: Request) -> None:
    """It always works."""

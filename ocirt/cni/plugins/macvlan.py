"""macvlan: an interface of the container's own on a link of the host."""

from __future__ import annotations

from ocirt.cni import protocol
from ocirt.cni.plugins import ipam, links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, VERSIONS, CNIError
from ocirt.cni.request import run_all
from ocirt.cni.result import Result
from ocirt.errors import Error, Undo
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cni.request import Request
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_MODES = {"": 4, "private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_MODE, _QUEUE_LENGTH = 1, 7  # IFLA_MACVLAN_…


def _mode(request: Request) -> int:
    mode = protocol.string(request.config, "mode")
    if mode not in _MODES:
        raise CNIError(INVALID_CONFIG, f"unknown macvlan mode {mode!r}", "must be bridge, private, vepa or passthru")
    return _MODES[mode]


def _master(request: Request, where: Socket) -> Link:
    """The link below: `master`, or the one of the default route."""
    name = protocol.string(request.config, "master")
    if name:
        link = route.link(where, name)
        if link is None:
            raise CNIError(NOT_AVAILABLE, f"master interface {name!r} does not exist")
        return link
    for r in route.routes(where):
        if r.destination[2] == 0 and r.table == route.RT_TABLE_MAIN and r.index:
            link = route.link(where, index=r.index)
            if link is not None:
                return link
    raise CNIError(NOT_AVAILABLE, "no default route found, and no master is configured")


def add(request: Request) -> Result:
    """Make the interface where it belongs, under its name."""
    mode = _mode(request)
    mtu = links.wanted_mtu(request)
    queue = protocol.integer(request.config, "bcqueuelen")
    with (
        request.sandbox() as sandbox,
        route.open_route() as host,
        route.open_route(sandbox.fd) as inside,
        Undo() as undo,
    ):
        links.refuse_taken(inside, request.ifname)
        result = Result()
        if ipam.type_of(request) and not ipam.comes_late(request):
            result = ipam.add(request)
            undo.add("release the addresses", lambda: ipam.forward(request, "DEL"))
        where = inside if protocol.truth(request.config, "linkInContainer") else host
        master = _master(request, where)
        if mtu > master.mtu:
            raise CNIError(INVALID_CONFIG, f"invalid MTU {mtu}", f"must be at most that of {master.name}, {master.mtu}")
        data = [u32(_MODE, mode)]
        if queue:
            data.append(u32(_QUEUE_LENGTH, queue))
        change = route.Change().name(request.ifname).mtu(mtu or master.mtu).mac(request.wanted_mac())
        change.attribute(u32(route.IFLA_LINK, master.index)).netns(sandbox.fd).kind("macvlan", *data)
        try:
            where.request(route.new_link(change, f"{request.ifname} (on {master.name})"))
        except Error as error:
            raise links.taken(error, inside, request.ifname) from error
        undo.add("delete the interface", lambda: links.delete_inside(request, "macvlan"))
        link = route.link(inside, request.ifname)
        if link is None:
            raise CNIError(INTERNAL, f"interface {request.ifname} went away while it was set up")
        if ipam.comes_late(request):
            inside.request(route.set_link(route.Change().up(), f"{request.ifname} (up)", link.index))
            result = ipam.add(request)
            undo.add("release the addresses", lambda: ipam.forward(request, "DEL"))
        ipam.own_dns(request, result)
        links.configure_only(request, sandbox.fd, inside, link, result)
    return result


def delete(request: Request) -> None:
    """Release the addresses; the interface goes with the namespace, or now if that stays."""
    run_all(lambda: links.delete_inside(request, "macvlan"), lambda: ipam.forward(request))


def check(request: Request) -> None:
    """Is everything as `request.previous` says?"""
    ipam.forward(request)
    assert request.previous is not None
    with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside:
        link = links.check_interface(request, inside, request.previous)
        if link.kind != "macvlan":
            raise CNIError(INTERNAL, f"interface {request.ifname} is {link.kind or 'hardware'}, expected macvlan")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Interfaces went with their namespaces: only addresses can be left."""
    ipam.forward(request)


def status(request: Request) -> None:
    """CNIError (50) if the link below is missing or the IPAM plugin can't work."""
    _mode(request)
    if not protocol.truth(request.config, "linkInContainer"):
        with route.open_route() as host:
            _master(request, host)
    ipam.forward(request)

"""host-device: an interface of the host, moved into the container and back."""

from __future__ import annotations

import os

from ocirt.cni import protocol
from ocirt.cni.plugins import ipam, links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, VERSIONS, CNIError
from ocirt.cni.request import run_all
from ocirt.cni.result import Result
from ocirt.errors import Undo
from ocirt.linux import netlink_route as route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cni.request import Request
    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]


_PCI, _DEVICES = "/sys/bus/pci/devices", "/sys/devices"
#: Drivers of programs that drive a device by themselves (DPDK): the kernel has no interface for it.
_USERSPACE = ("vfio-pci", "uio_pci_generic", "igb_uio")


def _pci_address(request: Request) -> str:
    """`pciBusID` or the runtime's deviceID, "" without."""
    pci = protocol.string(request.runtime, "deviceID") or protocol.string(request.config, "pciBusID")
    if "/" in pci or pci in (".", ".."):
        raise CNIError(INVALID_CONFIG, f"invalid PCI address {pci!r}", "must be like 0000:00:1f.6")
    return pci


def _is_a_programs(request: Request) -> bool:
    """Is the PCI device one that a program in the container drives, so that there is nothing to move?"""
    pci = _pci_address(request)
    try:
        return bool(pci) and os.path.basename(os.readlink(f"{_PCI}/{pci}/driver")) in _USERSPACE
    except OSError:
        return False


def _device(request: Request, host: Socket) -> Link:
    """The interface that `device`, `hwaddr`, `kernelpath`, `pciBusID` or the runtime's deviceID says."""
    config = request.config
    pci = _pci_address(request)
    name = protocol.string(config, "device")
    mac = protocol.string(config, "hwaddr").lower()
    path = protocol.string(config, "kernelpath")
    if pci:
        name = _only_entry(_net_of(f"{_PCI}/{pci}"))
    elif path:
        if not path.startswith(f"{_DEVICES}/") or ".." in path.split("/"):
            raise CNIError(INVALID_CONFIG, f"kernel device path {path!r} must be absolute and in {_DEVICES}")
        name = _only_entry(f"{path}/net")
    elif mac and not name:
        name = next((link.name for link in route.links(host) if link.mac == mac), "")
        if not name:
            raise CNIError(NOT_AVAILABLE, f"no interface has the hardware address {mac}")
    if not name:
        raise CNIError(INVALID_CONFIG, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"')
    link = route.link(host, name)
    if link is None:
        raise CNIError(NOT_AVAILABLE, f"failed to find host device {name!r}")
    return link


def _net_of(device: str) -> str:
    """The directory with a PCI device's interfaces: a virtio device is another one below it."""
    if not os.path.isdir(f"{device}/net"):
        try:
            for name in sorted(os.listdir(device)):
                if name.startswith("virtio") and os.path.isdir(f"{device}/{name}/net"):
                    return f"{device}/{name}/net"
        except OSError:
            pass  # the error is about the device's own
    return f"{device}/net"


def _only_entry(directory: str) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise CNIError(NOT_AVAILABLE, f"no network device in {directory}", error.strerror or "") from error
    if not names:
        raise CNIError(NOT_AVAILABLE, f"no network device in {directory}")
    return names[0]


def add(request: Request) -> Result:
    """Move the interface; its name on the host stands in its alias meanwhile."""
    if _is_a_programs(request):
        result = ipam.add(request) if ipam.type_of(request) else Result()
        ipam.own_dns(request, result)
        return result
    with request.sandbox() as sandbox, Undo() as undo:
        result = Result()
        with route.open_route() as host, route.open_route(sandbox.fd) as inside:
            device = _device(request, host)
            if route.link(inside, request.ifname) is not None:
                raise CNIError(INTERNAL, f"container interface name {request.ifname!r} already exists")
            undo.add("move the device back", lambda: _move_back(request))
            change = route.Change().name(request.ifname).netns(sandbox.fd).alias(device.name)
            host.request(route.set_link(change, f"{device.name} (to {request.ifname})", device.index))
            link = route.link(inside, request.ifname)
            if link is None:
                raise CNIError(INTERNAL, f"{device.name} is not in the container after its move")
            inside.request(route.set_link(route.Change().up(), f"{request.ifname} (up)", link.index))
            if ipam.type_of(request):
                result = ipam.add(request)
                undo.add("release the addresses", lambda: ipam.forward(request, "DEL"))
            ipam.own_dns(request, result)
            links.configure_only(request, sandbox.fd, inside, link, result)
    return result


def _move_back(request: Request) -> None:
    """Back to the host under its old name, if it is in the container."""
    sandbox = request.sandbox_if_there()
    if sandbox is None:
        _rename_back(request)
        return
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with sandbox, route.open_route(sandbox.fd) as inside:
            link = route.link(inside, request.ifname)
            if link is None or not link.alias:
                return
            down = route.set_link(route.Change().up(False), f"{link.name} (down)", link.index)
            change = route.Change().name(link.alias).netns(back).alias("")
            inside.request(down, route.set_link(change, f"{link.name} (back to {link.alias})", link.index))
    finally:
        os.close(back)


def _rename_back(request: Request) -> None:
    """With the namespace's end the kernel moves a physical device back, under the name that it had inside."""
    name = protocol.string(request.config, "device")
    with route.open_route() as host:
        if not name or route.link(host, name) is not None:
            return
        for link in route.links(host):
            if link.alias == name:
                down = route.set_link(route.Change().up(False), f"{link.name} (down)", link.index)
                change = route.Change().name(name).alias("")
                host.request(down, route.set_link(change, f"{link.name} (back to {name})", link.index))
                return


def delete(request: Request) -> None:
    """Release the addresses and move the device back."""
    run_all(lambda: ipam.forward(request), lambda: _move_back(request))


def check(request: Request) -> None:
    """Is everything as `request.previous` says?"""
    ipam.forward(request)
    assert request.previous is not None
    if _is_a_programs(request):
        return
    with request.sandbox() as sandbox, route.open_route(sandbox.fd) as inside:
        links.check_interface(request, inside, request.previous)


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Addresses can be left, and a device under the name that it had in a container that is gone."""
    run_all(lambda: ipam.forward(request), lambda: None if valid else _rename_back(request))


def status(request: Request) -> None:
    """CNIError (50) if the device isn't on the host."""
    if not _is_a_programs(request):
        with route.open_route() as host:
            _device(request, host)
    ipam.forward(request)

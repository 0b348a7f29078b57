"""Moving the host's network devices into a container (config-linux.md, Network Devices)."""

from __future__ import annotations

import os

from ocirt.errors import Error, InvalidConfig, Undo, doing
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import EEXIST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Assigned, Link

#: What a user can set on an address; the rest of the flags is the kernel's own knowledge.
_KEPT_FLAGS = route.IFA_F_NODAD | route.IFA_F_NOPREFIXROUTE | route.IFA_F_MANAGETEMPADDR


def move(netns: int, net_devices: Mapping[str, Mapping[str, object]]) -> None:
    """Move each device of `linux.netDevices` into the network namespace `netns` (a file descriptor).

    {host name: {"name": name inside, may end in %d}}. Each keeps its MTU, its
    hardware address and its permanent addresses of global scope, and is set up.
    Call it from the namespace that has the devices. If one of them can't be
    moved, those before it come back as they were: with the container's
    namespace the kernel would destroy what is virtual. Raises Error,
    InvalidConfig for a device that isn't there or a name that is taken.
    """
    if not net_devices:
        return
    with doing("move network devices"):
        if _same_namespace(netns):
            raise InvalidConfig(
                "linux.netDevices: the container has the runtime's own network namespace "
                "(it needs one of its own in linux.namespaces)"
            )
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with route.open_route() as here, route.open_route(netns) as there, Undo() as undo:
                for name, device in net_devices.items():
                    with doing(f"linux.netDevices[{name!r}]"):
                        moving = _Move(here, there, name, str(device.get("name") or name))
                        undo.add(f"bring {name} back", moving.undo_to(back))
                        moving.do(netns)
        finally:
            os.close(back)


def _same_namespace(netns: int) -> bool:
    theirs, ours = os.fstat(netns), os.stat("/proc/thread-self/ns/net")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


class _Move:
    """One device on its way: the device and its addresses as they were, and where to find it afterwards."""

    __slots__ = ("addresses", "before", "here", "inside", "link", "there")

    def __init__(self, here: Socket, there: Socket, name: str, inside: str) -> None:
        link = route.link(here, name)
        if link is None:
            raise InvalidConfig(f"no such network device on the host: {name}")
        if "%" not in inside and route.link(there, inside) is not None:
            raise InvalidConfig(
                f"the container's network namespace has a device of the name {inside} already "
                f"(another name, or {inside}%d for a free one, would do)",
                EEXIST,
            )
        self.here = here
        self.there = there
        self.link: Link = link
        self.inside = inside
        self.addresses: list[Assigned] = [
            a
            for a in route.addresses(here, link.index)
            if a.flags & route.IFA_F_PERMANENT and a.scope == route.RT_SCOPE_UNIVERSE
        ]
        self.before = {other.index for other in route.links(there)} if "%" in inside else set[int]()

    def do(self, netns: int) -> None:
        """Move it, give it its addresses and set it up.

        One message moves and renames: so the kernel takes the new name into
        account when it looks for a clash in the new namespace.
        """
        change = route.Change().name(self.inside).netns(netns)
        self.here.request(route.set_link(change, f"{self.link.name} (to {self.inside})", self.link.index))
        moved = self._find()
        self._restore(self.there, moved, up=True)

    def undo_to(self, back: int) -> Callable[[], None]:
        """What brings it back to the namespace `back`."""
        return lambda: self._undo(back)

    def _undo(self, back: int) -> None:
        if route.link(self.here, self.link.name) is not None:
            return  # it never left
        moved = self._find()
        change = route.Change().name(self.link.name).netns(back)
        self.there.request(route.set_link(change, f"{moved.name} (back to {self.link.name})", moved.index))
        found = route.link(self.here, self.link.name)
        if found is not None:
            self._restore(self.here, found, up=self.link.up)

    def _find(self) -> Link:
        """The device in its new namespace, where it may have another index and a name that the kernel chose."""
        if "%" not in self.inside:
            found = route.link(self.there, self.inside) or route.link(self.there, self.link.name)
            if found is not None:
                return found
        for other in route.links(self.there):
            if other.index not in self.before and (other.mac, other.kind) == (self.link.mac, self.link.kind):
                return other
        raise Error(f"{self.link.name} is not in the container's network namespace after its move")

    def _restore(self, socket: Socket, moved: Link, *, up: bool) -> None:
        """Give it the addresses that it had; the move took them away."""
        old = self.link.name + ":"
        messages = [
            route.new_address(
                moved.index,
                a.address,
                flags=a.flags & _KEPT_FLAGS,
                label=moved.name + a.label[len(old) - 1 :] if a.label.startswith(old) else "",
                peer=a.peer,
                metric=a.priority,
                broadcast=a.broadcast,
            )
            for a in self.addresses
        ]
        if up:
            messages.append(route.set_link(route.Change().up(), f"{moved.name} (up)", moved.index))
        if messages:
            socket.request(*messages)

"""Starting and stopping the resolver of a container.

It is reached at 127.0.0.11, port 53, in the container's namespace. There it
listens on another port, to which nftables leads: a server in the container may
have port 53 for itself.
"""

from __future__ import annotations

import _socket
import os

from ocirt.cni import names, services, table
from ocirt.cni.address import parse_ip
from ocirt.linux import netlink_nft as nft
from ocirt.linux.netlink import Inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocirt.linux.netlink import Message

ADDRESS = "127.0.0.11"
_KIND = "resolvers"
_TABLE = "ocirt_dns"


def start(container: str, netns: str, pid: int, networks: Sequence[str], servers: Sequence[str]) -> None:
    """Start it for the container whose init is `pid`; it ends with that at the latest."""
    stop(container)
    service = services.Service(_KIND, container, {})
    opened: list[_socket.socket] = []
    init = -1
    try:
        init = os.pidfd_open(pid)
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Inside(fd):
                opened = [_open(_socket.SOCK_DGRAM), _open(_socket.SOCK_STREAM)]
            opened[1].listen(64)
            with nft.open_nft(fd) as socket:
                nft.commit(socket, _redirection(*(s.getsockname()[1] for s in opened)))
        finally:
            os.close(fd)
        directories = [names.directory(name) for name in networks]
        description = {"names": directories, "servers": list(servers)}
        service.spawn("ocirt.proxy.resolver:launch", (), description, [*(s.fileno() for s in opened), init])
    except BaseException:
        service.abandon()
        raise
    finally:
        for one in opened:
            one.close()
        if init >= 0:
            os.close(init)
    service.close()


def _open(kind: int) -> _socket.socket:
    made = _socket.socket(_socket.AF_INET, kind | _socket.SOCK_CLOEXEC)
    made.bind((ADDRESS, 0))
    return made


def _redirection(datagrams: int, stream: int) -> list[Message]:
    """Lead what goes to port 53 of our address to the ports that we have."""
    address = parse_ip(ADDRESS)[1]
    messages = [
        nft.table(nft.IP, _TABLE),
        nft.base_chain(nft.IP, _TABLE, "output", type="nat", hook=nft.OUTPUT, priority=nft.PRIORITY_DSTNAT),
    ]
    for kind, port in ((nft.UDP, datagrams), (nft.TCP, stream)):
        messages.append(
            nft.rule(
                nft.IP,
                _TABLE,
                "output",
                table.destination(nft.IP) + nft.compare(nft.REG1, nft.EQ, address),
                nft.meta(nft.REG1, nft.META_L4PROTO) + nft.compare(nft.REG1, nft.EQ, bytes((kind,))),
                nft.payload(nft.REG1, nft.TRANSPORT, 2, 2) + nft.compare(nft.REG1, nft.EQ, (53).to_bytes(2, "big")),
                nft.load(nft.REG1, address) + nft.load(nft.REG2, port.to_bytes(2, "big")),
                nft.dnat(nft.IP, nft.REG1, nft.REG2),
            )
        )
    return messages


def stop(container: str) -> None:
    """End the container's resolver; none there is fine."""
    services.stop(_KIND, container)


def collect(stale: Callable[[str], bool]) -> None:
    """End the resolvers of stale containers."""
    services.collect(_KIND, stale)


def is_running(container: str) -> bool:
    """Does the container's resolver run?"""
    return services.is_running(_KIND, container)

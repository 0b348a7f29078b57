"""Starting and stopping `ocirt-proxy`: one process for all ports of an attachment.

Whoever starts it opens the ports, so that a port that is taken is an error of
ADD, and connections wait in the kernel until the proxy is up.
"""

from __future__ import annotations

import _socket
import resource

from ocirt.cni import holders, protocol, services
from ocirt.cni.address import ip_text
from ocirt.cni.protocol import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocirt.cni.ports import PortMapping
    from ocirt.cni.table import Owner

_KIND = "proxies"
_EADDRINUSE, _EADDRNOTAVAIL, _EAFNOSUPPORT = 98, 99, 97
_IPV4, _IPV6 = 2, 10

Opened = list[tuple[_socket.socket, str, str, int]]


def start(owner: Owner, mappings: Sequence[PortMapping], containers: Mapping[int, bytes]) -> None:
    """Open the ports and start the proxy; CNIError that names the holder of a port that is taken."""
    stop(owner)
    service = services.Service(_KIND, owner.comment, {"ports": [str(m) for m in mappings]})
    made: Opened = []
    before = _make_room(sum(m.count for m in mappings))
    try:
        for mapping in mappings:
            made += _open(mapping, containers)
        sockets = [[kind, address, port] for _, kind, address, port in made]
        service.spawn("ocirt.proxy.main:launch", (), {"sockets": sockets}, [s.fileno() for s, *_ in made])
    except BaseException:
        service.abandon()
        raise
    finally:
        for socket, *_ in made:
            socket.close()
        if before:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    service.close()


def _make_room(ports: int) -> tuple[int, int] | None:
    """Let this process have the files that so many ports need; the limits that it had, None if they do.

    Each is a socket for each family, here twice while they are handed over.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * ports + 128
    if soft >= wanted:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return soft, hard


def _open(mapping: PortMapping, containers: Mapping[int, bytes]) -> Opened:
    """The sockets of one mapping: both families of the host, to the container's address of the same if it can be."""
    from ocirt.proxy.main import open_port

    if mapping.protocol not in ("tcp", "udp"):
        raise CNIError(protocol.INVALID_CONFIG, f"the proxy can't map {mapping}", "must be tcp or udp")
    made: Opened = []
    wanted = [(_IPV4, "0.0.0.0"), (_IPV6, "::")]  # noqa: S104  a port for everybody is what is asked for
    if mapping.address:
        wanted = [(_IPV4 if len(mapping.address) == 4 else _IPV6, ip_text(mapping.address))]
    for family, address in wanted:
        container = containers.get(family) or next(iter(containers.values()))
        for i in range(mapping.count):
            try:
                socket = open_port(mapping.protocol, address, mapping.host + i)
            except OSError as error:
                if error.errno in (_EAFNOSUPPORT, _EADDRNOTAVAIL) and not mapping.address:
                    continue  # a host without IPv6
                if error.errno == _EADDRINUSE:
                    who = holders.program_on(mapping.protocol, mapping.host + i)
                    raise CNIError(
                        protocol.INTERNAL, f"host port {mapping.host + i}/{mapping.protocol} is taken by {who}"
                    ) from error
                raise CNIError(protocol.INTERNAL, f"host port {mapping}", str(error)) from error
            made.append((socket, mapping.protocol, ip_text(container), mapping.inside + i))
    return made


def stop(owner: Owner) -> None:
    """End the attachment's proxy; none there is fine."""
    services.stop(_KIND, owner.comment)


def check(owner: Owner) -> None:
    """CNIError if the attachment's proxy isn't running."""
    if not services.is_running(_KIND, owner.comment):
        raise CNIError(protocol.INTERNAL, "the attachment's ocirt-proxy is not running")


def collect(belongs: Callable[[str], bool], keep: frozenset[str]) -> None:
    """End the proxies of a network's attachments that aren't in `keep`."""
    services.collect(_KIND, lambda comment: belongs(comment) and comment not in keep)

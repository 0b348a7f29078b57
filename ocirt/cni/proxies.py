"""Starting and stopping `ocirt-proxy`: one process for all ports of an attachment.

Whoever starts it opens the ports, so that a port that is taken is an error of
ADD, and connections wait in the kernel until the proxy is up. A record, a file
of the attachment's, is made first and locked by the proxy: the lock's holder is
the process to stop, however long ago whoever started it has died.
"""

from __future__ import annotations

import _signal
import _socket
import os
import select
import struct
import sys
import time

from ocirt.cni import holders, protocol
from ocirt.cni.address import ip_text
from ocirt.cni.protocol import CNIError
from ocirt.errors import Error
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ocirt.cni.ports import PortMapping
    from ocirt.cni.table import Owner

DIRECTORY = "/run/ocirt-cni/proxies"
_FLOCK = struct.Struct("hhqqi")
_F_GETLK, _F_WRLCK, _F_UNLCK = 5, 1, 2
_EADDRINUSE, _EADDRNOTAVAIL, _EAFNOSUPPORT = 98, 99, 97
_IPV4, _IPV6 = 2, 10


def directory() -> str:
    """Where the records are."""
    return os.environ.get("OCIRT_PROXY_DIRECTORY") or DIRECTORY


def _path(comment: str) -> str:
    from hashlib import sha256

    return f"{directory()}/{sha256(comment.encode()).hexdigest()[:32]}"


def start(owner: Owner, mappings: Sequence[PortMapping], containers: Mapping[int, bytes]) -> None:
    """Open the ports and start the proxy; CNIError that names the holder of a port that is taken."""
    stop(owner)
    os.makedirs(directory(), 0o700, exist_ok=True)
    path = _path(owner.comment)
    record = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    made: list[tuple[_socket.socket, str, str, int]] = []
    try:
        for mapping in mappings:
            made += _open(mapping, containers)
        listed = [[str(m), sorted(containers)] for m in mappings]
        os.write(record, dump_json({"comment": owner.comment, "ports": listed}))
        _spawn(record, made)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(record)
        for socket, *_ in made:
            socket.close()


def _open(mapping: PortMapping, containers: Mapping[int, bytes]) -> list[tuple[_socket.socket, str, str, int]]:
    """The sockets of one mapping: both families of the host, to the container's address of the same if it can be."""
    from ocirt.proxy.main import open_port

    if mapping.protocol not in ("tcp", "udp"):
        raise CNIError(protocol.INVALID_CONFIG, f"the proxy can't map {mapping}", "must be tcp or udp")
    made: list[tuple[_socket.socket, str, str, int]] = []
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


def _spawn(record: int, made: Sequence[tuple[_socket.socket, str, str, int]]) -> None:
    """Start the proxy and wait until it says that it serves."""
    heard, told = os.pipe2(os.O_CLOEXEC)
    description = os.memfd_create("ports", os.MFD_CLOEXEC)
    log = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    inherited = [description, record, told, *(s.fileno() for s, *_ in made)]
    try:
        # numbers well above what the interpreter opens for itself, and away from those of docker-proxy
        base = 16
        spare = max(*inherited, base + len(inherited)) + 1
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, log, n) for n in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, spare + i) for i, fd in enumerate(inherited)]
        actions += [(os.POSIX_SPAWN_DUP2, spare + i, base + i) for i in range(len(inherited))]
        actions += [
            (os.POSIX_SPAWN_CLOSE, spare + i) for i in range(len(inherited)) if spare + i >= base + len(inherited)
        ]
        sockets = [[base + 3 + i, kind, address, port] for i, (_, kind, address, port) in enumerate(made)]
        os.write(description, dump_json({"record": base + 1, "status": base + 2, "sockets": sockets}))
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        program = f"import sys\nsys.path.append({package!r})\nfrom ocirt.proxy.main import launch\nlaunch()\n"
        command = [_interpreter(), "-ISXutf8", "-c", program, "-ports", str(base)]
        environment = {"PATH": "/usr/bin:/bin"}
        # a child of a child: nobody has to wait for the proxy but init
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir("/")
                os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(told)
        told = -1
        answer = _read_all(heard)
    finally:
        for fd in (heard, told, description, log):
            if fd >= 0:
                os.close(fd)
    if answer != b"0\n":
        raise CNIError(protocol.INTERNAL, "ocirt-proxy did not start", answer.decode("utf-8", "replace"))


def _interpreter() -> str:
    return os.path.realpath(sys.executable) if sys.executable else "/usr/bin/python3"


def _read_all(fd: int) -> bytes:
    parts: list[bytes] = []
    while part := os.read(fd, 4096):
        parts.append(part)
    return b"".join(parts)


def _holder(fd: int) -> int:
    """The process that has the record locked, 0 if none."""
    import fcntl

    answer = fcntl.fcntl(fd, _F_GETLK, _FLOCK.pack(_F_WRLCK, 0, 0, 0, 0))
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return 0 if kind == _F_UNLCK else pid


def stop(owner: Owner) -> None:
    """End the attachment's proxy; none there is fine."""
    _stop(_path(owner.comment))


def _stop(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        # first the name: a proxy that is just starting sees by that that it isn't wanted
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        _end(fd)
    finally:
        os.close(fd)


def _end(fd: int) -> None:
    for number, seconds in ((_signal.SIGTERM, 2.0), (_signal.SIGKILL, 5.0)):
        pid = _holder(fd)
        if not pid:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _holder(fd) == pid:  # the lock is still his, so the pid is still this process's
                _signal.pidfd_send_signal(pidfd, number)
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(seconds * 1000)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
    end = time.monotonic() + 1
    while _holder(fd) and time.monotonic() < end:
        time.sleep(0.01)


def check(owner: Owner) -> None:
    """CNIError if the attachment's proxy isn't running."""
    try:
        fd = os.open(_path(owner.comment), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise CNIError(protocol.INTERNAL, "the attachment has no ocirt-proxy") from None
    try:
        if not _holder(fd):
            raise CNIError(protocol.INTERNAL, "the attachment's ocirt-proxy is not running")
    finally:
        os.close(fd)


def collect(belongs: Callable[[str], bool], keep: frozenset[str]) -> None:
    """End the proxies of a network's attachments that aren't in `keep`; a torn record is nobody's."""
    try:
        names = os.listdir(directory())
    except FileNotFoundError:
        return
    for name in names:
        path = f"{directory()}/{name}"
        try:
            with open(path, "rb") as file:
                data = parse_json(file.read(1 << 20), path)
            comment = str(data["comment"]) if isinstance(data, dict) else ""
        except FileNotFoundError:
            continue
        except (Error, KeyError):
            _stop(path)
            continue
        if belongs(comment) and comment not in keep:
            _stop(path)

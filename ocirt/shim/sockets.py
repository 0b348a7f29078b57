"""The sockets of shims: one for each group of containers, in a directory that all shims of the host share.

Who binds, and who removes what a dead shim has left, holds flock(2) on the directory: otherwise a socket that was
just bound anew could be removed.
"""

from __future__ import annotations

import _socket
import fcntl
import posix
import sys

from ocirt.errors import from_oserror

#: Where containerd looks for them, whatever its own directories are.
DIRECTORY = "/run/containerd/s"
_SCHEME = "unix://"
_BACKLOG = 128
_EADDRINUSE = 98
#: A frame of ttrpc with an empty request: the answer is that there is no such service.
_PING = b"\0\0\0\0\0\0\0\1\1\0"
#: Seconds that a shim has for the answer; one that hasn't given it by then is alive, but busy.
_PATIENCE = 1.0


def address_of(directory: str, grpc: str, namespace: str, group: str) -> str:
    """The address of a group's shim: the name is a hash of what the group is to whom."""
    name = "/".join(part.strip("/") for part in (grpc, namespace, group) if part)
    if grpc.startswith("/"):
        name = "/" + name
    return f"{_SCHEME}{directory or DIRECTORY}/{_sha256(name.encode())}"


def _sha256(data: bytes) -> str:
    """hashlib costs a fifth of an interpreter's start."""
    try:
        from _sha256 import sha256
    except ImportError:
        from _sha2 import sha256  # CPython 3.12
    return sha256(data).hexdigest()


class Locked:
    """`with Locked(address):` nobody else binds or removes sockets of that directory."""

    __slots__ = ("_fd",)

    def __init__(self, address: str) -> None:
        directory = path_of(address).rpartition("/")[0]
        try:
            posix.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            import os

            os.makedirs(directory, 0o700, exist_ok=True)
        self._fd = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *ignored: object) -> None:
        posix.close(self._fd)


def path_of(address: str) -> str:
    """The path of an address."""
    return address.removeprefix(_SCHEME)


def listen(address: str, kind: int = _socket.SOCK_STREAM) -> _socket.socket | None:
    """Listen there; None if a shim does already. What a dead one has left is replaced. Hold the lock."""
    path = path_of(address)
    socket = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    before = posix.umask(0o177)
    try:
        try:
            socket.bind(path)
        except OSError as error:
            if error.errno != _EADDRINUSE:
                raise
            if is_served(path, kind):
                socket.close()
                return None
            posix.unlink(path)
            socket.bind(path)
        socket.listen(_BACKLOG)
    except OSError as error:
        socket.close()
        raise from_oserror(error, f"bind {path}") from None
    finally:
        posix.umask(before)
    return socket


def is_served(path: str, kind: int = _socket.SOCK_STREAM) -> bool:
    """Does a shim answer there, or will it? For the spare shim (SOCK_SEQPACKET): does it listen?

    That somebody listens says too little: a worker that is dying with its shim may hold the socket for a moment.
    """
    socket = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    socket.settimeout(_PATIENCE)
    try:
        socket.connect(path)
        if kind == _socket.SOCK_SEQPACKET:
            return True
        socket.send(_PING)
        return bool(socket.recv(1))
    except (TimeoutError, BlockingIOError):  # EAGAIN: more wait to be accepted than may
        return True
    except OSError:
        return False
    finally:
        socket.close()


def is_ours(connection: _socket.socket) -> bool:
    """Is the other end of our own user and group? The directory keeps others out, unless somebody changed its mode."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    uid, gid = (int.from_bytes(credentials[at : at + 4], sys.byteorder) for at in (4, 8))
    return (uid, gid) == (posix.geteuid(), posix.getegid())


def identity(address: str) -> tuple[int, int]:
    """What tells the socket from a later one of the same name (which may get its inode)."""
    try:
        status = posix.stat(path_of(address))
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def remove(address: str, own: tuple[int, int]) -> None:
    """Remove the socket of a shim that serves no more, if it is the one whose `identity` is `own` still."""
    try:
        with Locked(address):
            if identity(address) == own:  # nobody has found it dead, and put another one there
                posix.unlink(path_of(address))
    except OSError:
        pass  # somebody has cleaned up


def remove_dead(address: str) -> bool:
    """Remove the socket if its shim is dead. Is that so? Not where there is no socket: its shim has ended by itself."""
    try:
        with Locked(address):
            if is_served(path_of(address)):
                return False
            posix.unlink(path_of(address))
            return True
    except OSError:
        return False

"""File descriptors: closing ranges of them, passing them, sockets by path."""

from __future__ import annotations

import _socket
import posix as os
import sys

from ocirt.errors import Error
from ocirt.linux import libc, numbers
from ocirt.linux.oslike import fsencode, split

CLOSE_RANGE_CLOEXEC = 4
_MAX = 0xFFFFFFFF
_BYTE_ORDER = sys.byteorder


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    _range(first, _MAX, 0)


def cloexec_from(first: int) -> None:
    """Set close-on-exec on every descriptor from `first` on."""
    _range(first, _MAX, CLOSE_RANGE_CLOEXEC)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that isn't in `keep`."""
    start = 0
    for fd in sorted(keep):
        if fd > start:
            _range(start, fd - 1, 0)
        start = fd + 1
    _range(start, _MAX, 0)


def _range(first: int, last: int, flags: int) -> None:
    try:
        libc.syscall("close_range", numbers.CLOSE_RANGE, first, last, flags)
        return
    except Error as error:
        if error.errno not in (libc.ENOSYS, libc.EINVAL):  # EINVAL: no CLOSE_RANGE_CLOEXEC before Linux 5.11
            raise
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if first <= fd <= last:
            try:
                if flags:
                    os.set_inheritable(fd, False)
                else:
                    os.close(fd)
            except OSError:
                pass  # the descriptor of the listing itself


def send(socket: _socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """One sendmsg(2) with the descriptors as SCM_RIGHTS."""
    if fds:
        rights = b"".join(fd.to_bytes(4, _BYTE_ORDER) for fd in fds)
        socket.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], _socket.MSG_NOSIGNAL)
    else:
        socket.send(data, _socket.MSG_NOSIGNAL)


def receive(socket: _socket.socket, size: int, count: int = 4) -> tuple[bytes, list[int]]:
    """One recvmsg(2) and the descriptors (close-on-exec) that came with it."""
    data, ancillary, _, _ = socket.recvmsg(size, _socket.CMSG_SPACE(4 * count), _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, rights in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += [int.from_bytes(rights[i : i + 4], _BYTE_ORDER) for i in range(0, len(rights) - 3, 4)]
    return data, fds


def accept(listener: _socket.socket) -> int:
    """The descriptor of the next connection: `accept` belongs to the socket module, which costs an enum."""
    return listener._accept()[0]  # type: ignore[attr-defined,no-any-return]


def connect_unix(path: str, kind: int) -> _socket.socket:
    """Connect to a unix socket by path, however long the path is."""
    socket = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    directory, name = split(path)
    try:
        if len(fsencode(path)) < 108:
            socket.connect(path)
        else:
            fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                socket.connect(f"/proc/self/fd/{fd}/{name}")
            finally:
                os.close(fd)
    except OSError as error:
        socket.close()
        raise OSError(error.errno, error.strerror, path) from None
    return socket

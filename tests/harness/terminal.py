"""The engine's side of a terminal: the socket on which the runtime sends the pty master."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class ConsoleSocket:
    """A listening socket that takes one descriptor, as conmon and containerd's shims do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(20)
        self.name = b""
        self.master = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.close()
        if self.master >= 0:
            os.close(self.master)

    def receive(self) -> int:
        """The master. One message: the name as payload (at least one byte), exactly one descriptor."""
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(20)
            self.name, descriptors, flags, _ = socket.recv_fds(connection, 4096, 8)
            assert len(descriptors) == 1
            assert not flags & socket.MSG_CTRUNC
            assert 1 <= len(self.name) < 4096
            rest = connection.recv(1)
            assert rest == b"", "the runtime closes the connection after the one message"
        self.master = descriptors[0]
        return self.master

    def read_until(self, text: bytes, seconds: float = 15) -> bytes:
        """What the terminal shows until `text` is in it."""
        return read_until(self.master, text, seconds)

    def write(self, data: bytes) -> None:
        os.write(self.master, data)


def read_until(fd: int, text: bytes, seconds: float = 15) -> bytes:
    """Read a pty until `text` was seen; fails when it hangs up or time is over."""
    seen = b""
    end = time.monotonic() + seconds
    while text not in seen:
        left = end - time.monotonic()
        assert left > 0, f"no {text!r} in {seen!r}"
        if select.select([fd], [], [], left)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:
                data = b""
            assert data, f"the terminal hung up; it showed {seen!r}"
            seen += data
    return seen


def set_size(fd: int, rows: int, columns: int) -> None:
    """ioctl_tty(2) TIOCSWINSZ."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

"""The other side of a terminal: the socket that gets the pty master, or a terminal that a command stands on."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.box import Box


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


class Foreground:
    """`run`, or another command, on a terminal of its own, as from a shell."""

    def __init__(
        self,
        box: Box,
        rows: int = 24,
        columns: int = 80,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.master, slave = pty.openpty()
        set_size(self.master, rows, columns)
        box.write()
        argv = box.runtime.argv(command or ["run", "--bundle", str(box.path), box.id])
        argv = ["/usr/bin/setsid", "--ctty", "--wait", *argv]
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=env)
        os.close(slave)

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    def read_until(self, text: bytes) -> bytes:
        return read_until(self.master, text)

    def finish(self) -> int:
        """Exit status; what the terminal still shows is drained so that nothing blocks."""
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    os.read(self.master, 65536)
                except OSError:
                    break
        return self.process.wait(20)

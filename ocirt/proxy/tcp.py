"""TCP: each connection is two streams of bytes, each with its own end.

Short exchanges are copied; a stream that has moved more goes through a pipe by
splice(2), without its bytes ever being here.
"""

from __future__ import annotations

import _socket
import os
import struct

from ocirt.proxy.loop import BOTH, READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.proxy.loop import Loop

_COPY = 1 << 16  # bytes at once while copying
_COPIED = 1 << 18  # bytes copied before splicing begins
_PIPE = 1 << 20  # a pipe of the default size costs half of the throughput
_TURNS = 16  # times that a stream goes on before others get their turn
_NONBLOCK_MOVE = 0x1 | 0x2  # SPLICE_F_MORE would hold small answers back
_F_SETPIPE_SZ = 1031
_IN_PROGRESS, _EAGAIN = 115, 11
_RESET = struct.pack("ii", 1, 0)
_NO_FILES = (23, 24)


class Pipes:
    """Pipes that aren't in use at the moment: making one costs as much as a short connection."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        """An empty pipe; OSError if there are no more files."""
        if self._free:
            return self._free.pop()
        import fcntl

        made = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(made[1], _F_SETPIPE_SZ, _PIPE)
        except OSError:
            pass  # the user's limit for pipes is reached: the default size works as well
        return made

    def give(self, pipe: tuple[int, int], *, empty: bool) -> None:
        """Take a pipe back; one with bytes in it is closed."""
        if empty and len(self._free) < 64:
            self._free.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])


class _Stream:
    """One direction: what has been taken from `source` and not yet given to `target`."""

    __slots__ = ("data", "done", "held", "moved", "pipe", "source", "target")

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.data = b""
        self.held = 0
        self.moved = 0
        self.pipe: tuple[int, int] | None = None
        self.done = False

    def pump(self, pipes: Pipes) -> bool:
        """Move what can be moved; True if there may be more. Raises OSError when a side is broken."""
        for _ in range(_TURNS):
            try:
                if self.pipe is not None:
                    if not self.held:
                        self.held = os.splice(self.source, self.pipe[1], _PIPE, flags=_NONBLOCK_MOVE)
                        if not self.held:
                            return self._end(pipes)
                    while self.held:
                        self.held -= os.splice(self.pipe[0], self.target, self.held, flags=_NONBLOCK_MOVE)
                    continue
                if not self.data:
                    self.data = os.read(self.source, _COPY)
                    if not self.data:
                        return self._end(pipes)
                    self.moved += len(self.data)
                sent = os.write(self.target, self.data)
                self.data = self.data[sent:]
            except BlockingIOError:
                return False
            if self.moved > _COPIED and not self.data:
                self.pipe = pipes.take()
        return True

    def _end(self, pipes: Pipes) -> bool:
        """The source has ended: so does the target's reading, and only that."""
        self.done = True
        self.release(pipes)
        made = _socket.socket(fileno=os.dup(self.target))
        try:
            made.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # it is gone already
        finally:
            made.close()
        return False

    def release(self, pipes: Pipes) -> None:
        """Give the pipe back."""
        if self.pipe is not None:
            pipes.give(self.pipe, empty=not self.held)
            self.pipe = None


class _Connection:
    """A client, the container's side, and the two streams between them."""

    __slots__ = ("_again", "_connected", "_loop", "_pipes", "_sides", "_streams")

    def __init__(self, loop: Loop, pipes: Pipes, client: _socket.socket, server: _socket.socket) -> None:
        self._loop = loop
        self._pipes = pipes
        self._sides = (client, server)
        self._streams = (_Stream(client.fileno(), server.fileno()), _Stream(server.fileno(), client.fileno()))
        self._connected = False
        self._again = False
        loop.watch(server.fileno(), BOTH, self._server_event)

    def _server_event(self, events: int) -> None:
        if not self._connected:
            if self._sides[1].getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
                self.close(reset=True)
                return
            if not events & WRITE:
                return
            self._connected = True
            self._loop.watch(self._sides[0].fileno(), BOTH, self._event)
        self._pump()

    def _event(self, _events: int) -> None:
        self._pump()

    def _pump(self) -> None:
        self._again = False
        to_server, to_client = self._streams
        try:
            more = False
            if not to_server.done:
                more = to_server.pump(self._pipes)
            if not to_client.done:
                more = to_client.pump(self._pipes) or more
        except OSError:
            # an end that isn't one must not look like one: the other side is reset as well
            self.close(reset=True)
            return
        if to_server.done and to_client.done:
            self.close(reset=False)
        elif more and not self._again:
            self._again = True
            self._loop.again(self._go_on)

    def _go_on(self) -> None:
        if self._again and self._sides[0].fileno() >= 0:
            self._pump()

    def close(self, *, reset: bool) -> None:
        """End both sides."""
        for stream in self._streams:
            stream.release(self._pipes)
        for side in self._sides:
            self._loop.forget(side.fileno())
            if reset:
                try:
                    side.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
                except OSError:
                    pass
            side.close()


class Listener:
    """A listening socket, and where its connections go."""

    __slots__ = ("_backend", "_family", "_loop", "_pipes", "_socket")

    def __init__(self, loop: Loop, pipes: Pipes, listening: _socket.socket, backend: tuple[Any, ...]) -> None:
        self._loop = loop
        self._pipes = pipes
        self._socket = listening
        self._backend = backend
        self._family = _socket.AF_INET6 if ":" in backend[0] else _socket.AF_INET
        listening.setblocking(False)
        loop.watch(listening.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        for _turn in range(64):
            try:
                fd, _address = self._socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._pause()
                    return
                continue  # the client was gone before we came
            self._connect(_socket.socket(fileno=fd))

    def _pause(self) -> None:
        """No more files: wait until connections have ended."""
        self._loop.forget(self._socket.fileno())
        self._loop.later(0.1, lambda: self._loop.watch(self._socket.fileno(), READ, self._accept))

    def _connect(self, client: _socket.socket) -> None:
        try:
            client.setblocking(False)
            _prepare(client)
            server = _socket.socket(self._family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        except OSError:
            client.close()
            return
        try:
            _prepare(server)
            error = server.connect_ex(self._backend)
            if error not in (0, _IN_PROGRESS):
                raise OSError(error, "connect")
        except OSError:
            server.close()
            try:
                client.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
            except OSError:
                pass
            client.close()
            return
        _Connection(self._loop, self._pipes, client, server)


def _prepare(side: _socket.socket) -> None:
    side.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    side.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)

"""TCP: each connection is two streams of bytes, each with its own end.

Short exchanges are copied; a stream that has moved more goes through a pipe by
splice(2), without its bytes ever being here.
"""

from __future__ import annotations

import _socket
import os
import struct

from ocirt.proxy.loop import BOTH, BROKEN, CLOSED, ENDED, READ, READABLE, WRITE, accept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.proxy.loop import Loop

_SMALL = 1 << 14  # bytes at once in the beginning
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

    __slots__ = ("_pipes", "_source", "_target", "data", "done", "held", "moved", "pipe")

    def __init__(self, pipes: Pipes, source: int, target: _socket.socket) -> None:
        self._pipes = pipes
        self._source = source
        self._target = target
        self.data = b""
        self.held = 0
        self.moved = 0
        self.pipe: tuple[int, int] | None = None
        self.done = False

    @property
    def waits(self) -> bool:
        """Is there something that the target had no room for?"""
        return bool(self.data) or self.held > 0

    def pump(self, ended: bool) -> bool:
        """Move what can be moved; True if there may be more. Raises OSError when a side is broken.

        Unless the source is known to have `ended`, a read that gives less than
        it might is the last: what comes after it is told as another event.
        """
        if self.done:
            return False
        try:
            for _ in range(_TURNS):
                if self.pipe is not None:
                    self._splice()
                elif not self.data:
                    size = _SMALL if self.moved < _SMALL else _COPY
                    self.data = os.read(self._source, size)
                    read = len(self.data)
                    if read:
                        self.moved += read
                        self._write()
                        if self.moved > _COPIED and not self.data:
                            self.pipe = self._pipes.take()
                        elif read < size and not ended:
                            return False
                    else:
                        self._end()
                else:
                    self._write()
                if self.done:
                    return False
        except BlockingIOError:
            return False
        return True

    def _write(self) -> None:
        sent = os.write(self._target.fileno(), self.data)
        self.data = self.data[sent:]

    def _splice(self) -> None:
        assert self.pipe is not None
        if not self.held:
            self.held = os.splice(self._source, self.pipe[1], _PIPE, flags=_NONBLOCK_MOVE)
            if not self.held:
                self._end()
                return
        target = self._target.fileno()
        while self.held:
            self.held -= os.splice(self.pipe[0], target, self.held, flags=_NONBLOCK_MOVE)

    def _end(self) -> None:
        """The source has ended: so does the target's reading, and only that."""
        self.done = True
        self.release()
        try:
            self._target.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # it is gone already

    def release(self) -> None:
        """Give the pipe back."""
        if self.pipe is not None:
            self._pipes.give(self.pipe, empty=not self.held)
            self.pipe = None


class _Connection:
    """A client, the container's side, and the two streams between them."""

    __slots__ = ("_again", "_client", "_connected", "_loop", "_server", "_to_client", "_to_server")

    def __init__(self, loop: Loop, pipes: Pipes, client: _socket.socket, server: _socket.socket) -> None:
        self._loop = loop
        self._client = client
        self._server = server
        self._to_server = _Stream(pipes, client.fileno(), server)
        self._to_client = _Stream(pipes, server.fileno(), client)
        self._connected = False
        self._again = False
        loop.watch(server.fileno(), BOTH, self._server_event)

    def _server_event(self, events: int) -> None:
        if not self._connected:
            if not events & WRITE or self._server.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
                if events & (WRITE | BROKEN):
                    self.close(reset=True)
                return
            self._connected = True
            self._loop.watch(self._client.fileno(), BOTH, self._client_event)
        self._pump(events, self._to_client, self._to_server)

    def _client_event(self, events: int) -> None:
        self._pump(events, self._to_server, self._to_client)

    def _pump(self, events: int, away: _Stream, back: _Stream) -> None:
        """Something happened to a side: `away` reads from it, `back` writes to it."""
        try:
            more = False
            if events & READABLE:
                more = away.pump(bool(events & ENDED))
            if events & WRITE and back.waits:
                more = back.pump(True) or more
        except OSError:
            # an end that isn't one must not look like one: the other side is reset as well
            self.close(reset=True)
            return
        if away.done and back.done:
            self.close(reset=False)
        elif more and not self._again:
            self._again = True
            self._loop.again(self._go_on)

    def _go_on(self) -> None:
        """Another turn for a side that had more than its share."""
        self._again = False
        if self._client.fileno() >= 0:
            self._pump(READ | WRITE | CLOSED, self._to_server, self._to_client)
        if self._client.fileno() >= 0:
            self._pump(READ | WRITE | CLOSED, self._to_client, self._to_server)

    def close(self, *, reset: bool) -> None:
        """End both sides; closing takes them out of epoll as well."""
        self._to_server.release()
        self._to_client.release()
        for side in (self._client, self._server):
            self._loop.closing(side.fileno())
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
        # connections inherit these
        listening.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        listening.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
        loop.watch(listening.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        for _turn in range(64):
            try:
                fd = accept(self._socket)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._pause()
                    return
                continue  # the client was gone before we came
            self._connect(_socket.socket(self._socket.family, _socket.SOCK_STREAM, _socket.IPPROTO_TCP, fd))

    def _pause(self) -> None:
        """No more files: wait until connections have ended."""
        self._loop.forget(self._socket.fileno())
        self._loop.later(0.1, lambda: self._loop.watch(self._socket.fileno(), READ, self._accept))

    def _connect(self, client: _socket.socket) -> None:
        try:
            client.setblocking(False)
            server = _socket.socket(self._family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        except OSError:
            client.close()
            return
        try:
            server.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
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

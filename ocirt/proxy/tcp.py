"""TCP: each connection is two streams of bytes, each with its own end.

Short exchanges are copied; a stream that has moved more goes through a pipe by
splice(2), without its bytes ever being here; what goes on and on is carried by
threads (ocirt.proxy.bulk).
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from ocirt.proxy.bulk import Carriers
from ocirt.proxy.loop import BOTH, BROKEN, CLOSED, ENDED, READ, READABLE, WRITE, accept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.proxy.loop import Loop

_SMALL = 1 << 14  # bytes at once in the beginning
_COPY = 1 << 16  # bytes at once while copying
_COPIED = 1 << 18  # bytes copied before splicing begins
_BULK, _SOON = 1 << 22, 0.1  # bytes that a connection worth threads moves in so many seconds
_PIPE = 1 << 20  # a pipe of the default size costs half of the throughput
_TURNS = 16  # times that a stream goes on before others get their turn
_NONBLOCK_MOVE = 0x1 | 0x2  # SPLICE_F_MORE would hold small answers back
_F_SETPIPE_SZ = 1031
_IN_PROGRESS, _EAGAIN = 115, 11
_RESET = struct.pack("ii", 1, 0)
_NO_FILES = (23, 24)
_TCP_INFO, _TCP_CLOSE = 11, 7
_SPARE = 16


class Pipes:
    """Pipes that aren't in use at the moment: making one costs as much as a short connection.

    The first are made while the process is root: what all processes of a user
    may have in pipes is limited, and nobody is the user of every container's proxy.
    """

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []

    def fill(self) -> None:
        """Make those that are kept."""
        while len(self._free) < _SPARE:
            self._free.append(self._make())

    def take(self) -> tuple[int, int]:
        """An empty pipe; OSError if there are no more files."""
        return self._free.pop() if self._free else self._make()

    def _make(self) -> tuple[int, int]:
        import fcntl

        made = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(made[1], _F_SETPIPE_SZ, _PIPE)
        except OSError:
            pass  # the user's limit for pipes is reached: the default size works as well
        return made

    def give(self, pipe: tuple[int, int], *, empty: bool) -> None:
        """Take a pipe back; one with bytes in it is closed."""
        if empty and len(self._free) < _SPARE:
            self._free.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])


class Stream:
    """One direction: what has been taken from `source` and not yet given to `target`."""

    __slots__ = ("_pipes", "_source", "_target", "data", "done", "held", "moved", "pipe")

    def __init__(self, pipes: Pipes, source: _socket.socket, target: _socket.socket) -> None:
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
                    self.data = os.read(self._source.fileno(), size)
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
            self.held = os.splice(self._source.fileno(), self.pipe[1], _PIPE, flags=_NONBLOCK_MOVE)
            if not self.held:
                self._end()
                return
            self.moved += self.held
        target = self._target.fileno()
        while self.held:
            self.held -= os.splice(self.pipe[0], target, self.held, flags=_NONBLOCK_MOVE)

    def carry(self, back: Stream) -> None:
        """In a thread, with sides that block: move everything until the end.

        Raises BlockingIOError when nothing has moved for as long as the sides
        wait (SO_RCVTIMEO), OSError when a side is broken. The kernel tells of a
        reset once: if the thread of the other direction, `back`, has heard it,
        it looks like an end here.
        """
        while self.data:
            self._write()
        if self.pipe is None:
            self.pipe = self._pipes.take()
        reading, writing = self.pipe
        source, target, splice = self._source.fileno(), self._target.fileno(), os.splice
        while True:
            while self.held:
                self.held -= splice(reading, target, self.held, flags=_NONBLOCK_MOVE)
            self.held = held = splice(source, writing, _PIPE, flags=_NONBLOCK_MOVE)
            if not held:
                if not back.done and self._source.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _TCP_CLOSE:
                    raise ConnectionResetError
                self._end()
                return
            self.moved += held

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

    __slots__ = (
        "_again",
        "_carried",
        "_carriers",
        "_client",
        "_connected",
        "_counted",
        "_loop",
        "_server",
        "_since",
        "_to_client",
        "_to_server",
    )

    def __init__(
        self, loop: Loop, pipes: Pipes, carriers: Carriers, client: _socket.socket, server: _socket.socket
    ) -> None:
        self._loop = loop
        self._carriers = carriers
        self._carried = False
        self._counted, self._since = 0, 0.0  # bytes and moment when they were last looked at
        self._client = client
        self._server = server
        self._to_server = Stream(pipes, client, server)
        self._to_client = Stream(pipes, server, client)
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

    def _pump(self, events: int, away: Stream, back: Stream) -> None:
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
        elif away.moved + back.moved - self._counted > _BULK and self._is_fast() and self._hand_over():
            return
        elif more and not self._again:
            self._again = True
            self._loop.again(self._go_on)

    def _is_fast(self) -> bool:
        """Have the last bytes come so fast that more can be expected?"""
        now = time.monotonic()
        fast = now - self._since < _SOON
        self._counted, self._since = self._to_server.moved + self._to_client.moved, now
        return fast

    def _hand_over(self) -> bool:
        """Give the connection to threads; False if there are none left."""
        sides = (self._client, self._server)
        for side in sides:
            self._loop.forget(side.fileno())
        self._carried = self._carriers.carry(sides, (self._to_server, self._to_client), self._take_back)
        if not self._carried:
            self._watch()
        return self._carried

    def _take_back(self, broken: bool) -> None:
        """The threads have ended: so has the connection, or it has fallen silent."""
        self._carried = False
        if broken or (self._to_server.done and self._to_client.done):
            self.close(reset=broken)
            return
        self._since = 0.0
        self._watch()

    def _watch(self) -> None:
        """What is ready is told at once, whenever it came."""
        self._loop.watch(self._client.fileno(), BOTH, self._client_event)
        self._loop.watch(self._server.fileno(), BOTH, self._server_event)

    def _go_on(self) -> None:
        """Another turn for a side that had more than its share."""
        self._again = False
        if self._carried:
            return
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

    __slots__ = ("_backend", "_carriers", "_family", "_loop", "_pipes", "_socket")

    def __init__(
        self, loop: Loop, pipes: Pipes, carriers: Carriers, listening: _socket.socket, backend: tuple[Any, ...]
    ) -> None:
        self._loop = loop
        self._pipes = pipes
        self._carriers = carriers
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
        _Connection(self._loop, self._pipes, self._carriers, client, server)

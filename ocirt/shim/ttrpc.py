"""ttrpc: calls over a unix socket, as containerd's shims serve them (github.com/containerd/ttrpc, PROTOCOL.md).

A frame is a head of ten bytes and a message:

    u32 length  u32 stream  u8 type  u8 flags      big endian

A stream is one call: its request, and an answer whenever there is one, so that a call that waits keeps none waiting.
Calls with several messages (streaming) aren't served: no call of the task service has them.
"""

from __future__ import annotations

import _socket
from struct import pack, unpack_from

from ocirt import log
from ocirt.errors import Error
from ocirt.linux import fds
from ocirt.shim import loop as events
from ocirt.shim import sockets, wire
from ocirt.shim.messages import REQUEST, RESPONSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ocirt.shim.loop import Loop
    from ocirt.shim.wire import Table

    #: Answers a call: with the answer's table and message.
    Reply = Callable[[Table, dict[str, Any]], None]
    #: Does a call, and answers at once or later.
    Method = Callable[[dict[str, Any], "Call"], None]

REQUEST_TYPE, RESPONSE_TYPE = 1, 2
HEAD = 10
MESSAGE_MAX = 4 << 20

#: google.rpc.Code
UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 2, 3, 4, 5, 6
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL = 8, 9, 12, 13

#: What a client that doesn't read its answers may have waiting before its connection is closed.
_BACKLOG_MAX = 64 << 20
#: Seconds until connections are accepted again after there was no descriptor for one.
_AGAIN = 0.1
#: Of an error's text.
_TEXT_MAX = 65536


class Failure(Exception):
    """What a call is answered with in place of a message: a code of google.rpc.Code and a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Call:
    """A call that waits for its answer. It is answered once; what comes later is dropped."""

    __slots__ = ("_connection", "_stream", "answered", "timer")

    def __init__(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self._stream = stream
        self.answered = False
        self.timer: events.Timer | None = None

    @property
    def needless(self) -> bool:
        """Is it answered already, or is the client gone?"""
        return self.answered or self._connection.closed

    def reply(self, table: Table, message: dict[str, Any]) -> None:
        """The answer."""
        payload = wire.encode(table, message)
        if len(payload) > MESSAGE_MAX - 64:
            self.fail(RESOURCE_EXHAUSTED, f"the answer has {len(payload)} bytes: more than a message may have")
        else:
            self._answer({"payload": payload})

    def fail(self, code: int, text: str) -> None:
        """The answer is that it can't be done."""
        self._answer({"status": {"code": code, "message": text[:_TEXT_MAX].encode("utf-8", "replace").decode()}})

    def _answer(self, response: dict[str, Any]) -> None:
        if self.answered:
            return
        self.answered = True
        if self.timer:
            self.timer.cancel()
        self._connection.send(frame(self._stream, RESPONSE_TYPE, wire.encode(RESPONSE, response)))


def frame(stream: int, kind: int, payload: bytes) -> bytes:
    """A whole frame."""
    return pack(">IIBB", len(payload), stream, kind, 0) + payload


class Frames:
    """Bytes as they come, cut into frames; the payload of one that is too long is None, and passed over."""

    __slots__ = ("_data", "_skip")

    def __init__(self) -> None:
        self._data = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[tuple[int, int, bytes | None, int]]:
        """(stream, type, payload, length) of each frame that is complete now."""
        self._data += data
        found: list[tuple[int, int, bytes | None, int]] = []
        while True:
            if self._skip:
                gone = min(self._skip, len(self._data))
                del self._data[:gone]
                self._skip -= gone
            if len(self._data) < HEAD:
                return found
            length, stream, kind, _ = unpack_from(">IIBB", self._data)
            if length > MESSAGE_MAX:
                self._skip = HEAD + length
                found.append((stream, kind, None, length))
                continue
            if len(self._data) < HEAD + length:
                return found
            found.append((stream, kind, bytes(self._data[HEAD : HEAD + length]), length))
            del self._data[: HEAD + length]


class Connection:
    """One client: its frames, and the answers that it hasn't taken yet."""

    __slots__ = ("_frames", "_last", "_out", "_server", "_socket", "_waits", "closed")

    def __init__(self, server: Server, socket: _socket.socket) -> None:
        self._server = server
        self._socket = socket
        self._frames = Frames()
        self._last = 0
        self._out = bytearray()
        self._waits = False
        self.closed = False
        server.loop.watch(socket.fileno(), events.IN, self._ready)

    @property
    def busy(self) -> bool:
        """Are there answers that the client hasn't taken?"""
        return bool(self._out) and not self.closed

    def _ready(self, happened: int) -> None:
        if happened & events.OUT:
            self._flush()
        if self.closed or not happened & ~events.OUT:
            return
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for stream, kind, payload, length in self._frames.feed(data):
            self._take(stream, kind, payload, length)

    def _take(self, stream: int, kind: int, payload: bytes | None, length: int) -> None:
        """One frame: start its call."""
        if kind != REQUEST_TYPE and payload is not None:
            return  # of a stream, or of a later version of the protocol
        call = Call(self, stream)
        if stream % 2 != 1:
            call.fail(INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
        elif payload is None:
            call.fail(RESOURCE_EXHAUSTED, f"message length {length} exceeds the maximum of {MESSAGE_MAX}")
        elif stream <= self._last:
            call.fail(INVALID_ARGUMENT, "StreamID cannot be re-used and must increment")
        else:
            self._last = stream
            self._server.start(call, payload)

    def send(self, data: bytes) -> None:
        """Send a frame, as soon as the client takes it."""
        if self.closed:
            return
        self._out += data
        if len(self._out) > _BACKLOG_MAX:
            log.warning("a client doesn't read its answers: its connection is closed")
            self.close()
            return
        self._flush()

    def _flush(self) -> None:
        if not self._out:
            return
        try:
            sent = self._socket.send(self._out, _socket.MSG_NOSIGNAL)
            del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._waits != bool(self._out):
            self._waits = bool(self._out)
            self._server.loop.watch(self._socket.fileno(), events.IN | (events.OUT if self._waits else 0), self._ready)

    def close(self) -> None:
        """The client is gone; what it waits for goes on, and its answers are dropped."""
        if not self.closed:
            self.closed = True
            self._server.loop.forget(self._socket.fileno())
            self._socket.close()
            self._server.connections.discard(self)


class Server:
    """Takes connections and starts calls.

    services  full name of a service -> name of a method -> (table of its request, the function that does it)
    """

    def __init__(
        self,
        loop: Loop,
        socket: _socket.socket,
        services: dict[str, dict[str, tuple[Table, Method]]],
    ) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self._socket = socket
        self._services = services
        socket.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:  # not closed meanwhile
            self.loop.watch(self._socket.fileno(), events.IN, self._accept)

    def _accept(self, _: int) -> None:
        try:
            fd = fds.accept(self._socket)
        except BlockingIOError:
            return  # whoever it was has gone again
        except OSError as error:  # there are no more descriptors: not at once again
            log.warning(f"accept: {(error.strerror or '').lower()}")
            self.loop.forget(self._socket.fileno())
            self.loop.later(_AGAIN, self._listen)
            return
        connection = _socket.socket(fileno=fd)
        if not sockets.is_ours(connection):
            connection.close()
            return
        connection.setblocking(False)
        self.connections.add(Connection(self, connection))

    def start(self, call: Call, payload: bytes) -> None:
        """Find the method and do it; whatever it raises is the answer."""
        try:
            request = wire.decode(REQUEST, payload)
        except ValueError as error:
            call.fail(INVALID_ARGUMENT, f"the request can't be read: {error}")
            return
        methods = self._services.get(request.get("service", ""))
        if methods is None:
            call.fail(UNIMPLEMENTED, f"service {request.get('service', '')}")
            return
        method = methods.get(request.get("method", ""))
        if method is None:
            call.fail(UNIMPLEMENTED, f"method {request.get('method', '')}")
            return
        timeout = request.get("timeout_nano", 0)
        if timeout > 0:
            call.timer = self.loop.later(
                timeout / 1e9, lambda: call.fail(DEADLINE_EXCEEDED, "context deadline exceeded")
            )
        try:
            message = wire.decode(method[0], request.get("payload", b""))
        except ValueError as error:
            call.fail(INVALID_ARGUMENT, f"the message of {request.get('method')} can't be read: {error}")
            return
        try:
            method[1](message, call)
        except Failure as failure:
            call.fail(failure.code, failure.text)
        except (Error, OSError) as error:
            call.fail(UNKNOWN, str(error))
        except Exception as error:
            call.fail(INTERNAL, f"bug in ocirt: {type(error).__name__}: {error}")
            raise

    def close(self) -> None:
        """Take no more connections."""
        self.loop.forget(self._socket.fileno())
        self._socket.close()

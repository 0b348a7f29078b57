"""Telling containerd what happens to tasks: its ttrpc service Events, in order, one at a time, until it has heard.

containerd may be down for a while: what can't be told now is kept and told when it is there again.
"""

from __future__ import annotations

import _socket
import time

from ocirt import log
from ocirt.shim import loop as events
from ocirt.shim import ttrpc, wire
from ocirt.shim.messages import EVENTS, FORWARD, REQUEST, RESPONSE, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.shim.loop import Loop

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
#: Seconds: for an answer; between tries.
_PATIENCE = 5.0
_PAUSE = 0.2
_PAUSE_MAX = 5.0
#: More than this is waiting only when containerd is gone for long: the oldest are given up.
_KEPT_MAX = 4096


class Publisher:
    """The events that containerd hasn't heard of yet, and the connection to it."""

    def __init__(self, loop: Loop, address: str, namespace: str) -> None:
        self._loop = loop
        self._address = address
        self._namespace = namespace
        self._queue: list[bytes] = []
        self._socket: _socket.socket | None = None
        self._frames = ttrpc.Frames()
        self._stream = 1
        self._waiting = False
        self._pause = _PAUSE
        self._timer: events.Timer | None = None

    @property
    def idle(self) -> bool:
        """Has containerd heard of everything?"""
        return not self._queue

    def publish(self, topic: str, message: dict[str, Any]) -> None:
        """Tell of an event: `topic` and its message as in messages.EVENTS."""
        name, table = EVENTS[topic]
        envelope = {
            "timestamp": timestamp(time.time()),
            "namespace": self._namespace,
            "topic": f"/tasks/{topic}",
            "event": {"type_url": f"containerd.events.{name}", "value": wire.encode(table, message)},
        }
        if not self._address:
            return
        self._queue.append(wire.encode(FORWARD, {"envelope": envelope}))
        if len(self._queue) > _KEPT_MAX:
            log.warning("containerd doesn't take events: the oldest is given up")
            del self._queue[1 if self._waiting else 0]
        self._send()

    def _send(self) -> None:
        """Send the first event, if none is under way and there is one."""
        if self._waiting or not self._queue:
            return
        if self._socket is None and not self._connect():
            return
        assert self._socket is not None
        request = {
            "service": _SERVICE,
            "method": "Forward",
            "payload": self._queue[0],
            "timeout_nano": int(_PATIENCE * 1e9),
            "metadata": [{"key": "containerd-namespace-ttrpc", "value": self._namespace}],
        }
        data = ttrpc.frame(self._stream, ttrpc.REQUEST_TYPE, wire.encode(REQUEST, request))
        try:
            # an event is smaller than a socket's buffer, and only one is under way
            if self._socket.send(data, _socket.MSG_NOSIGNAL) != len(data):
                raise BlockingIOError
        except OSError:
            self._lost()
            return
        self._waiting = True
        self._timer = self._loop.later(_PATIENCE, self._lost)

    def _connect(self) -> bool:
        try:
            socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            socket.setblocking(False)
            socket.connect(self._address)
        except OSError:  # nobody listens, too many want to be heard, or there are no more descriptors
            self._later()
            return False
        self._socket, self._frames, self._stream = socket, ttrpc.Frames(), 1
        self._loop.watch(socket.fileno(), events.IN, self._ready)
        return True

    def _ready(self, _: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        for stream, kind, payload, _length in self._frames.feed(data):
            if stream == self._stream and kind == ttrpc.RESPONSE_TYPE and self._waiting:
                self._heard(payload or b"")

    def _heard(self, payload: bytes) -> None:
        """containerd has answered: it knows of the first event, or doesn't want it."""
        status = wire.decode(RESPONSE, payload).get("status", {})
        if status.get("code"):
            log.warning(f"containerd didn't take an event: {status.get('message', '')}")
        if self._timer:
            self._timer.cancel()
        self._waiting = False
        self._pause = _PAUSE
        self._stream += 2
        self._queue.pop(0)
        self._send()

    def _lost(self) -> None:
        """The connection is gone or silent: try the same event over another one."""
        if self._timer:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._waiting = False
        if self._queue:
            self._later()

    def _later(self) -> None:
        self._waiting = True  # nothing is sent before

        def again() -> None:
            self._waiting = False
            self._send()

        self._timer = self._loop.later(self._pause, again)
        self._pause = min(self._pause * 2, _PAUSE_MAX)

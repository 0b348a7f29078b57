"""UDP: a table of sessions, each a client's address with a connected socket to the container."""

from __future__ import annotations

import _socket
import struct
import time

from ocirt.proxy.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.proxy.loop import Loop

IDLE = 90.0
_LARGEST = 65535
_SESSIONS = 16384
_TURNS = 64
_SWEEP = 10.0
_PKTINFO4 = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50


class _Session:
    """What a client sends goes out by `socket`; answers go back from the address that the client used."""

    __slots__ = ("client", "control", "last", "socket")

    def __init__(self, client: Any, control: list[tuple[int, int, bytes]], socket: _socket.socket) -> None:
        self.client = client
        self.control = control
        self.socket = socket
        self.last = time.monotonic()


class Listener:
    """A bound socket, and where its datagrams go."""

    __slots__ = ("_backend", "_buffer", "_family", "_loop", "_sessions", "_six", "_socket", "_view")

    def __init__(self, loop: Loop, bound: _socket.socket, backend: tuple[Any, ...]) -> None:
        self._loop = loop
        self._socket = bound
        self._backend = backend
        self._family = _socket.AF_INET6 if ":" in backend[0] else _socket.AF_INET
        self._sessions: dict[Any, _Session] = {}
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)
        self._six = bound.family == _socket.AF_INET6
        if self._six:
            bound.setsockopt(_socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            bound.setsockopt(_socket.IPPROTO_IP, _IP_PKTINFO, 1)
        bound.setblocking(False)
        loop.watch(bound.fileno(), READ, self._from_clients)
        loop.later(_SWEEP, self._sweep)

    def _from_clients(self, _: int) -> None:
        for _turn in range(_TURNS):
            try:
                size, control, _flags, client = self._socket.recvmsg_into([self._buffer], 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # an answer of ours that couldn't be delivered
            used = control[0][2] if control else b""
            key = (client, used)
            session = self._sessions.get(key)
            if session is None:
                session = self._open(key, client, used)
                if session is None:
                    continue
            session.last = time.monotonic()
            try:
                session.socket.send(self._view[:size])
            except OSError:
                continue  # nobody listens there (yet), or no room: a datagram may be lost

    def _open(self, key: Any, client: Any, used: bytes) -> _Session | None:
        if len(self._sessions) >= _SESSIONS:
            oldest = min(self._sessions, key=lambda k: self._sessions[k].last)
            self._close(oldest)
        try:
            made = _socket.socket(self._family, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
            made.connect(self._backend)
        except OSError:
            return None
        session = self._sessions[key] = _Session(client, self._reply_from(used), made)
        self._loop.watch(made.fileno(), READ, lambda _events: self._from_container(session))
        return session

    def _reply_from(self, used: bytes) -> list[tuple[int, int, bytes]]:
        """The control message by which an answer leaves from the address that the request came to."""
        if self._six and len(used) == _PKTINFO6.size:
            address, index = _PKTINFO6.unpack(used)
            return [(_socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(address, index if address[0] == 0xFE else 0))]
        if not self._six and len(used) == _PKTINFO4.size:
            _, local, _ = _PKTINFO4.unpack(used)
            return [(_socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, local, bytes(4)))]
        return []

    def _from_container(self, session: _Session) -> None:
        for _turn in range(_TURNS):
            try:
                size = session.socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                continue  # refused: nobody listens there at the moment
            session.last = time.monotonic()
            try:
                self._socket.sendmsg([self._view[:size]], session.control, 0, session.client)
            except OSError:
                continue

    def _close(self, key: Any) -> None:
        session = self._sessions.pop(key)
        self._loop.forget(session.socket.fileno())
        session.socket.close()

    def _sweep(self) -> None:
        """Close the sessions in which nothing has moved for a while, in either direction."""
        before = time.monotonic() - IDLE
        for key in [k for k, session in self._sessions.items() if session.last < before]:
            self._close(key)
        self._loop.later(_SWEEP, self._sweep)

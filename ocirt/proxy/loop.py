"""The one event loop of the proxy: epoll, edge-triggered, one thread for all ports."""

from __future__ import annotations

import _socket
import os
import select
import time
from bisect import insort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EDGE = select.EPOLLET
READ, WRITE, CLOSED = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
BROKEN = select.EPOLLERR | select.EPOLLHUP
ENDED = CLOSED | BROKEN
READABLE = READ | ENDED
BOTH = READ | WRITE | CLOSED | EDGE


def accept(listening: _socket.socket) -> int:
    """The descriptor of the next connection (`_socket` has no more than this); OSError."""
    untyped: Any = listening
    return int(untyped._accept()[0])


class Loop:
    """Calls handlers: of descriptors with their events, of moments when they have come, of who isn't through yet."""

    __slots__ = ("_again", "_calls", "_epoll", "_handlers", "_timers", "_wake")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._again: list[Callable[[], None]] = []
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._calls: list[Callable[[], None]] = []
        self._wake = -1

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(events)` when something of `events` happens to `fd`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """Stop watching `fd`, which is closed right afterwards: that takes it out of epoll."""
        self._handlers.pop(fd, None)

    def again(self, handler: Callable[[], None]) -> None:
        """Call it once more, after the others have had their turn."""
        self._again.append(handler)

    def listen_to_threads(self) -> None:
        """Make `call` work."""
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.watch(self._wake, READ, self._called)

    def call(self, handler: Callable[[], None]) -> None:
        """Call it in the loop's thread; this is for other threads."""
        self._calls.append(handler)
        os.eventfd_write(self._wake, 1)

    def _called(self, _events: int) -> None:
        os.eventfd_read(self._wake)
        while self._calls:
            self._calls.pop(0)()

    def later(self, seconds: float, handler: Callable[[], None]) -> None:
        """Call it once when that time has passed."""
        insort(self._timers, (time.monotonic() + seconds, handler), key=lambda timer: timer[0])

    def run(self) -> None:
        """Serve for ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait for something and handle it."""
        wait = -1.0
        if self._again:
            wait = 0.0
        elif self._timers:
            wait = max(0.0, self._timers[0][0] - time.monotonic())
        handlers = self._handlers
        for fd, events in self._epoll.poll(wait):
            handler = handlers.get(fd)
            if handler is not None:
                handler(events)
        if self._again:
            waiting, self._again = self._again, []
            for again in waiting:
                again()
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._timers.pop(0)[1]()

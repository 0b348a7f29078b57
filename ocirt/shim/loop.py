"""Waiting for descriptors and for time, by epoll: the daemon is one thread, because it forks.

A callback may be called without need: descriptors are closed and their numbers used again while events are handed
out. So every callback finds out by itself what there is to do, and its descriptor doesn't block.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds: epoll_wait(2) counts milliseconds in an int, and callers name any time.
_SLEEP_MAX = 3600.0

IN, OUT, HANG_UP, PRIORITY = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLPRI


class Timer:
    """Something to be done later; `cancel` if it has become needless."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """It isn't to be done any more."""
        self.callback = None


class Loop:
    """Calls back when descriptors are ready and when times have come."""

    def __init__(self, report: Callable[[Exception], object]) -> None:
        """`report` hears of exceptions of callbacks: one container's trouble must not end the others' shim."""
        self._report = report
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._timers: list[Timer] = []
        self._stopped = False

    def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` when `fd` is ready, as long as it isn't forgotten."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Don't watch `fd` any more; to be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` after that time."""
        timer = Timer(time.monotonic() + seconds, callback)
        self._timers.append(timer)
        return timer

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped = True

    def run(self) -> None:
        """Call back until `stop`."""
        while not self._stopped:
            for fd, events in self._epoll.poll(self._next()):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    try:
                        callback(events)
                    except Exception as error:
                        self._report(error)
            try:
                self._call_timers()
            except Exception as error:
                self._report(error)

    def _next(self) -> float:
        """Seconds until the next timer, -1 if there is none."""
        self._timers = [timer for timer in self._timers if timer.callback is not None]
        if not self._timers:
            return -1
        return min(max(0.0, min(timer.at for timer in self._timers) - time.monotonic()), _SLEEP_MAX)

    def _call_timers(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer.at <= now]:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

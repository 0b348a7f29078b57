"""Bulk: a connection that goes on moving leaves the event loop, and each of its directions gets a thread.

A thread that waits in splice(2) needs neither epoll nor a second attempt that
finds nothing, and several use several cores: four streams move half as much again,
one a tenth. Threads are few, and a connection that falls silent goes back to the
loop.
"""

from __future__ import annotations

import _socket
import _thread
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocirt.proxy.loop import Loop
    from ocirt.proxy.tcp import Stream

_CONNECTIONS = 32  # at once; the others stay in the loop
_STACK = 1 << 18
_PATIENCE = struct.pack("ll", 0, 500_000)  # how soon a thread notices that the other one has failed
_SILENCES = 4  # of that length, until the connection goes back


class Carriers:
    """The threads that there may be."""

    __slots__ = ("_free", "_loop")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._free = _CONNECTIONS
        _thread.stack_size(_STACK)
        loop.listen_to_threads()

    def carry(
        self, sides: Sequence[_socket.socket], streams: tuple[Stream, Stream], then: Callable[[bool], None]
    ) -> bool:
        """Move the connection to threads; False if there are none left.

        The loop must not know the sides any more. `then(broken)` is called by the
        loop's thread when both streams are done, one is broken, or nothing has
        moved for a while.
        """
        if not self._free:
            return False
        self._free -= 1
        for side in sides:
            side.setblocking(True)
            for option in (_socket.SO_RCVTIMEO, _socket.SO_SNDTIMEO):
                side.setsockopt(_socket.SOL_SOCKET, option, _PATIENCE)
        carriage = _Carriage(self._loop, streams, lambda broken: self._ended(sides, then, broken))
        for stream in streams:
            _thread.start_new_thread(carriage.run, (stream,))
        return True

    def _ended(self, sides: Sequence[_socket.socket], then: Callable[[bool], None], broken: bool) -> None:
        self._free += 1
        for side in sides:
            side.setblocking(False)
        then(broken)


class _Carriage:
    """One connection's two threads."""

    __slots__ = ("_broken", "_leaving", "_loop", "_running", "_silences", "_streams", "_then")

    def __init__(self, loop: Loop, streams: tuple[Stream, Stream], then: Callable[[bool], None]) -> None:
        self._loop = loop
        self._streams = streams
        self._then = then
        self._broken = False
        self._leaving = False
        self._running = 2
        self._silences = dict.fromkeys(streams, 0)

    def run(self, stream: Stream) -> None:
        """A thread: carry the stream until it ends, breaks, or has nothing to carry for a while."""
        one, other = self._streams
        back = other if stream is one else one
        try:
            while not self._leaving and not stream.done:
                before = stream.moved
                try:
                    stream.carry(back)
                except BlockingIOError:
                    self._note(stream, silent=stream.moved == before)
        except BaseException:
            self._broken = self._leaving = True
        self._loop.call(self._ended)

    def _note(self, stream: Stream, *, silent: bool) -> None:
        """Nothing has come, or could go, for as long as patience lasts."""
        self._silences[stream] = self._silences[stream] + 1 if silent else 0
        if all(s.done or self._silences[s] >= _SILENCES for s in self._streams):
            self._leaving = True

    def _ended(self) -> None:
        """In the loop's thread, once for each of ours."""
        self._running -= 1
        if not self._running:
            self._then(self._broken)

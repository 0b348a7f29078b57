"""Programs that read what a process writes: binary:///PATH?KEY=VALUE… (containerd's runtime/v2 README, Logging).

descriptors   3 stdout, 4 stderr, to read from; 5 to say that it is ready, by closing it (binary-v2: by one byte)
environment   CONTAINER_ID and CONTAINER_NAMESPACE alone
arguments     the keys and values of the query, in order
"""

from __future__ import annotations

import _signal
import fcntl
import os

from ocirt.errors import Error
from ocirt.linux import fds, signals
from ocirt.shim import loop as events
from ocirt.shim.stdio import make_pipe, unquote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.shim.loop import Loop

#: Seconds: until it is ready; between SIGTERM and SIGKILL.
_START = 10.0
_END = 12.0
#: Seconds in which it may end by itself, because all that it reads has ended.
_LEAVE = 2.0
_OUT_OF_THE_WAY = 16


def is_logger(uri: str) -> bool:
    """Is it a program's URI?"""
    return uri.startswith(("binary://", "binary-v2://"))


class Logger:
    """A logging program that runs."""

    __slots__ = ("_loop", "_pid", "_ready", "_timer", "_writers", "alive")

    def __init__(self, loop: Loop, uri: str, id: str, namespace: str, done: Callable[[Error | None], object]) -> None:
        """Start it; `done` is called when it is ready, with why it isn't otherwise. Raises OSError."""
        scheme, _, rest = uri.partition("://")
        path, _, query = rest.partition("?")
        arguments = [unquote(path)]
        for pair in query.split("&") if query else ():
            key, equals, value = pair.replace("+", " ").partition("=")
            arguments += [unquote(key), unquote(value)] if equals else [unquote(key), ""]
        self._loop = loop
        self._writers: list[int] = []
        self._timer: events.Timer | None = None
        self.alive = True
        readers: list[int] = []
        for _ in range(2):
            read, write = make_pipe((0, 0))
            readers.append(read)
            self._writers.append(write)
        self._ready, ready = make_pipe((0, 0))
        environment = {"CONTAINER_ID": id, "CONTAINER_NAMESPACE": namespace}
        try:
            self._pid = _spawn(arguments, environment, (*readers, ready))
        except OSError:
            for fd in (*self._writers, self._ready):
                os.close(fd)
            raise
        finally:
            for fd in (*readers, ready):
                os.close(fd)
        os.set_blocking(self._ready, False)
        v2 = scheme == "binary-v2"
        loop.watch(self._ready, events.IN, lambda _: self._said(path, v2, done))
        self._timer = loop.later(_START, lambda: self._failed(f"{path} isn't ready after {_START:g} s", done))

    def _said(self, path: str, v2: bool, done: Callable[[Error | None], object]) -> None:
        try:
            data = os.read(self._ready, 1)
        except BlockingIOError:
            return
        if v2 and not data:
            self._failed(f"{path} ended before it was ready", done)
            return
        self._forget()
        done(None)

    def _failed(self, why: str, done: Callable[[Error | None], object]) -> None:
        self._forget()
        done(Error(f"start the logging program: {why}"))

    def _forget(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._ready >= 0:
            self._loop.forget(self._ready)
            os.close(self._ready)
            self._ready = -1

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._pid

    def ended(self) -> None:
        """It has been reaped."""
        self.alive = False

    def take_writers(self, owner: tuple[int, int]) -> list[int]:
        """The ends of its pipes that the container writes to; the caller closes them."""
        writers, self._writers = self._writers, []
        if owner != (0, 0):
            for fd in writers:
                os.fchown(fd, *owner)
        return writers

    def end(self) -> None:
        """Its pipes are closed by now and it should end by itself; or else it is told to."""
        self._forget()
        for fd in self._writers:
            os.close(fd)
        self._writers.clear()
        for seconds, signal in ((_LEAVE, _signal.SIGTERM), (_LEAVE + _END, _signal.SIGKILL)):
            self._loop.later(seconds, lambda signal=signal: self._kill(signal))  # type: ignore[misc]

    def _kill(self, signal: int) -> None:
        if self.alive:  # not reaped yet: the pid can't be another's
            os.kill(self._pid, signal)


def _spawn(arguments: list[str], environment: dict[str, str], passed: tuple[int, ...]) -> int:
    """Start a program with `passed` as its descriptors from 3 on; raises OSError also for what execve says."""
    problem, ours = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            # out of the way first: they may have the very numbers that are wanted
            ours, *moved = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for fd in (ours, *passed))
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for fd in (0, 1):
                os.dup2(null, fd)
            for number, fd in enumerate(moved, 3):
                os.dup2(fd, number)
            fds.cloexec_from(3 + len(moved))
            signals.reset()
            os.execve(arguments[0], arguments, environment)
        except OSError as error:
            os.write(ours, b"%d" % (error.errno or 0))
        finally:
            os._exit(127)
    os.close(ours)
    errno = os.read(problem, 16)
    os.close(problem)
    if errno:
        os.waitpid(pid, 0)
        raise OSError(int(errno), os.strerror(int(errno)), arguments[0])
    return pid

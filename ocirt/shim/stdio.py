"""What a process of a container reads and writes: from and to what containerd names.

    fifo (a path)      pipes to the container, copied from and to the fifos: by splice(2), so that no byte is touched
    file:///PATH       copied to the end of the file
    binary:///PROGRAM  a program that gets the pipes (see loggers)
    nothing            /dev/null
    a terminal         its master, copied from and to the fifos, the file or the program

The container gets pipes and never what is behind them: it could open those again by /proc/self/fd and read, truncate
or fill what is the engine's.
"""

from __future__ import annotations

import fcntl
import os
import termios
from struct import pack, unpack

from ocirt import log
from ocirt.errors import InvalidConfig, doing
from ocirt.shim import loop as events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.shim.loggers import Logger
    from ocirt.shim.loop import Loop

_EIO, _EINVAL, _EPIPE = 5, 22, 32
_CHUNK = 1 << 16
#: Copies in a row before others get their turn.
_ROUNDS = 16
#: Seconds in which a client that hasn't opened its end of a fifo may still do so, after the process has ended.
_LINGER = 10.0
_LOOK_AGAIN = 0.02


class Copy:
    """Moves bytes from one descriptor to another until the end; then both are closed and `done` is called."""

    __slots__ = ("_buffer", "_done", "_finishing", "_loop", "_splice", "_turned", "open", "source", "target", "unread")

    def __init__(
        self, loop: Loop, source: int, target: int, done: Callable[[], object], *, unread: bool = False
    ) -> None:
        """`unread`: the target is a fifo that nobody had opened yet: what is in it is lost when we close it."""
        self._loop = loop
        self.source = source
        self.target = target
        self._done = done
        self._splice = True
        self._buffer = b""
        self._turned = False
        self._finishing = False
        self.unread = unread
        self.open = True
        os.set_blocking(source, False)
        os.set_blocking(target, False)
        loop.watch(source, events.IN, self._ready)

    def _ready(self, _: int) -> None:
        for _ in range(_ROUNDS):
            if not self.open or not self._step():
                return

    def _step(self) -> bool:
        """Move what can be moved; False if there is something to wait for."""
        try:
            if self._splice:
                try:
                    if os.splice(self.source, self.target, _CHUNK, flags=os.SPLICE_F_NONBLOCK):
                        return True
                    self._end()
                    return False
                except OSError as error:
                    if error.errno != _EINVAL:  # a terminal, or a file that is appended to
                        raise
                    self._splice = False
            if not self._buffer:
                self._buffer = os.read(self.source, _CHUNK)
                if not self._buffer:
                    self._end()
                    return False
            self._buffer = self._buffer[os.write(self.target, self._buffer) :]
            return True
        except BlockingIOError:
            self._wait()
            return False
        except OSError as error:
            # EPIPE: nobody reads the target; EIO: nobody has the terminal open any more
            if error.errno not in (_EPIPE, _EIO):
                log.warning(f"output or input is lost: copy from {self.source} to {self.target}: {error}")
            self._end()
            return False

    def _wait(self) -> None:
        """Wait for the end that isn't ready: for the target, if there is something for it."""
        full = bool(self._buffer) or (self._splice and readable(self.source) > 0)
        if self._finishing and not full:
            self._end()
            return
        if full != self._turned:
            self._turned = full
            self._loop.forget(self.source if full else self.target)
            if full:
                self._loop.watch(self.target, events.OUT, self._ready)
            else:
                self._loop.watch(self.source, events.IN, self._ready)

    def finish(self) -> None:
        """End when what the source has now is moved: nothing that counts will be written to it any more."""
        self._finishing = True
        self._ready(0)

    def _end(self) -> None:
        self._stop_watching()
        if self.unread and readable(self.target) > 0:
            self._linger(_LINGER)
        else:
            self.close()

    def _linger(self, left: float) -> None:
        """Keep the fifo until somebody has read it."""
        if not self.open:
            return
        if left <= 0 or readable(self.target) <= 0:
            self.close()
        else:
            self._loop.later(_LOOK_AGAIN, lambda: self._linger(left - _LOOK_AGAIN))

    def _stop_watching(self) -> None:
        self._loop.forget(self.source)
        self._loop.forget(self.target)

    def close(self) -> None:
        """Stop now."""
        if self.open:
            self.open = False
            self._stop_watching()
            os.close(self.source)
            os.close(self.target)
            self._done()


def readable(fd: int) -> int:
    """How many bytes wait in a pipe or fifo (FIONREAD)."""
    try:
        return int(unpack("i", fcntl.ioctl(fd, termios.FIONREAD, pack("i", 0)))[0])
    except OSError:
        return 0


class Streams:
    """The three streams of one process.

    child   descriptors for the process: stdin, stdout, stderr; closed by `started`
    master  of its terminal, -1 if it has none
    """

    __slots__ = ("_inputs", "_loop", "_outputs", "_stdin_writer", "_waiting", "child", "logger", "master")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._inputs: list[Copy] = []
        self._outputs: list[Copy] = []
        self._stdin_writer = -1
        self._waiting: list[Callable[[], object]] = []
        self.child: list[int] = []
        self.master = -1
        self.logger: Logger | None = None

    def open_pipes(self, given: dict[str, str], owner: tuple[int, int]) -> None:
        """Make the descriptors of a process without a terminal. Error, OSError: `close` takes back what was made.

        given  stdin, stdout, stderr: paths or URIs, "" for nothing
        owner  uid and gid that the pipes are given to, (0, 0) to leave them
        """
        self._open_stdin(given["stdin"], owner)
        if self.logger:
            self.child += self.logger.take_writers(owner)
            return
        for uri in (given["stdout"], given["stderr"]):
            if not uri:
                self.child.append(_null(os.O_WRONLY))
                continue
            read, write = make_pipe(owner)
            self.child.append(write)
            self._copy_to(read, uri)

    def _open_stdin(self, path: str, owner: tuple[int, int]) -> None:
        if not path:
            self.child.append(_null(os.O_RDONLY))
            return
        read, write = make_pipe(owner)
        self.child.append(read)
        self._copy_stdin(path, write)

    def open_terminal(self, master: int, given: dict[str, str]) -> None:
        """Copy from and to a terminal's master, which is ours from now on."""
        self.master = master
        if self.logger:
            writer, other = self.logger.take_writers((0, 0))
            os.close(other)  # a terminal has one stream
            self._outputs.append(Copy(self._loop, _duplicate(master), writer, self._copied))
        elif given["stdout"]:
            self._copy_to(_duplicate(master), given["stdout"])
        else:
            self._outputs.append(Copy(self._loop, _duplicate(master), _null(os.O_WRONLY), self._copied))
        if given["stdin"]:
            self._copy_stdin(given["stdin"], _duplicate(master))

    def _copy_to(self, source: int, uri: str) -> None:
        try:
            with doing(f'open "{uri}"'):
                target, unread = open_target(uri)
        except BaseException:
            os.close(source)
            raise
        self._outputs.append(Copy(self._loop, source, target, self._copied, unread=unread))

    def _copy_stdin(self, path: str, target: int) -> None:
        """From a fifo; an end to write to it is kept until CloseIO, so that no client's leaving ends it."""
        try:
            with doing(f'open stdin "{path}"'):
                source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    self._stdin_writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError:
                    os.close(source)
                    raise
        except BaseException:
            os.close(target)
            raise
        self._inputs.append(Copy(self._loop, source, target, lambda: None))

    def started(self) -> None:
        """The process has its descriptors: close ours of them."""
        for fd in self.child:
            os.close(fd)
        self.child.clear()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; nothing without one."""
        if self.master >= 0:
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, pack("4H", height & 0xFFFF, width & 0xFFFF, 0, 0))

    def close_stdin(self) -> None:
        """Close our own end of stdin: it ends when the client's is closed as well."""
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1

    def exited(self) -> None:
        """The process has ended: nobody reads its stdin any more, and its terminal ends with it."""
        self.close_stdin()
        for copy in self._inputs:
            copy.close()
        if self.master >= 0:
            for copy in self._outputs:
                copy.finish()
            os.close(self.master)
            self.master = -1

    def when_finished(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back once, when all output has been passed on or after that time."""
        if self._finished():
            callback()
            return
        called = False

        def once() -> None:
            nonlocal called
            if not called:
                called = True
                timer.cancel()
                callback()

        timer = self._loop.later(seconds, once)
        self._waiting.append(once)

    def _finished(self) -> bool:
        return not any(copy.open for copy in self._outputs)

    def _copied(self) -> None:
        if self._finished():
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                callback()

    def close(self) -> None:
        """End everything now."""
        self._waiting.clear()
        self.started()
        self.close_stdin()
        for copy in self._inputs + self._outputs:
            copy.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        if self.logger:
            self.logger.end()
            self.logger = None


def open_target(uri: str) -> tuple[int, bool]:
    """(descriptor to write to, is it a fifo that nobody reads yet?) of a fifo's path or a file: URI."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "fifo", uri
    if scheme == "file":
        path = unquote(rest.partition("?")[0])
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        # O_NONBLOCK: it may be a fifo, whose opening must not keep the others waiting
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return os.open(path, flags, 0o644), False
    if scheme != "fifo":
        raise InvalidConfig("fifo, file and binary are the schemes that are known")
    reader = -1
    try:
        reader = os.open(rest, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != 6:  # ENXIO
            raise
    try:
        # for reading as well: opening never blocks, and a client that goes away and comes back (containerd is started
        # anew) ends nothing
        return os.open(rest, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), reader < 0
    finally:
        if reader >= 0:
            os.close(reader)


def unquote(text: str) -> str:
    """%XX of a URI."""
    if "%" not in text:
        return text
    first, *parts = os.fsencode(text).split(b"%")
    out = first
    for part in parts:
        try:
            out += bytes((int(part[:2], 16),)) + part[2:]
        except ValueError:
            raise InvalidConfig(f"{text}: %{os.fsdecode(part[:2])} isn't two hexadecimal digits") from None
    return os.fsdecode(out)


def make_pipe(owner: tuple[int, int]) -> tuple[int, int]:
    """A pipe of that user's: (end to read from, end to write to)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    if owner != (0, 0):
        os.fchown(read, *owner)  # both ends are one inode
    return read, write


def _null(mode: int) -> int:
    return os.open("/dev/null", mode | os.O_CLOEXEC)


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)

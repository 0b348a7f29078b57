"""`run`: a container's whole life in one command, with its terminal and its signals.

Signals that the command gets go to the container's init; the exit status is its
process's, 128 + N when signal N ended it.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import posix as os
import select

from ocirt import lifecycle, log
from ocirt.errors import Undo
from ocirt.lifecycle import Runtime
from ocirt.linux import fds, prctl, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.checkpoint import Images
    from ocirt.container import Container
    from ocirt.notify import Relay

_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414

#: Signals that aren't forwarded: news of children and of the window, and what can't be caught.
_NOT_FORWARDED = signals.RESERVED | {_signal.SIGCHLD, _signal.SIGWINCH, _signal.SIGURG}

_CHUNK = 65536


def run(
    runtime: Runtime,
    id: str,
    bundle: str,
    *,
    detach: bool = False,
    keep: bool = False,
    subreaper: bool = True,
    **creation: Any,
) -> int:
    """Create and start a container; wait for it and delete it unless detached.

    keep       leave the container when its process has ended
    subreaper  become the parent of what the container leaves behind
    creation   the keyword arguments of lifecycle.create
    Gives the exit status, 0 when detached.
    """
    if detach:
        with Undo() as undo:
            lifecycle.create(runtime, id, bundle, **creation)
            undo.add("delete the container", lambda: lifecycle.delete(runtime, id, force=True))
            lifecycle.start(runtime, id)
        return 0
    if subreaper:
        prctl.prctl(prctl.PR_SET_CHILD_SUBREAPER, 1)
    signal_fd = _watch_signals()
    with Undo() as undo:
        ours = _console(creation)
        container = lifecycle.create(runtime, id, bundle, **creation)
        undo.add("delete the container", lambda: lifecycle.delete(runtime, id, force=True))
        terminal = _Terminal.receive(ours) if ours else None
        try:
            relay = lifecycle.start(runtime, id, relay=False)
            log.step("attend to the container's process")
            status = _attend(container.pid, signal_fd, terminal, relay)
        finally:
            if terminal:
                terminal.restore()
    if not keep:
        lifecycle.delete(runtime, id, force=True)
    return status


def restore(
    runtime: Runtime, id: str, bundle: str, images: Images, *, detach: bool, subreaper: bool, **creation: Any
) -> int:
    """As `run`, for a container whose processes come from the files of a checkpoint."""
    from ocirt.restore import restore as restore_container

    if detach:
        restore_container(runtime, id, bundle, images, creation)
        return 0
    if subreaper:
        prctl.prctl(prctl.PR_SET_CHILD_SUBREAPER, 1)
    signal_fd = _watch_signals()
    ours = _console(creation)
    container = restore_container(runtime, id, bundle, images, creation)
    with Undo() as undo:
        undo.add("delete the container", lambda: lifecycle.delete(runtime, id, force=True))
        terminal = _Terminal.receive(ours) if ours else None
        try:
            status = _attend(container.pid, signal_fd, terminal, None)
        finally:
            if terminal:
                terminal.restore()
    lifecycle.delete(runtime, id, force=True)
    return status


def execute(
    runtime: Runtime, container: Container, config: dict[str, Any], process: Any, *, detach: bool, **creation: Any
) -> int:
    """Run a process in a container (exec.execute) and wait for it unless detached; its exit status."""
    from ocirt import exec as execution

    if detach:
        execution.execute(runtime, container, config, process, execution.Options(**creation))
        return 0
    prctl.prctl(prctl.PR_SET_CHILD_SUBREAPER, 1)
    signal_fd = _watch_signals()
    ours = _console(creation)
    pid = execution.execute(runtime, container, config, process, execution.Options(**creation))
    terminal = _Terminal.receive(ours) if ours else None
    try:
        return _attend(pid, signal_fd, terminal, None)
    finally:
        if terminal:
            terminal.restore()


def _watch_signals() -> int:
    """Block what is to be forwarded and give the descriptor that it is read from."""
    watched = {number for number in range(1, _signal.NSIG) if number not in signals.RESERVED} - _FAULTS
    _signal.pthread_sigmask(_signal.SIG_BLOCK, watched)
    return signals.signalfd(watched)


def _console(creation: dict[str, Any]) -> _socket.socket | None:
    """Our end of a console socket of our own, unless the caller has one."""
    if creation.get("console_socket"):
        return None
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    creation["console"] = theirs.detach()
    return ours


#: Faults of this process itself: they must not wait in a descriptor.
_FAULTS = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGILL, _signal.SIGFPE, _signal.SIGTRAP, _signal.SIGSYS}


def _attend(pid: int, signal_fd: int, terminal: _Terminal | None, relay: Relay | None) -> int:
    """Forward signals and the terminal until process `pid` has ended; its exit status."""
    poll = select.poll()
    poll.register(signal_fd, select.POLLIN)
    if terminal:
        terminal.register(poll)
    if relay:
        poll.register(relay.socket.fileno(), select.POLLIN)
    while True:
        for fd, event in poll.poll():
            if relay and fd == relay.socket.fileno():
                relay.pass_on()
                continue
            if fd != signal_fd:
                assert terminal is not None
                terminal.relay(poll, fd, event)
                continue
            while number := signals.read_signal(signal_fd):
                if number == _signal.SIGWINCH and terminal:
                    terminal.resize()
                elif number not in _NOT_FORWARDED:
                    _forward(pid, number)
        status = _reap(pid)
        if status is not None:
            if terminal:
                terminal.drain()
            return status


def _forward(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended: the next round sees that


def _reap(wanted: int) -> int | None:
    """Reap every child that has ended; the exit status of `wanted` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == wanted:
            found = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class _Terminal:
    """The container's terminal, shown on ours: bytes both ways, raw, resized with it."""

    __slots__ = ("_input", "_saved", "master")

    def __init__(self, master: int) -> None:
        self.master = master
        self._input = b""
        self._saved: list[Any] | None = None
        os.set_blocking(master, False)
        if os.isatty(0):
            self._make_raw()
        self.resize()

    @classmethod
    def receive(cls, ours: _socket.socket) -> _Terminal | None:
        """The master that init has sent; None if the process wants no terminal."""
        _, received = fds.receive(ours, 4096)
        ours.close()
        return cls(received[0]) if received else None

    def _make_raw(self) -> None:
        """Pass every key on, Ctrl-C as well: the container's terminal interprets them (cfmakeraw(3))."""
        import termios as t

        self._saved = t.tcgetattr(0)
        raw = t.tcgetattr(0)
        raw[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        raw[1] &= ~t.OPOST
        raw[2] = raw[2] & ~(t.CSIZE | t.PARENB) | t.CS8
        raw[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        t.tcsetattr(0, t.TCSANOW, raw)

    def restore(self) -> None:
        """Give our own terminal back as it was."""
        if self._saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._saved)
            self._saved = None

    def resize(self) -> None:
        """Make the container's terminal as large as ours, if we have one."""
        try:
            size = fcntl.ioctl(0, _TIOCGWINSZ, bytes(8))
        except OSError:
            return
        if size[:4] != bytes(4):
            fcntl.ioctl(self.master, _TIOCSWINSZ, size)

    def register(self, poll: select.poll) -> None:
        """Watch both ends."""
        poll.register(self.master, select.POLLIN)
        poll.register(0, select.POLLIN)

    def relay(self, poll: select.poll, fd: int, event: int) -> None:
        """Move what has come."""
        if fd == 0:
            self._input += _read(0)
            if not self._input:
                poll.unregister(0)
        if self._input:
            try:
                self._input = self._input[os.write(self.master, self._input) :]
            except BlockingIOError:
                pass
            except OSError:
                self._input = b""
            # while the container doesn't read, neither do we
            poll.modify(self.master, select.POLLIN | (select.POLLOUT if self._input else 0))
            if self._input:
                poll.unregister(0)
            elif fd == self.master:
                poll.register(0, select.POLLIN)
        if fd == self.master and event & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._show():
            poll.unregister(self.master)

    def _show(self) -> bool:
        """Write what the container's terminal has; False at its end."""
        data = _read(self.master)
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
        return bool(data)

    def drain(self) -> None:
        """Show what the container wrote last."""
        while self._show():
            pass


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        # EIO: nobody has the other side of the terminal open any more; EAGAIN: nothing there
        return b""

"""The process that forks workers, and keeps one ready: what a fork costs is paid before anybody waits for it.

A process that forks has its memory write-protected by it, and pays again for each page that it goes on with. So the
daemon forks once, at its beginning, and this process does it from then on: it has nothing else to do, and touches
little. A worker that is ready takes the next operation by itself, from the socket that all of them share; as soon as it
has, another is made.

A request is one message with descriptors: the operation as JSON in a memory file, the socket for the answer, and either
nothing, a console socket, or the three streams of the process that is to be started.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os

from ocirt import log
from ocirt.errors import from_oserror
from ocirt.jsontext import dump_json, parse_json
from ocirt.linux import fds, prctl, title
from ocirt.shim import spare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    #: Gets the operation, with "answer", "log", "level" and "console" (descriptors; a level) added.
    Work = Callable[[dict[str, Any]], NoReturn]

NAME = "ocirt-nursery"
#: What can't be done where there can't be another process, in errors.
START = "start another process"
_DESCRIPTORS_MAX = 5
#: Seconds that the daemon waits where as many requests as the socket has room for wait for workers: some seventy.
_PATIENCE = 2.0


class Nursery:
    """The daemon's end of it. OSError where there can't be another process."""

    def __init__(self, work: Work) -> None:
        self._requests, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        parent = os.getpid()
        try:
            if os.fork() == 0:
                try:
                    _die_with(parent)
                    self._requests.detach()  # closed with the rest
                    _raise(theirs, work)
                finally:
                    os._exit(1)
        finally:
            theirs.close()
        self._requests.settimeout(_PATIENCE)

    def ask(self, operation: dict[str, Any], answer: int, others: tuple[int, ...] = ()) -> None:
        """Have a worker do it. OSError where it can't be asked; ConnectionError where it has ended."""
        source = os.memfd_create("operation", os.MFD_CLOEXEC)
        try:
            os.write(source, dump_json(operation))
            fds.send(self._requests, b"work", (source, answer, *others))
        finally:
            os.close(source)

    def close(self) -> None:
        """Forget one that has ended."""
        self._requests.close()


def _die_with(parent: int) -> None:
    """End when the parent does: the locks that a worker holds go with its shim."""
    prctl.prctl(prctl.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _raise(requests: _socket.socket, work: Work) -> None:
    """Be the nursery."""
    prctl.set_name(NAME)
    title.set_arguments("workers")
    fds.close_all_but(({0, 1, 2, requests.fileno(), spare.image()} | log.descriptors()) - {-1})
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # who has worked is gone at once
    gc.freeze()
    gc.disable()  # a worker's life is too short for it, and it would copy pages
    parent = os.getpid()
    while True:
        taken, ready = os.pipe()  # close-on-exec
        if _fork(requests) == 0:
            os.close(taken)
            _die_with(parent)
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            _wait(requests, ready, work)
        os.close(ready)
        os.read(taken, 1)  # its end: the worker has closed it, or was killed
        os.close(taken)


def _receive(requests: _socket.socket) -> tuple[int, int, list[int]]:
    """The next request: where the operation is, where the answer goes, the other descriptors."""
    received = fds.receive(requests, 16, _DESCRIPTORS_MAX)[1]
    if not received:
        os._exit(0)  # the daemon has ended
    return received[0], received[1], received[2:]


def _fork(requests: _socket.socket) -> int:
    """fork(2). As long as there can't be another process, that is the answer to each request."""
    try:
        return os.fork()
    except OSError:
        pass
    while True:
        requests.recv(1, _socket.MSG_PEEK)  # somebody wants one
        try:
            return os.fork()
        except OSError as error:
            _refuse(requests, error)


def _refuse(requests: _socket.socket, error: OSError) -> None:
    """Answer the next request: there can't be a worker for it."""
    source, answer, others = _receive(requests)
    failure = from_oserror(error, START)
    os.write(answer, dump_json({"error": str(failure), "kind": type(failure).__name__}))
    for fd in (source, answer, *others):
        os.close(fd)


def _wait(requests: _socket.socket, ready: int, work: Work) -> NoReturn:
    """Be a worker: take an operation, do it."""
    source, answer, others = _receive(requests)
    os.close(ready)
    requests.close()
    operation: Any = parse_json(os.pread(source, os.fstat(source).st_size, 0), "the operation")
    os.close(source)
    console = others[0] if len(others) == 1 else -1
    # with a terminal /dev/null: stderr is the log, which isn't the container's to own
    for fd, stream in enumerate(others if console < 0 else (0, 0, 0)):
        os.dup2(stream, fd)
        if stream:
            os.close(stream)
    level = log.DEBUG if log.enabled(log.DEBUG) else log.WARNING
    operation.update(answer=answer, log=max(log.descriptors()), level=level)
    if console >= 0:
        operation["console"] = console
    work(operation)

"""Operations that may wait (for the kernel, for hooks, for systemd) are done by processes of their own: workers.

A worker is a fork, and warm: it has imported all that the operation needs, so that it costs a millisecond where a
runtime's command line costs an interpreter's start. What it changes of itself (streams, working directory, signals)
ends with it, and the daemon goes on serving meanwhile. What it leaves running (init) becomes the daemon's child.

It says how it went in one message, as JSON: {"result": …} or {"error": text, "kind": class of errors.py}.
"""

from __future__ import annotations

import _socket
import os
import sys

from ocirt import log
from ocirt.errors import BY_NAME, Error, InvalidConfig, from_oserror
from ocirt.jsontext import dump_json, parse_json
from ocirt.shim import loop as events
from ocirt.shim.nursery import START, Nursery

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from ocirt.shim.loop import Loop

    #: Does an operation, {"operation": name, …}: gives its result.
    Perform = Callable[[dict[str, Any]], dict[str, Any]]
    #: Gets the operation's result, or its error.
    Done = Callable[[dict[str, Any], Error | None], object]

_MESSAGE_MAX = 1 << 20
_ERROR_MAX = 16384


class Killed(Error):
    """A worker has ended without a word: what it has made is there still."""


class Workers:
    """Has operations done and hands their results on.

    perform  does one; runs in the worker
    """

    def __init__(self, loop: Loop, perform: Perform) -> None:
        self._loop = loop
        self._perform = perform
        self._nursery: Nursery | None = None
        self._running = 0

    @property
    def running(self) -> int:
        """How many haven't said their result."""
        return self._running

    def make_ready(self) -> None:
        """Have a worker ready for the first operation. Raises OSError."""
        self._nursery = Nursery(lambda operation: finish(self._perform, operation))

    def start(self, operation: dict[str, Any], done: Done, *, streams: tuple[int, ...] = (), console: int = -1) -> None:
        """Do an operation; `done` is called from the loop.

        streams  what the worker's (and so a container's) stdin, stdout and stderr are: three descriptors, or none
        console  a socket that the container's terminal is sent to, -1 for none; the operation has it as "console"
        Where there can't be another process, `done` hears so at once.
        """
        try:
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
            self._ask(operation, theirs.fileno(), streams if console < 0 else (console,))
        except OSError as error:
            done({}, from_oserror(error, START))
            return
        except RecursionError:
            done({}, InvalidConfig(f"{operation['operation']}: what is asked for is nested too deeply"))
            return
        theirs.close()
        ours.setblocking(False)
        self._running += 1
        self._loop.watch(ours.fileno(), events.IN, lambda _: self._finished(ours, done))

    def _ask(self, operation: dict[str, Any], answer: int, others: tuple[int, ...]) -> None:
        if self._nursery:
            try:
                self._nursery.ask(operation, answer, others)
                return
            except ConnectionError:  # the OOM killer? It is reset where requests were left
                self._nursery.close()
                self._nursery = None  # there may be no other for a while
        self.make_ready()
        assert self._nursery
        self._nursery.ask(operation, answer, others)

    def _finished(self, socket: _socket.socket, done: Done) -> None:
        try:
            data = socket.recv(_MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._loop.forget(socket.fileno())
        socket.close()
        self._running -= 1
        if not data:
            done({}, Killed("the process that did it was killed"))
            return
        said: Any = parse_json(data, "the worker's message")
        if "error" in said:
            done({}, BY_NAME.get(said["kind"], Error)(said["error"]))
        else:
            done(said["result"], None)


def finish(perform: Perform, operation: dict[str, Any]) -> NoReturn:
    """Do the operation in this process, say how it went, and end."""
    answer = operation["answer"]
    before: set[str] = set(sys.modules) if log.enabled(log.DEBUG) else set()
    try:
        said: dict[str, Any] = {"result": perform(operation)}
    except Error as error:
        said = {"error": str(error)[:_ERROR_MAX], "kind": type(error).__name__}
    except Exception as error:
        where = error.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        line = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where else ""
        said = {"error": f"bug in ocirt: {type(error).__name__}: {error}{line}"[:_ERROR_MAX], "kind": "Error"}
    if before:
        late = ", ".join(sorted(set(sys.modules) - before))
        log.debug(
            f"{operation['operation']} {operation['id']}: {'failed' if 'error' in said else 'done'}, imported: {late}"
        )
    os.write(answer, dump_json(said))
    os._exit(0)

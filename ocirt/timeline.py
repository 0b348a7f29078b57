"""The timeline of a command: which step began when, in the runtime and in init.

For people (`--debug`) and for the trace viewers of browsers (`run --profile`: Trace Event Format, an array of complete
events, microseconds). Loaded only when one of them is asked for, before the clone.
"""

from __future__ import annotations

import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RUNTIME, _INIT = 1, 2
_NAMES = {_RUNTIME: "runtime", _INIT: "init"}


class Timeline:
    """What was begun, one step after the other; a step ends where the next one of the same process begins.

    say    writes a line of the log, None: there is none
    quote  makes a JSON string

    The clock is that of the day: a time namespace, in which init may be, has others. Zero is when the interpreter was
    started, by the CPU time that it has taken so far.
    """

    __slots__ = ("_alone", "_began", "_fd", "_loaded", "_pid", "_quote", "_say", "_text", "_who", "_zero")

    def __init__(self, say: Callable[[str], None] | None, quote: Callable[[str], str]) -> None:
        self._say = say
        self._quote = quote
        self._fd = -1
        self._pid = posix.getpid()
        self._who = _RUNTIME
        self._zero = time.time_ns() - time.process_time_ns()
        self._loaded = self._began = time.time_ns()
        self._text = "read the command line"
        self._alone = True

    @property
    def descriptor(self) -> int:
        """Of the trace, -1 if there is none."""
        return self._fd

    def step(self, text: str) -> None:
        """The next step begins."""
        now = time.time_ns()
        if self._alone:
            # told now: a command without steps has no timeline
            self._alone = False
            self._tell(self._began, self._text)
        self._event(self._text, self._began, now)
        self._began, self._text = now, text
        self._tell(now, text)

    def end(self) -> None:
        """The command has ended: the last line of the log, if there was any."""
        if not self._alone:
            self.step("end")

    def _tell(self, when: int, text: str) -> None:
        if self._say and text:
            self._say(f"{(when - self._zero) // 1000:>7} µs  {_NAMES[self._who]}: {text}")

    def in_init(self) -> None:
        """This process is init from here on; the step that has begun is the runtime's."""
        self._who, self._text = _INIT, ""

    def trace(self, path: str) -> None:
        """Write the trace to a file, from the start; raises OSError.

        Each process appends its steps as they end, and the array is closed by `close`.
        """
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_APPEND | posix.O_CLOEXEC
        self._fd = posix.open(path, flags, 0o644)
        names = [self._named("process", _RUNTIME, "ocirt")]
        names += [self._named("thread", who, name) for who, name in _NAMES.items()]
        self._write("[\n" + ",\n".join(names))
        self._event("start the interpreter", self._zero, self._loaded)

    def _named(self, what: str, who: int, name: str) -> str:
        return f'{{"name":"{what}_name","ph":"M","pid":{self._pid},"tid":{who},"args":{{"name":"{name}"}}}}'

    def _event(self, text: str, began: int, ended: int) -> None:
        if self._fd >= 0 and text:
            self._write(
                f',\n{{"name":{self._quote(text)},"ph":"X","pid":{self._pid},"tid":{self._who},'
                f'"ts":{(began - self._zero) / 1000:.3f},"dur":{max(0, ended - began) / 1000:.3f}}}'
            )

    def _write(self, text: str) -> None:
        try:
            posix.write(self._fd, text.encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # a full disk: the container matters more

    def close(self, *, last: bool) -> None:
        """End this process's part; `last` ends the file."""
        self.step("")
        if last:
            self._write("\n]\n")
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1

"""The log that engines parse: one JSON object or one logrus text line an entry.

podman parses the whole file as one object, containerd takes the last entry
whose level is `error`: in JSON mode only the error of a failed command is
written unless the level is lowered. This module holds the package's only
mutable state: where to log and from which level.
"""

from __future__ import annotations

import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.timeline import Timeline

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "warn": WARNING, "error": ERROR}
_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}


class _Target:
    """Where entries go. fd -1 is no log file; text entries then go to stderr."""

    __slots__ = ("fd", "json", "level", "stderr", "timeline")

    def __init__(self) -> None:
        self.fd = -1
        self.json = False
        self.level = WARNING
        self.stderr = True
        self.timeline: Timeline | None = None


_target = _Target()


def configure(path: str | None, *, json: bool, level: int) -> None:
    """Open `path` (created 0644, appended to) as the log; raises OSError.

    Without a path, or with /dev/stderr (runc's default), stderr is the log: entries in JSON go there as such.
    """
    _target.json = json
    _target.level = level
    _target.stderr = True
    if path == "/dev/stderr" or (json and not path):
        _target.fd = 2  # not opened by its name, which fails if it is a socket
        _target.stderr = False
    elif path:
        _target.fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC, 0o644)
    if level <= DEBUG:
        _start_timeline()


def open_standard_files() -> None:
    """Open /dev/null as each of stdin, stdout and stderr that is closed.

    Otherwise the first file opened takes its number, and the log or a container's file would be written to as if
    it were stderr.
    """
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
        except OSError:
            posix.set_inheritable(posix.open("/dev/null", posix.O_RDWR), True)  # the lowest free number is this one


def to_descriptor(fd: int, level: int) -> None:
    """Log text to an open descriptor and nowhere else; entries that it doesn't take at once are dropped."""
    _target.fd = fd
    _target.json = False
    _target.level = level
    _target.stderr = False


def _start_timeline() -> Timeline:
    from ocirt.timeline import Timeline

    if _target.timeline is None:
        _target.timeline = Timeline(debug if enabled(DEBUG) else None, quote)
    return _target.timeline


def profile(path: str) -> None:
    """Write the timeline to `path` as well, as a trace for browsers' viewers; raises OSError."""
    _start_timeline().trace(path)


def step(text: str) -> None:
    """A step of set-up begins (an imperative phrase): a line of --debug with its time, a bar of run --profile."""
    if _target.timeline is not None:
        _target.timeline.step(text)


def timed() -> bool:
    """Does anybody want to know of steps?"""
    return _target.timeline is not None


def in_init() -> None:
    """Steps are init's from here on."""
    if _target.timeline is not None:
        _target.timeline.in_init()


def end() -> None:
    """The command's last step has ended."""
    if _target.timeline is not None:
        _target.timeline.end()


def end_profile() -> None:
    """Nothing is written to the trace any more."""
    if _target.timeline is not None:
        _target.timeline.close(last=True)


def descriptors() -> set[int]:
    """The open descriptors, -1 among them if one isn't: a child that still logs keeps them."""
    return {_target.fd, _target.timeline.descriptor if _target.timeline is not None else -1}


def detach() -> None:
    """Log nothing any more, here: the descriptors belong to somebody else from now on."""
    if _target.timeline is not None:
        _target.timeline.close(last=False)
        _target.timeline = None
    _target.fd = -1
    _target.level = ERROR + 1
    _target.stderr = False


def enabled(level: int) -> bool:
    """Is an entry of this level written anywhere?"""
    return level >= _target.level


def debug(message: str) -> None:
    """What only --debug tells."""
    if _target.level <= DEBUG:
        _write(DEBUG, message)


def info(message: str) -> None:
    """An entry of level info."""
    if _target.level <= INFO:
        _write(INFO, message)


def warning(message: str) -> None:
    """Log a warning: the operation goes on (runtime.md, Warnings).

    With a JSON log it goes to stderr instead, because podman takes the whole
    file for one object; with --debug it goes to the log like everything else.
    """
    if _target.level <= WARNING:
        _write(WARNING, message)


def error(message: str) -> None:
    """The error of a failed command: always in the log, and on stderr as text."""
    if _target.fd >= 0:
        _put(_entry(ERROR, message))
    if _target.stderr:
        _to_stderr(message)


def _write(level: int, message: str) -> None:
    quiet = _target.json and _target.level > INFO
    if _target.fd >= 0 and not quiet:
        _put(_entry(level, message))
    elif _target.stderr:
        _to_stderr(f"{_NAMES[level]}: {message}")


def _put(entry: bytes) -> None:
    try:
        posix.write(_target.fd, entry)
    except BlockingIOError:
        pass  # a shim's log: nobody reads it, and containers are more important


def _to_stderr(message: str) -> None:
    try:
        posix.write(2, message.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass  # nobody reads it: a closed stderr must not hide the error in the log


def _entry(level: int, message: str) -> bytes:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z"
    text = quote(message)
    if _target.json:
        line = f'{{"level":"{_NAMES[level]}","msg":{text},"time":"{stamp}"}}\n'
    else:
        line = f'time="{stamp}" level={_NAMES[level]} msg={text}\n'
    return line.encode("utf-8", "backslashreplace")


def quote(text: str) -> str:
    """`text` as a JSON string; what is not UTF-8 (surrogateescape) becomes U+FFFD."""
    from _json import encode_basestring_ascii

    return encode_basestring_ascii(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))

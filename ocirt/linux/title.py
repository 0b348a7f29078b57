"""What ps(1) shows of a process beside its name: the arguments, which lie in its own memory."""

from __future__ import annotations

import posix
import sys

_STAT_MAX = 4096
_CMDLINE_MAX = 1 << 16
#: Of /proc/PID/stat, counted from the field behind the name (proc_pid_stat(5): 48 and 49 of all).
_ARG_START, _ARG_END = 45, 46


def set_arguments(*words: str) -> None:
    """Have /proc/self/cmdline show these arguments behind the program's name.

    What doesn't fit into the place of the former ones is cut off; without /proc nothing changes.
    """
    try:
        former = _read("/proc/self/cmdline", _CMDLINE_MAX).split(b"\0")
        fields = _read("/proc/self/stat", _STAT_MAX).rpartition(b")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        program = former[: former.index(sys.argv[0].encode()) + 1]
        data = b"\0".join([*program, *(word.encode() for word in words)])[: end - start - 1]
        memory = posix.open("/proc/self/mem", posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            # a last byte that isn't 0 would mean that the text goes on in the environment
            posix.pwrite(memory, data.ljust(end - start, b"\0"), start)
        finally:
            posix.close(memory)
    except (OSError, ValueError, IndexError):
        pass


def _read(path: str, size: int) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, size)
    finally:
        posix.close(fd)

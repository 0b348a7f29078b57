"""Signals: as descriptors, and back to what they were before the interpreter started."""

from __future__ import annotations

import _signal
import posix as os
import sys

from ocirt.linux import libc

_SFD_FLAGS = 0o2000000 | 0o4000  # SFD_CLOEXEC | SFD_NONBLOCK
_SIGINFO_SIZE = 128

#: The signals whose disposition or mask nobody may touch: two that can't be, two that are libc's own.
RESERVED = frozenset((_signal.SIGKILL, _signal.SIGSTOP, 32, 33))


def reset() -> None:
    """Every disposition to the default, no signal blocked.

    Python ignores SIGPIPE and SIGXFSZ from its start, and callers block or ignore
    others: execve would hand that on.
    """
    for number in range(1, _signal.NSIG):
        if number not in RESERVED:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def signalfd(numbers: set[int]) -> int:
    """signalfd(2): a non-blocking descriptor from which blocked signals are read."""
    mask = 0
    for number in numbers:
        mask |= 1 << number - 1
    return libc.call("signalfd", -1, mask.to_bytes(128, sys.byteorder), _SFD_FLAGS)


def read_signal(fd: int) -> int:
    """The number of the next pending signal, 0 if there is none."""
    try:
        return int.from_bytes(os.read(fd, _SIGINFO_SIZE)[:4], sys.byteorder)
    except BlockingIOError:
        return 0

"""Running a command and saying what it cost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

TIMEOUT = 120

#: Engines start runtimes with little in their environment.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

#: {quantity: value}: cpu and wall in seconds, and whatever else a case measures
Sample = dict[str, float]


class Failed(Exception):
    """A measured command failed."""


def run(
    argv: list[str], *, log: str, check: bool = True, cwd: str = "", env: dict[str, str] | None = None
) -> tuple[int, Sample]:
    """Run a command: (exit status, cpu and wall in seconds); its stderr goes to the file `log`."""
    before = os.getcwd() if cwd else ""
    if cwd:
        os.chdir(cwd)  # posix_spawn(3) has no word for it
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    start = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env or ENVIRONMENT, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if before:
        os.chdir(before)
    code = os.waitstatus_to_exitcode(status)
    if code and check:
        with open(log, encoding="utf-8", errors="replace") as file:
            raise Failed(f"{' '.join(argv)}: exit status {code}: {file.read()}")
    return code, {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall}


def reap(pid: int) -> float:
    """Wait for a container's init, which is our child once the runtime is gone: its CPU seconds."""
    try:
        _, _, usage = os.wait4(pid, 0)
    except ChildProcessError:
        return 0.0
    return usage.ru_utime + usage.ru_stime


def reap_rest() -> float:
    """Reap what else has been left to us: CPU seconds."""
    total = 0.0
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return total
        if pid == 0:
            return total
        total += usage.ru_utime + usage.ru_stime


class Watchdog:
    """A measured command that hangs ends the bench, with what it was."""

    def __init__(self, what: Callable[[], str]) -> None:
        def ring(*_: object) -> None:
            raise Failed(f"nothing happened for {TIMEOUT} s: {what()}")

        signal.signal(signal.SIGALRM, ring)

    def feed(self) -> None:
        """Something has happened."""
        signal.alarm(TIMEOUT)

    def close(self) -> None:
        """Stop watching."""
        signal.alarm(0)

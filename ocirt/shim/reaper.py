"""The children of the daemon that end: containers' processes, loggers, workers, and whatever a container left behind.

The daemon is a child subreaper (prctl(2)): all that its workers leave running becomes its child.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.shim.worker import Workers

    #: Gets the exit status (128 + N for signal N) and when it was (seconds since 1970).
    Ended = Callable[[int, float], object]


class Reaper:
    """Hands exit statuses to whoever waits for them.

    A process may end before the worker that started it has said its pid: until then its status is kept.
    """

    def __init__(self, workers: Workers, report: Callable[[Exception], object]) -> None:
        """`report` hears of exceptions of those who are told."""
        self._workers = workers
        self._report = report
        self._expected: dict[int, Ended] = {}
        self._early: dict[int, tuple[int, float]] = {}

    def expect(self, pid: int, ended: Ended) -> None:
        """Call `ended` when that child ends, at once if it has."""
        early = self._early.pop(pid, None)
        if early and not _is_child(pid):  # it isn't that of an earlier process
            ended(*early)
        else:
            self._expected[pid] = ended

    def reap(self) -> None:
        """Reap every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            now = time.time()
            ended = self._expected.pop(pid, None)
            if ended:
                try:
                    ended(code, now)
                except Exception as error:
                    self._report(error)  # the others are to be reaped
            elif self._workers.running:
                self._early[pid] = (code, now)
        if not self._workers.running:
            self._early.clear()


def _is_child(pid: int) -> bool:
    """Is there such a child (again)? It may be that it has ended, too."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

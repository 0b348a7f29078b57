"""Waiting for the OOM killer and for the end of a container, by the kernel's own notices."""

from __future__ import annotations

import os
import select
import time

from ocirt.cgroups import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cgroups.base import Cgroup


class Watch:
    """What to wait for: a process's end (pidfd), an OOM kill in a cgroup. Close it.

    v1   an eventfd that cgroup.event_control binds to memory.oom_control; it also fires when the cgroup goes
    v2   POLLPRI of memory.events
    """

    __slots__ = ("_cgroup", "_control", "_fds", "_init", "_kills", "_notice", "_poll")

    def __init__(self, pid: int, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._poll = select.poll()
        self._fds: list[int] = []
        self._notice = self._control = -1
        self._kills = cgroup.oom_kills()
        try:
            self._init = os.pidfd_open(pid)
        except ProcessLookupError:
            self._init = -1
            return
        self._fds.append(self._init)
        self._poll.register(self._init, select.POLLIN)
        directory = cgroup.path("memory")
        if directory:
            self._register(directory)

    def _register(self, directory: str) -> None:
        try:
            self._notice = os.open(directory + "/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            self._fds.append(self._notice)
            os.read(self._notice, 4096)
            self._poll.register(self._notice, select.POLLPRI)
            return
        except FileNotFoundError:
            pass
        try:
            self._control = os.open(directory + "/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        self._fds.append(self._control)
        self._notice = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fds.append(self._notice)
        files.write(directory + "/cgroup.event_control", f"{self._notice} {self._control}")
        self._poll.register(self._notice, select.POLLIN)

    def wait(self, timeout: float) -> str:
        """ "oom", "end", or "" after `timeout` seconds."""
        until = time.monotonic() + timeout
        while self._init >= 0:
            left = until - time.monotonic()
            ready = dict(self._poll.poll(max(0.0, left) * 1000))
            if self._notice in ready and self._happened():
                return "oom"
            if self._init in ready:
                return "end"
            if not ready:
                return ""
        return "end"

    def _happened(self) -> bool:
        """Arm the notice again; was it an OOM, and not the end of the cgroup or another event of memory?"""
        if self._control >= 0:
            # v1 tells before the killer has chosen, so the count can't be asked yet
            os.eventfd_read(self._notice)
            if os.access(self._cgroup.path("memory"), os.F_OK):
                return True
            self._poll.unregister(self._notice)
            return False
        try:
            os.pread(self._notice, 4096, 0)  # reading it is what makes the next change an event
        except OSError:
            self._poll.unregister(self._notice)
            return False
        before, self._kills = self._kills, self._cgroup.oom_kills()
        return self._kills > before

    def close(self) -> None:
        """Stop watching."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

"""Waiting for the OOM killer and for the end of a container, by the kernel's own notices."""

from __future__ import annotations

import os
import select
import time

from ocirt.cgroups import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.cgroups.base import Cgroup


class Notice:
    """The kernel's notice of an OOM kill in a cgroup. Close it.

    v1   an eventfd that cgroup.event_control binds to memory.oom_control; it also fires when the cgroup goes
    v2   POLLPRI of memory.events

    fd, events  what to poll for; fd is -1 where there can't be a notice
    """

    __slots__ = ("_cgroup", "_control", "_kills", "events", "fd")

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._kills = cgroup.oom_kills()
        self._control = self.fd = -1
        self.events = select.POLLPRI
        directory = cgroup.path("memory")
        if directory:
            self._register(directory)

    def _register(self, directory: str) -> None:
        try:
            self.fd = os.open(directory + "/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            os.read(self.fd, 4096)
            return
        except FileNotFoundError:
            pass
        try:
            self._control = os.open(directory + "/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.events = select.POLLIN
        files.write(directory + "/cgroup.event_control", f"{self.fd} {self._control}")

    def happened(self) -> bool:
        """Arm the notice again; was it an OOM, and not the end of the cgroup or another event of memory?

        OSError when it will say no more: the cgroup is gone.
        """
        if self._control >= 0:
            # v1 tells before the killer has chosen, so the count can't be asked yet
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                return False
            os.stat(self._cgroup.path("memory"))
            return True
        os.pread(self.fd, 4096, 0)  # reading it is what makes the next change an event
        before, self._kills = self._kills, self._cgroup.oom_kills()
        return self._kills > before

    def close(self) -> None:
        """Stop watching."""
        for fd in (self.fd, self._control):
            if fd >= 0:
                os.close(fd)
        self.fd = self._control = -1


class Watch:
    """What to wait for: a process's end (pidfd), an OOM kill in a cgroup. Close it."""

    __slots__ = ("_init", "_notice", "_poll")

    def __init__(self, pid: int, cgroup: Cgroup) -> None:
        self._poll = select.poll()
        self._notice = Notice(cgroup)
        try:
            self._init = os.pidfd_open(pid)
        except ProcessLookupError:
            self._init = -1
            return
        self._poll.register(self._init, select.POLLIN)
        if self._notice.fd >= 0:
            self._poll.register(self._notice.fd, self._notice.events)

    def wait(self, timeout: float) -> str:
        """ "oom", "end", or "" after `timeout` seconds."""
        until = time.monotonic() + timeout
        while self._init >= 0:
            left = until - time.monotonic()
            ready = dict(self._poll.poll(max(0.0, left) * 1000))
            if self._notice.fd in ready and self._happened():
                return "oom"
            if self._init in ready:
                return "end"
            if not ready:
                return ""
        return "end"

    def _happened(self) -> bool:
        try:
            return self._notice.happened()
        except OSError:
            self._poll.unregister(self._notice.fd)
            return False

    def close(self) -> None:
        """Stop watching."""
        if self._init >= 0:
            os.close(self._init)
            self._init = -1
        self._notice.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

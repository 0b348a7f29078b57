"""Handing the seccomp listener of init to the agent: config-linux.md, The Container Process State."""

from __future__ import annotations

import posix as os

from ocirt.bundle import dump_json
from ocirt.container import Container
from ocirt.errors import doing
from ocirt.identity import seccomp
from ocirt.linux import libc, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def hand_over(container: Container, pid: int, number: int) -> None:
    """Take descriptor `number` out of the process and send it to the agent."""
    config = container.config()
    profile: dict[str, Any] = config["linux"]["seccomp"]
    with doing("hand the seccomp listener to the agent"):
        path = seccomp.listener_path(profile, config.get("annotations") or {})
        pidfd = os.pidfd_open(pid)
        listener = libc.syscall("pidfd_getfd", numbers.PIDFD_GETFD, pidfd, number, 0)
        os.close(pidfd)
        state: dict[str, object] = {
            "ociVersion": container.record["ociVersion"],
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": profile.get("listenerMetadata") or "",
            "state": container.state(None if pid != container.pid else "created"),
        }
        try:
            seccomp.send_listener(path, listener, dump_json(state))
        finally:
            os.close(listener)

"""Handing the notify descriptor of a filter to the agent (config-linux.md, Seccomp; The Container Process State).

The thread that loads a filter with SCMP_ACT_NOTIFY may be unable to say
anything afterwards: `write` itself may be waiting for the agent, who doesn't
have the descriptor yet. So it says *before* which number the descriptor will
have (`next_descriptor`), and the runtime fetches it from outside (`fetch`).
That works for every profile, whatever it notifies or denies.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from ocirt.errors import Error, InvalidConfig, doing
from ocirt.identity.seccomp import RECEIVER
from ocirt.linux import fds, libc, numbers
from ocirt.log import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_EBADF = 9
#: What /proc/self/fd says of a notify descriptor.
_NOTIFY = "anon_inode:seccomp notify"


def listener_path(seccomp: Mapping[str, Any], annotations: Mapping[str, str]) -> str:
    """Where the agent listens: `listenerPath`, or crun's annotation; InvalidConfig if nowhere."""
    path = seccomp.get("listenerPath") or annotations.get(RECEIVER) or ""
    if not path:
        raise InvalidConfig("linux.seccomp.listenerPath: missing: SCMP_ACT_NOTIFY needs an agent's socket")
    return path


def next_descriptor() -> int:
    """The number that the next new descriptor of this process gets."""
    number = os.dup(0)
    os.close(number)
    return number


def fetch(pidfd: int, number: int, timeout: float = 10.0) -> int:
    """Wait until descriptor `number` of a process is a seccomp listener, give a copy of it.

    `number` is free until the filter is loaded. Raises Error if that doesn't
    happen in `timeout` seconds or the process ends.
    """
    end = time.monotonic() + timeout
    pause = 0.0001
    while True:
        try:
            copy = libc.syscall("pidfd_getfd", numbers.PIDFD_GETFD, pidfd, number, 0)
        except Error as error:
            if error.errno != _EBADF:
                raise
        else:
            if os.readlink(f"/proc/self/fd/{copy}") == _NOTIFY:
                return copy
            os.close(copy)
        if time.monotonic() > end:
            raise Error(f"no seccomp listener at descriptor {number} after {timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.01)


def process_state(state: bytes, oci_version: str, pid: int, metadata: str | None) -> bytes:
    """The container process state: `state` is the state of runtime.md as JSON, `pid` the process's on the host."""
    extra = f'"metadata":{quote(metadata)},' if metadata else ""
    head = f'{{"ociVersion":{quote(oci_version)},"fds":["seccompFd"],"pid":{pid},{extra}"state":'
    return head.encode() + state + b"}"


def send_listener(path: str, fd: int, container_process_state: bytes) -> None:
    """Send the descriptor and the state over one connection to the agent at `path`, and close it."""
    with doing(f"send the seccomp listener to {path}"):
        socket = fds.connect_unix(path, _socket.SOCK_STREAM)
        try:
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
            sent = socket.sendmsg([container_process_state], rights, _socket.MSG_NOSIGNAL)
            socket.sendall(container_process_state[sent:], _socket.MSG_NOSIGNAL)
        finally:
            socket.close()

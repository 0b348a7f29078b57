"""Telling the caller who init is: the pid file and the pidfd socket of create and exec."""

from __future__ import annotations

import posix as os

from ocirt.errors import from_oserror
from ocirt.linux.oslike import split


def write_pid_file(path: str, pid: int) -> None:
    """Write the pid, without a newline (containerd parses the whole file), by a rename."""
    temporary = f"{split(path)[0] or '.'}/.{split(path)[1]}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        os.write(fd, b"%d" % pid)
        os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise from_oserror(error, f'write "{path}"') from None


def send_pidfd(path: str, pid: int) -> None:
    """Send init's pidfd over a unix socket (SOCK_STREAM, one SCM_RIGHTS message)."""
    import _socket

    from ocirt.linux import fds

    try:
        pidfd = os.pidfd_open(pid)
        socket = fds.connect_unix(path, _socket.SOCK_STREAM)
        fds.send(socket, b"pidfd", (pidfd,))
        socket.close()
        os.close(pidfd)
    except OSError as error:
        raise from_oserror(error, f'send the pidfd to "{path}"') from None

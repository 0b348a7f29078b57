"""The terminal of a container: config.md, Process (terminal, consoleSize); pty(7).

The master goes over the console socket in one SCM_RIGHTS message, as conmon and
containerd read it.
"""

from __future__ import annotations

import _socket
import _struct as struct
import fcntl
import posix as os

from ocirt.errors import Error, from_oserror
from ocirt.linux import fds, files
from ocirt.rootfs import mount_console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441

_PTMX = os.makedev(5, 2)


def open_console(plan: Plan) -> None:
    """open the console"""
    if not plan.process.get("terminal"):
        return
    master = _open_master()
    slave = _open_slave(master)
    rows, columns = plan.size
    if rows or columns:
        fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    uid = plan.user.get("uid", 0)
    try:
        os.fchown(slave, uid, -1)
    except OSError as error:
        if error.errno not in (1, 22, 30):
            raise from_oserror(error, f"fchown(console, {uid}, -1)") from None
    if plan.listener is not None:
        mount_console(plan, slave)
    _send(plan.console_socket, master)
    os.close(master)
    plan.console_socket = -1
    fcntl.ioctl(slave, _TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    os.close(slave)


def _open_master() -> int:
    """Open /dev/pts/ptmx of this mount namespace.

    It must be the multiplexer of a devpts (character device 5:2 on a devpts), not
    something that the image put there (CVE-2025-52565).
    """
    path = "/dev/pts/ptmx"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Error(
            f"open {path}: no such file or directory (process.terminal needs a devpts mounted on /dev/pts)", 2
        ) from None
    except OSError as error:
        raise from_oserror(error, f'open("{path}")') from None
    device = os.fstat(fd).st_rdev
    if device != _PTMX or files.filesystem_type(fd) != files.DEVPTS_SUPER_MAGIC:
        os.close(fd)
        raise Error(f"{path} is not the multiplexer of a devpts: device {os.major(device)}:{os.minor(device)}")
    os.set_blocking(fd, True)
    return fd


def _open_slave(master: int) -> int:
    """The other side of the pair, not by path but from the master itself."""
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, "ioctl(ptmx, TIOCGPTPEER)") from None


def _send(console_socket: int, master: int) -> None:
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, console_socket)
    try:
        fds.send(socket, b"/dev/pts/ptmx", (master,))
    except OSError as error:
        raise from_oserror(error, "send the console over the console socket") from None
    finally:
        socket.close()


def check(terminal: bool, console_socket: str | None, console: int) -> None:
    """Refuse a combination of terminal and console socket that can't work."""
    if terminal and not console_socket and console < 0:
        raise Error("cannot allocate a terminal: process.terminal is set, but no --console-socket is given")
    if not terminal and console_socket:
        raise Error("cannot use the console socket: process.terminal is not set")


def receiver(plan: Plan, path: str | None, console: int) -> int:
    """The socket that gets the terminal's master, -1 for none: a console socket's path, or a connected one."""
    if path:
        return connect(path).detach()
    if console >= 0 and not plan.process.get("terminal"):
        os.close(console)
        return -1
    return console


def connect(path: str) -> _socket.socket:
    """Connect to the console socket."""
    try:
        return fds.connect_unix(path, _socket.SOCK_STREAM)
    except OSError as error:
        raise from_oserror(error, f'connect to the console socket "{path}"') from None

"""NOTIFY_SOCKET: readiness messages of the container's program reach the host's service manager.

sd_notify(3). The manager's socket isn't shown to the container: it gets a
socket of ours (a directory bound on /run/notify), and only what it says of its
readiness and status is passed on, with the pid as the host sees it.
"""

from __future__ import annotations

import _socket
import os
import select

from ocirt import log
from ocirt.container import Container
from ocirt.errors import from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.spec import Mount

VARIABLE = "NOTIFY_SOCKET"
DIRECTORY = "notify"
_SOCKET = "notify.sock"
_INSIDE = "/run/notify"

#: What the container may say; MAINPID, WATCHDOG_PID and file descriptors are the host's business.
_PASSED_ON = (b"READY=", b"STATUS=", b"RELOADING=", b"STOPPING=", b"ERRNO=", b"BUSERROR=", b"WATCHDOG=")


def prepare(container: Container, plan: Plan) -> None:
    """Show the container a directory for its socket, if our caller wants to be notified."""
    if not os.environ.get(VARIABLE):
        return
    directory = f"{container.directory}/{DIRECTORY}"
    os.mkdir(directory, 0o755)
    mount: Mount = {
        "destination": _INSIDE,
        "type": "bind",
        "source": directory,
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"],
    }
    plan.config["mounts"] = [*(plan.config.get("mounts") or []), mount]
    plan.env = [e for e in plan.env if not e.startswith(VARIABLE + "=")]
    plan.env.append(f"{VARIABLE}={_INSIDE}/{_SOCKET}")


class Relay:
    """The socket of one container, open while its program may still report readiness."""

    __slots__ = ("_container", "_host", "ready", "socket")

    def __init__(self, container: Container, host: str) -> None:
        self._container = container
        self._host = host
        self.ready = False
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        fd = os.open(f"{container.directory}/{DIRECTORY}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/self/fd/{fd}/{_SOCKET}"
        try:
            self.socket.bind(path)
            # whatever user the program runs as may write to it
            os.chmod(path, 0o777)
        except OSError as error:
            raise from_oserror(error, f"bind {container.directory}/{DIRECTORY}/{_SOCKET}") from None
        finally:
            os.close(fd)

    @classmethod
    def open(cls, container: Container) -> Relay | None:
        """The relay, if create prepared one and our caller listens."""
        host = os.environ.get(VARIABLE)
        if not host or not os.path.isdir(f"{container.directory}/{DIRECTORY}"):
            return None
        return cls(container, host)

    def pass_on(self) -> None:
        """Forward one message."""
        lines = [line for line in self.socket.recv(65536).split(b"\n") if line.startswith(_PASSED_ON)]
        if not lines:
            return
        if b"READY=1" in lines:
            self.ready = True
            lines.append(b"MAINPID=%d" % self._container.pid)
        host = "\0" + self._host[1:] if self._host.startswith("@") else self._host
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            socket.sendto(b"\n".join(lines), host)
        except OSError as error:
            log.warning(f"notify {self._host}: {error.strerror}")
        finally:
            socket.close()

    def wait(self) -> None:
        """Forward until the program is ready or has ended."""
        pidfd = os.pidfd_open(self._container.pid)
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        try:
            while not self.ready:
                events = dict(poll.poll())
                if self.socket.fileno() in events:
                    self.pass_on()
                elif pidfd in events:
                    return
        finally:
            os.close(pidfd)
            self.socket.close()

"""Processes that serve an attachment: one record, a file, for each; its lock says which process it is.

A record is made before its process and locked by it: the lock's holder is the
process to stop, however long ago whoever started it has died, and no pid has to
be written down.
"""

from __future__ import annotations

import _signal
import os
import select
import struct
import sys
import time

from ocirt.cni import protocol
from ocirt.cni.protocol import CNIError
from ocirt.errors import Error
from ocirt.jsontext import dump_json, parse_json
from ocirt.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

DIRECTORY = "/run/ocirt-cni"
_FLOCK = struct.Struct("hhqqi")
_CLOSE_ON_EXEC = 4
_F_GETLK, _F_WRLCK, _F_UNLCK = 5, 1, 2


def directory(kind: str) -> str:
    """Where the records of a kind of service are."""
    return f"{os.environ.get('OCIRT_RUN_DIRECTORY') or DIRECTORY}/{kind}"


def path_of(kind: str, comment: str) -> str:
    """The record of an attachment's service."""
    from hashlib import sha256

    return f"{directory(kind)}/{sha256(comment.encode()).hexdigest()[:32]}"


class Service:
    """A service about to be started: `record`, then `spawn`; without `spawn` the record is taken back."""

    __slots__ = ("_path", "fd", "kind")

    def __init__(self, kind: str, comment: str, told: Mapping[str, Any]) -> None:
        self.kind = kind
        self._path = path_of(kind, comment)
        os.makedirs(directory(kind), 0o700, exist_ok=True)
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.write(self.fd, dump_json({"comment": comment, **told}))

    def abandon(self) -> None:
        """Take the record back: there is no process."""
        os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Give the descriptor back; the process has its own."""
        os.close(self.fd)

    def spawn(self, entry: str, arguments: Sequence[str], description: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Start `entry` (module:function) and wait until it says that it serves.

        It gets `-ports N` after `arguments`: N is a memory file with
        `description`, in which "record", "status" and "fds" are the numbers of
        the record, of the pipe that it answers by, and of `fds`.
        """
        heard, told = os.pipe2(os.O_CLOEXEC)
        memory = os.memfd_create("service", os.MFD_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        inherited = [memory, self.fd, told, *fds]
        try:
            # numbers above those that docker-proxy has a meaning for; twice, so that none is taken too early
            base = 16
            spare = max(*inherited, base + len(inherited)) + 1
            actions: list[Any] = [(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1, 2)]
            actions += [(os.POSIX_SPAWN_DUP2, fd, spare + i) for i, fd in enumerate(inherited)]
            actions += [(os.POSIX_SPAWN_DUP2, spare + i, base + i) for i in range(len(inherited))]
            actions += [(os.POSIX_SPAWN_CLOSE, spare + i) for i in range(len(inherited))]
            numbers = list(range(base + 3, base + len(inherited)))
            os.write(memory, dump_json({"record": base + 1, "status": base + 2, "fds": numbers, **description}))
            _start_apart([*_command(entry), *arguments, "-ports", str(base)], actions)
            os.close(told)
            told = -1
            answer = _read_all(heard)
        finally:
            for fd in (heard, told, memory, null):
                if fd >= 0:
                    os.close(fd)
        if answer != b"0\n":
            raise CNIError(protocol.INTERNAL, f"{entry} did not start", answer.decode("utf-8", "replace"))


def _command(entry: str) -> list[str]:
    module, _, function = entry.partition(":")
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [package, *(p for p in sys.path if p.endswith("-packages"))]
    program = f"import sys\nsys.path += {paths!r}\nfrom {module} import {function}\n{function}()\n"
    interpreter = os.path.realpath(sys.executable) if sys.executable else "/usr/bin/python3"
    return [interpreter, "-ISXutf8", "-c", program]


def _start_apart(command: list[str], actions: list[Any]) -> None:
    """As a child of a child: nobody but init has to wait for it."""
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir("/")
            _keep_no_file()
            os.posix_spawn(command[0], command, {"PATH": "/usr/bin:/bin"}, file_actions=actions, setsid=True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _keep_no_file() -> None:
    """What the caller's caller has open without close-on-exec is no business of a process that lives on."""
    try:
        libc.call("close_range", 3, 0xFFFFFFFF, _CLOSE_ON_EXEC)
    except Error:
        pass  # a kernel before 5.11


def _read_all(fd: int) -> bytes:
    parts: list[bytes] = []
    while part := os.read(fd, 4096):
        parts.append(part)
    return b"".join(parts)


def _holder(fd: int) -> int:
    """The process that has the record locked, 0 if none."""
    import fcntl

    answer = fcntl.fcntl(fd, _F_GETLK, _FLOCK.pack(_F_WRLCK, 0, 0, 0, 0))
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return 0 if kind == _F_UNLCK else pid


def stop(kind: str, comment: str) -> None:
    """End an attachment's service; none there is fine."""
    _stop(path_of(kind, comment))


def _stop(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        # while the process is there the record stays: whoever comes after one that was killed here finds it by that
        _end(fd)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        _end(fd)  # one that was just starting; one that takes the lock later sees that its record is gone
    finally:
        os.close(fd)


def _end(fd: int) -> None:
    for number, seconds in ((_signal.SIGTERM, 2.0), (_signal.SIGKILL, 5.0)):
        pid = _holder(fd)
        if not pid:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _holder(fd) == pid:  # the lock is still his, so the pid is still this process's
                _signal.pidfd_send_signal(pidfd, number)
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(seconds * 1000)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
    end = time.monotonic() + 1
    while _holder(fd) and time.monotonic() < end:
        time.sleep(0.01)


def is_running(kind: str, comment: str) -> bool:
    """Does the attachment's service run?"""
    try:
        fd = os.open(path_of(kind, comment), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return bool(_holder(fd))
    finally:
        os.close(fd)


def collect(kind: str, stale: Callable[[str], bool]) -> None:
    """End the services whose comment is stale; a torn record is nobody's."""
    try:
        names = os.listdir(directory(kind))
    except FileNotFoundError:
        return
    for name in names:
        path = f"{directory(kind)}/{name}"
        try:
            with open(path, "rb") as file:
                data = protocol.mapping(parse_json(file.read(1 << 20), path)) or {}
            comment = str(data["comment"])
        except FileNotFoundError:
            continue
        except (Error, KeyError):
            _stop(path)
            continue
        if stale(comment):
            _stop(path)

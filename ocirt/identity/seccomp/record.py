"""Finding out which system calls a program makes, as a profile that allows just these.

The container runs under a filter that notifies of every call; a process of its
own, the watcher, notes each and lets it go on. `write` alone isn't notified of,
because the runtime needs it to hand out the listener; it is always in the profile.

What is found is what was done: a call on a path that this run didn't take is
missing, and so is clock_gettime where the vDSO answers it.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from ocirt.identity.seccomp import arches
from ocirt.linux import fds, numbers, prctl
from ocirt.linux import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.identity.seccomp.arches import Arch

#: Architectures that run beside another on the same kernel.
_BESIDE = {
    "X86_64": ("X86", "X32"),
    "AARCH64": ("ARM",),
    "MIPS64": ("MIPS", "MIPS64N32"),
    "MIPSEL64": ("MIPSEL", "MIPSEL64N32"),
    "PPC64": ("PPC",),
    "S390X": ("S390",),
    "PARISC64": ("PARISC",),
}
_UNWATCHED = "write"
_EXEC = ("execve", "execveat")
#: What the runtime itself calls between the filter and execve, only because there is a watcher.
_HANDING_OVER = ("read", "close")
_WAIT = 10.0


def watched_profile(agent: str, machine: str = "") -> dict[str, Any]:
    """`linux.seccomp` that notifies the agent listening at `agent` of every call that has a name."""
    found = _arches(machine)
    calls: set[str] = set()
    for arch in found:
        calls.update(arches.numbers(arch.table))
    calls.discard(_UNWATCHED)
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [arches.PREFIX + arch.name for arch in found],
        "syscalls": [{"names": sorted(calls), "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": agent,
    }


def smallest_profile(calls: list[tuple[str, str]], machine: str = "") -> dict[str, Any]:
    """The profile that allows what was seen: `calls` are those of Watcher.calls.

    Every other call is answered EPERM, or ENOSYS if it is newer than all of these.
    """
    native = _arches(machine)[0].name
    first = next((at for at, (_, call) in enumerate(calls) if call in _EXEC), 0)
    after = {call for _, call in calls[first:]}
    before = {call for _, call in calls[:first] if call not in _HANDING_OVER}
    used = [arch for arch in dict.fromkeys(arch for arch, _ in calls) if arch != native]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": [arches.PREFIX + arch for arch in (native, *sorted(used))],
        "syscalls": [{"names": sorted(after | before | {_UNWATCHED}), "action": "SCMP_ACT_ALLOW"}],
    }


def _arches(machine: str) -> list[Arch]:
    native = arches.native(machine or numbers.MACHINE)
    assert native is not None, machine
    beside = [arches.get(arches.PREFIX + name) for name in _BESIDE.get(native.name, ())]
    return [native, *(arch for arch in beside if arch)]


class Watcher:
    """The agent: a process that listens at `path` from the moment this is made.

    It ends by itself when nothing runs under the filter any more.
    """

    __slots__ = ("_pid", "_pidfd", "_reader")

    def __init__(self, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(8)
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._reader)
                _watch(listener, writer)
            finally:
                os._exit(0)
        self._pidfd = os.pidfd_open(self._pid)
        os.close(writer)
        listener.close()

    def calls(self) -> list[tuple[str, str]]:
        """What was seen, once the container has ended: (architecture, call).

        In the order of their first use, before the first execve and then again from it on.
        """
        text = b""
        try:
            while select.select([self._reader], [], [], _WAIT)[0]:
                part = os.read(self._reader, 65536)
                if not part:
                    break
                text += part
        finally:
            self.end()
        seen = [line.split() for line in text.decode().splitlines()]
        return [(arch, call) for arch, call in seen]

    def end(self) -> None:
        """Stop watching."""
        if self._reader < 0:
            return
        os.close(self._reader)
        self._reader = -1
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and whoever waits for every child has reaped it
        os.close(self._pidfd)


def _watch(listener: socket.socket, writer: int) -> None:
    """The watcher's life: note each call when it is first seen, let all of them go on."""
    prctl.prctl(prctl.PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the container
    names = {
        (arch.token, number): f"{arch.name} {call}\n"
        for arch in _arches("")
        for call, number in arches.numbers(arch.table).items()
    }
    seen: set[tuple[int, int]] = set()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    notifying: set[int] = set()
    came = executed = False
    execs = tuple(f" {call}\n" for call in _EXEC)
    while notifying or not came:
        for fd, event in poll.poll():
            if fd == listener.fileno():
                for descriptor in _accept(listener):
                    poll.register(descriptor, select.POLLIN)
                    notifying.add(descriptor)
                    came = True
            elif event & select.POLLIN:
                call = _pass(fd)
                if call and call not in seen:
                    name = names.get(call, "")
                    if not executed and name.endswith(execs):
                        executed = True
                        seen.clear()
                    seen.add(call)
                    os.write(writer, name.encode())
            else:  # nobody has the filter any more
                poll.unregister(fd)
                notifying.discard(fd)
                os.close(fd)


def _accept(listener: socket.socket) -> list[int]:
    """The descriptors of one container process state (config-linux.md)."""
    connection, _ = listener.accept()
    with connection:
        data, found = fds.receive(connection, 65536)
        while data:
            data = connection.recv(65536)
        return found


def _pass(fd: int) -> tuple[int, int] | None:
    """Let the call that waits go on; (token, number), or None if its caller was killed meanwhile."""
    try:
        cookie, token, number = kernel.receive_notification(fd)
        kernel.continue_call(fd, cookie)
    except (FileNotFoundError, InterruptedError):
        return None
    return token, number

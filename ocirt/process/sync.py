"""The handshake between the runtime and init, and between `start` and init.

    runtime                 intermediate            init
       |---- mapped ------------>|------------------>|     (only with a new user namespace, to the first of the two)
       |<--- init PID -----------|                   |     (only with an intermediate)
       |---- joined -------------------------------->|     it is in its cgroup (exec; create with a cgroup namespace)
       |<--- mounted --------------------------------|     (only with prestart or createRuntime hooks)
       |---- enter --------------------------------->|     they have run
       |<--- limits ---------------------------------|     (only if init may not raise its rlimits)
       |---- limited ------------------------------->|
       |<--- ready ----------------------------------|     everything but the program is done

    start                                          init
       |---- start --------------------------------->|
       |<--- starting -------------------------------|     nobody else can start it any more
       |<--- seccomp FD -----------------------------|     (only with SCMP_ACT_NOTIFY)
       |---- watched ------------------------------->|     the agent has the listener
       |<--- executing ------------------------------|
       |<--- end of file ----------------------------|     execve succeeded

Instead of any message init may send `error`. Messages are datagrams of a
SOCK_SEQPACKET socket: the name and its fields, separated by NUL. After
`executing` the trampoline may send four bytes: the errno of execve.
"""

from __future__ import annotations

import _socket
import posix
import sys

from ocirt.errors import BY_NAME, Error

#: Every message of the diagram.
MESSAGES = (
    "mapped",
    "init",
    "joined",
    "mounted",
    "enter",
    "limits",
    "limited",
    "ready",
    "start",
    "starting",
    "seccomp",
    "watched",
    "executing",
    "error",
)

_SIZE = 65536


class Channel:
    """One end of the handshake."""

    __slots__ = ("socket",)

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket

    def send(self, name: str, *fields: str) -> None:
        """Send a message; a peer that is gone raises the Error that it sent last, or Gone."""
        data = "\0".join((name, *fields)).encode("utf-8", "surrogateescape")[:_SIZE]
        try:
            self.socket.send(data, _socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            while True:
                self.receive(*MESSAGES)
        except OSError as error:
            raise Error(f"send {name}: {error.strerror}", error.errno or 0) from None

    def send_error(self, error: Error) -> None:
        """Send an error as data; it is raised again on the other side."""
        self.send("error", type(error).__name__, str(error.errno), error.reason, *error.context)

    def receive(self, *expected: str) -> list[str]:
        """The next message, one of `expected`: [name, *fields]; "" is end of file if that is expected.

        Raises the Error that the other side sent, and Error when it is gone.
        """
        while True:
            try:
                data = self.socket.recv(_SIZE)
                break
            except (InterruptedError, ConnectionResetError):
                # the latter is told once, when the peer left something unread; what it sent comes after
                continue
        if not data:
            if "" in expected:
                return [""]
            raise Gone(f"the other side went away while {' or '.join(expected)} was awaited")
        if len(data) == 4:
            number = int.from_bytes(data, sys.byteorder)
            raise Error(f"execve: {posix.strerror(number).lower()}", number)
        fields = data.decode("utf-8", "surrogateescape").split("\0")
        if fields[0] == "error" and len(fields) > 3:
            kind = BY_NAME.get(fields[1], Error)
            raise kind(fields[3], int(fields[2]), tuple(fields[4:]))
        if fields[0] not in expected:
            raise Error(f"unexpected message {fields[0]!r} while {' or '.join(expected)} was awaited")
        return fields

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


class Gone(Error):
    """The other side ended without a word: it was killed."""


def pair() -> tuple[Channel, Channel]:
    """A connected pair: (the runtime's end, init's end)."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)

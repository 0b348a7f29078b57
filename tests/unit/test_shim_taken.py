"""The fork of the spare shim that waits for `start` to take it."""

from __future__ import annotations

import _socket
from collections.abc import Iterator

import pytest

from ocirt.shim import daemon


class Late(_socket.socket):
    """A connection over which the other end says something in the moment in which the waiting ends."""

    other: _socket.socket | None = None

    def recv(self, size: int, flags: int = 0) -> bytes:
        if other := self.other:
            self.other = None
            other.send(b"taken")
            raise TimeoutError
        return super().recv(size, flags)


@pytest.fixture
def ends() -> Iterator[tuple[Late, _socket.socket]]:
    """The fork's, and that of `start`."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    late = Late(fileno=ours.detach())
    late.settimeout(0.05)
    yield late, theirs
    late.close()
    theirs.close()


def test_taken(ends: tuple[Late, _socket.socket]) -> None:
    connection, start = ends
    start.send(b"taken")
    assert daemon._is_taken(connection)


def test_too_late(ends: tuple[Late, _socket.socket]) -> None:
    """Who takes it then hears that nobody is there."""
    connection, start = ends
    assert not daemon._is_taken(connection)
    with pytest.raises(BrokenPipeError):
        start.send(b"taken")


def test_in_the_last_moment(ends: tuple[Late, _socket.socket]) -> None:
    """`start` has been told nothing else: nobody would serve."""
    connection, start = ends
    connection.other = start
    assert daemon._is_taken(connection)

"""The handshake's channel when the other side has failed."""

from __future__ import annotations

import pytest

from ocirt.errors import NotFound
from ocirt.process.sync import Gone, pair


def test_send_gives_the_error_of_a_peer_that_is_gone() -> None:
    ours, theirs = pair()
    theirs.send("ready")
    theirs.send_error(NotFound("no such program", 2))
    theirs.close()
    with pytest.raises(NotFound, match="no such program"):
        ours.send("joined")
    ours.close()


def test_error_arrives_though_the_peer_left_something_unread() -> None:
    ours, theirs = pair()
    ours.send("joined")
    theirs.send_error(NotFound("no such program", 2))
    theirs.close()
    with pytest.raises(NotFound, match="no such program"):
        ours.receive("ready")
    ours.close()


def test_gone_without_a_word() -> None:
    ours, theirs = pair()
    ours.send("joined")
    theirs.close()
    with pytest.raises(Gone):
        ours.receive("ready")
    with pytest.raises(Gone):
        ours.send("limited")
    ours.close()

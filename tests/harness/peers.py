"""What is known of the peers: `@peer_fails("runc", why)` marks where one breaks the spec or lacks a feature.

The mark holds for the versions named here (Debian 12's), and strictly: a peer
that passes where it is said to fail fails the test run.
"""

from __future__ import annotations

import re
import subprocess

import pytest

KNOWN = {"runc": "1.1.5", "crun": "1.8.1"}


def peer_fails(name: str, why: str, *, always: bool = True) -> pytest.MarkDecorator:
    """Mark a test that a peer is known to fail; `why` quotes the spec or says what the peer lacks.

    always  False for a race that the peer sometimes wins
    """
    assert name in KNOWN
    return pytest.mark.peer_fails(name, why, always=always)


def fails(names: str, why: str) -> list[pytest.MarkDecorator]:
    """The marks of a table's line that several peers fail for one reason; `names` may be empty."""
    return [peer_fails(name, why) for name in names.split()]


def lacks(*names: str, what: str, always: bool = True) -> pytest.MarkDecorator:
    """Mark a test of something that the peers don't have at all."""
    return pytest.mark.peer_lacks(names, what, always=always)


def version(path: str) -> str:
    """The version that a runtime prints, `1.1.5` of `runc version 1.1.5+ds1`."""
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    found = re.search(r"version (\d+(?:\.\d+)*)", text)
    return found.group(1) if found else ""


def mark(items: list[pytest.Item], name: str, path: str) -> None:
    """Turn the marks that concern the runtime under test into expected failures."""
    if name not in KNOWN:
        return
    strict = version(path) == KNOWN[name]
    for item in items:
        for found in item.iter_markers("peer_fails"):
            if found.args[0] == name:
                always = strict and found.kwargs["always"]
                item.add_marker(pytest.mark.xfail(reason=found.args[1], strict=always))
        for found in item.iter_markers("peer_lacks"):
            if name in found.args[0]:
                always = strict and found.kwargs["always"]
                item.add_marker(pytest.mark.xfail(reason=f"{name} lacks {found.args[1]}", strict=always))

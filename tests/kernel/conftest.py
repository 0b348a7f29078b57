"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import enosys
from tests.kernel.rootfs_lab import Lab, mountinfo


def _host_mounts() -> list[str]:
    return sorted(f"{m['point']} {m['type']} {m['root']}" for m in mountinfo())


def _lab(directory: Path, without: tuple[str, ...]) -> Iterator[Lab]:
    before = _host_mounts()
    made = Lab(directory / "bundle")
    made.without = without
    yield made
    assert _host_mounts() == before, "mounts were left on the host"


@pytest.fixture(params=[(), ("openat2",), enosys.MOUNTING], ids=["new", "no-openat2", "old-mounting"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A lab on this kernel, and on one without openat2, and on one that only has mount(2)."""
    yield from _lab(tmp_path, request.param)


@pytest.fixture
def modern(tmp_path: Path) -> Iterator[Lab]:
    """A lab on this kernel as it is."""
    yield from _lab(tmp_path, ())

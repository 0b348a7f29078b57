"""podman's checkpoints. CRIU itself is there in `hack/vm --stock`; elsewhere they must fail with a word that helps."""

from __future__ import annotations

import time

import pytest

from tests.cli.test_criu import criu_works
from tests.engines.conftest import assert_nothing_left
from tests.engines.images import NAME
from tests.engines.podman import Podman
from tests.engines.space import Space

COUNT = (NAME, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.2; done")

needs_criu = pytest.mark.skipif(not criu_works(), reason="CRIU does not work with this kernel: hack/vm --stock")


def count(podman: Podman, name: str) -> int:
    """How far it has counted."""
    end = time.monotonic() + 60
    while not (text := podman("exec", name, "cat", "/count", rc=None).out.strip()) or int(text) < 3:
        assert time.monotonic() < end
    return int(text)


@needs_criu
@pytest.mark.timeout(400)
def test_there_and_back(podman_space: Space, name: str) -> None:
    """In place, and by an archive from which a second container is made."""
    podman = Podman(podman_space, "ocirt")
    id = podman.background(name, *COUNT)
    count(podman, name)
    podman("container", "checkpoint", name, timeout=120)
    assert podman.status(name) == "exited"
    podman("container", "restore", name, timeout=120)
    assert podman.status(name) == "running"
    before = count(podman, name)
    archive = f"{podman_space.directory}/archive.tar"
    podman("container", "checkpoint", "--leave-running", "--compress", "none", "--export", archive, name, timeout=120)
    assert count(podman, name) > before
    again = podman("container", "restore", "--import", archive, "--name", f"{name}b", timeout=120).out.strip()
    assert count(podman, f"{name}b") >= before
    podman("rm", "--force", "--time", "0", id, again, timeout=120)
    for each in (id, again):
        assert_nothing_left(podman_space, each)


@pytest.mark.skipif(criu_works(), reason="CRIU works with this kernel")
def test_where_there_is_no_criu(podman: Podman, name: str) -> None:
    podman.background(name, *COUNT)
    failed = podman("container", "checkpoint", name, rc=125)
    assert "checkpoint" in failed.err.lower()
    assert podman.status(name) == "running"

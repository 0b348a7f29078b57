"""What README.md tells to type for each engine, typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.conftest import ROOT
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.engines.test_containerd import Containerd, containerd
from tests.engines.test_docker import docker_space

__all__ = ["containerd", "docker_space"]  # fixtures

ALPINE = "docker.io/library/alpine:latest"


def snippet(word: str) -> str:
    """The indented lines of the section on engines that hold `word`."""
    section = (ROOT / "README.md").read_text().split("## With an engine")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)
    (found,) = [block for block in blocks if word in block]
    return re.sub(r"^    ", "", found, flags=re.MULTILINE)


def run(space: Space, script: str) -> None:
    space("env", "-C", ROOT, "sh", "-exc", script)


@pytest.fixture
def bare_podman(podman_space: Space) -> Iterator[Space]:
    """podman without our drop-in."""
    drop_in = podman_space.root / "etc/containers/containers.conf.d/50-ocirt.conf"
    text = drop_in.read_text()
    drop_in.unlink()
    podman_space("podman", "tag", NAME, ALPINE)
    yield podman_space
    drop_in.write_text(text)
    podman_space("podman", "untag", NAME, ALPINE)


def test_podman(bare_podman: Space) -> None:
    run(bare_podman, snippet("podman --runtime"))


def test_containerd(containerd: Containerd, image: tuple[Path, Path]) -> None:
    containerd.space("ctr", "images", "import", image[1])
    containerd.space("ctr", "images", "tag", NAME, ALPINE)
    run(containerd.space, snippet("ctr run --rm --runc-binary"))


def test_shim(containerd: Containerd, image: tuple[Path, Path]) -> None:
    containerd.space("ctr", "images", "import", image[1])
    containerd.space("ctr", "images", "tag", "--force", NAME, ALPINE)
    run(containerd.space, snippet("ctr run --rm --runtime"))


def test_docker(docker_space: Space) -> None:
    docker_space("docker", "tag", NAME, "alpine")
    before = (docker_space.root / "etc/docker/daemon.json").read_text()
    run(docker_space, snippet("docker run"))
    docker_space.write("/etc/docker/daemon.json", before)

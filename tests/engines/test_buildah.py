"""buildah's RUN with ocirt, runc and crun: create, start, state until it says stopped, delete."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.conftest import need
from tests.engines.images import NAME
from tests.engines.space import Space


@pytest.fixture
def working(podman_space: Space) -> Iterator[str]:
    """A working container of buildah, from the image."""
    need("buildah")
    container = podman_space("buildah", "from", "--pull-never", NAME).out.strip()
    yield container
    podman_space("buildah", "rm", container)


def run(space: Space, runtime: str, container: str, *command: str, rc: int = 0) -> str:
    flags = ("--runtime", runtime, "--isolation", "oci")
    return space("buildah", "run", *flags, container, "--", *command, rc=rc).out


def test_run(podman_space: Space, runtime_name: str, working: str) -> None:
    assert run(podman_space, runtime_name, working, "sh", "-c", "echo made > /made; echo said") == "said\n"
    assert run(podman_space, runtime_name, working, "cat", "/made") == "made\n"
    run(podman_space, runtime_name, working, "sh", "-c", "exit 7", rc=7)
    run(podman_space, runtime_name, working, "/nonexistent", rc=1)


def test_build(podman_space: Space, runtime_name: str) -> None:
    """A Containerfile with RUN, an image of it, and a container of that."""
    directory = podman_space.directory / f"build-{runtime_name}"
    directory.mkdir()
    (directory / "Containerfile").write_text(f"FROM {NAME}\nRUN id -u > /who && mkdir /made\nCMD cat /who\n")
    name = f"localhost/built-{runtime_name}"
    flags = ("--runtime", runtime_name, "--isolation", "oci", "--pull-never", "--network", "host", "--tag", name)
    podman_space("buildah", "build", *flags, directory)
    given = ("--runtime", runtime_name, "run", "--rm", "--network", "none")
    assert podman_space("podman", *given, name).out == "0\n"
    podman_space("podman", "rmi", name)

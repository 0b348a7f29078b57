"""What only an ordinary user's podman does, with ocirt, runc and crun; test_podman has the rest."""

from __future__ import annotations

import os

import pytest

from tests.engines.images import NAME
from tests.engines.podman import AS_USER, UID, Podman
from tests.engines.space import Space


@pytest.fixture
def podman(user_space: Space, runtime_name: str) -> Podman:
    return Podman(user_space, runtime_name, rootless=True)


def test_ids(podman: Podman) -> None:
    """Root inside is the user outside."""
    result = podman.run(NAME, "sh", "-c", "id -u; cat /proc/self/uid_map; exit 7", rc=7)
    assert result.out.split()[:4] == ["0", "0", str(UID), "1"]


def test_keep_id(podman: Podman) -> None:
    assert podman.run("--userns", "keep-id", NAME, "id", "-u").out == f"{UID}\n"


def test_network(podman: Podman) -> None:
    """slirp4netns, by the device node of this space."""
    assert "10.0.2." in podman("run", "--rm", NAME, "ip", "-4", "addr", "show", "tap0").out


def test_named_volume(podman: Podman) -> None:
    script = "touch /x 2>/dev/null && echo root; touch /data/x && echo data"
    given = ("--read-only", "--volume", "vol:/data")
    assert podman.run(*given, NAME, "sh", "-c", script).out == "data\n"


def test_runtime_alone(user_space: Space) -> None:
    """`ocirt spec --rootless` gives a bundle that runs as it is."""
    script = f"""
        mkdir -p bundle/rootfs && cd bundle && tar -xf {user_space.directory}/rootfs.tar -C rootfs &&
        ocirt spec --rootless && sed -i 's/"terminal": true/"terminal": false/; s|"sh"|"id"|' config.json &&
        exec ocirt run alone
    """
    assert "uid=0" in user_space(*AS_USER, "sh", "-ec", script).out
    assert "alone" not in os.listdir(user_space.root / f"run/user/{UID}/ocirt")

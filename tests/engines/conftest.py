"""Engines of the tests: each is started once, in a space of its own, and knows ocirt, runc and crun.

Debian packages: podman, conmon, netavark, buildah, containerd, crun, runc, busybox-static, iproute2, util-linux,
uidmap, slirp4netns; Docker by unpacking docker.io (conftest says how).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.engines import images
from tests.engines.space import Machine, Space, left_behind

ROOT = Path(__file__).resolve().parent.parent.parent
CONTRIB = ROOT / "contrib"
#: In the VM, where everything is slow, only ocirt is driven.
RUNTIMES = tuple(os.environ.get("OCIRT_TEST_RUNTIMES", "ocirt runc crun").split())

#: The test VM with systemd is used as it is; on any other machine each engine gets a space of its own.
SYSTEMD = "OCIRT_IN_VM" in os.environ and os.path.isdir("/run/systemd/system")

_numbers = count(1)


def need(*programs: str) -> None:
    """Fail, naming the Debian packages that are missing."""
    packages = {"ctr": "containerd", "nsenter": "util-linux", "ip": "iproute2", "busybox": "busybox-static"}
    missing = sorted(
        {
            packages.get(name, name)
            for name in (*programs, "nsenter", "ip", "busybox", "runc", "crun")
            if not shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin")
        }
    )
    if missing:
        pytest.fail(f"the engines' tests need: apt-get install {' '.join(missing)}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    if os.geteuid():
        pytest.fail("the engines' tests need root", pytrace=False)


def make_space(name: str, program: str) -> Space:
    """A space in which /usr/local/bin/ocirt is the runtime under test."""
    directory = Path(tempfile.mkdtemp(prefix=f"oct-{name}-", dir="/var/tmp"))
    directory.chmod(0o755)
    space = Machine(directory) if SYSTEMD else Space(directory)
    space.write("/usr/local/bin/ocirt", f'#!/bin/sh\nexec {program} "$@"\n', 0o755)
    return space


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(tar of the root file system, OCI archive)."""
    return images.make(tmp_path_factory.mktemp("image"))


@pytest.fixture(params=RUNTIMES)
def runtime_name(request: pytest.FixtureRequest) -> str:
    """Each runtime in turn: an expectation that holds for all is what behaving alike means."""
    return str(request.param)


@pytest.fixture
def name() -> str:
    """A container name that nobody else on this machine has."""
    return f"oct{os.getpid()}e{next(_numbers)}"


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> str:
    """Path of the runtime under test."""
    path = str(request.config.getoption("--runtime"))
    if not os.path.exists(path):
        pytest.fail(f"there is no runtime {path}", pytrace=False)
    return path


@pytest.fixture(scope="session")
def podman_space(program: str, image: tuple[Path, Path]) -> Iterator[Space]:
    """podman with our drop-in, and the image in its storage."""
    need("podman", "conmon")
    space = make_space("podman", program)
    try:
        space.write("/etc/containers/containers.conf", PODMAN_CONF)
        space.write("/etc/containers/containers.conf.d/50-ocirt.conf", (CONTRIB / "podman/50-ocirt.conf").read_text())
        space.write(
            "/etc/containers/storage.conf",
            '[storage]\ndriver = "overlay"\nrunroot = "/run/containers/storage"\n'
            'graphroot = "/var/lib/containers/storage"\n',
        )
        for file in ("/etc/subuid", "/etc/subgid"):
            space.write(file, "containers:2147483647:2147483648\n")
        space("podman", "import", "--change", 'CMD ["/bin/sleep", "1000"]', image[0], images.NAME)
        yield space
    finally:
        space.close()
        if not SYSTEMD:
            remove_cgroup("libpod_parent")


#: No process here may have what podman asks for by default (CAP_SYS_RESOURCE is missing).
PODMAN_CONF = f"""
[engine]
cgroup_manager = "{"systemd" if SYSTEMD else "cgroupfs"}"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""


def remove_cgroup(name: str) -> None:
    """Remove a group that an engine made for its containers, in every hierarchy, unless somebody else uses it."""
    for hierarchy in os.listdir("/sys/fs/cgroup"):
        for top, _, _ in os.walk(f"/sys/fs/cgroup/{hierarchy}/{name}", topdown=False):
            try:
                os.rmdir(top)
            except OSError:
                continue


def assert_nothing_left(space: Space, id: str) -> None:
    """Fail when something of container `id` is still on the host."""
    left = left_behind(space, id)
    assert not left, "left behind: " + ", ".join(left)

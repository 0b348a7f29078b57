"""Engines of the tests: each is started once, in a space of its own, and knows ocirt, runc and crun.

Debian packages: podman, conmon, netavark, buildah, containerd, crun, runc, busybox-static, iproute2, util-linux,
uidmap, slirp4netns; Docker by unpacking docker.io (conftest says how).
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.engines import images
from tests.engines.podman import AS_USER, UID, USER, Podman
from tests.engines.space import Machine, Space, left_behind

ROOT = Path(__file__).resolve().parent.parent.parent
CONTRIB = ROOT / "contrib"
#: The shim under test.
SHIM = Path(os.environ.get("OCIRT_TEST_SHIM") or ROOT / "hack/containerd-shim-ocirt-v1")
#: In the VM, where everything is slow, only ocirt is driven.
RUNTIMES = tuple(os.environ.get("OCIRT_TEST_RUNTIMES", "ocirt runc crun").split())

#: Which of them are driven by an ordinary user, too.
ROOTLESS = tuple(os.environ.get("OCIRT_TEST_ROOTLESS", "ocirt").split())

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
    """A space in which /usr/local/bin/ocirt is the runtime under test, with the shim beside it."""
    directory = Path(tempfile.mkdtemp(prefix=f"oct-{name}-", dir="/var/tmp"))
    directory.chmod(0o755)
    space = Machine(directory) if SYSTEMD else Space(directory)
    space.write("/usr/local/bin/ocirt", f'#!/bin/sh\nexec {program} "$@"\n', 0o755)
    space.write("/usr/local/bin/containerd-shim-ocirt-v1", f'#!/bin/sh\nexec {SHIM} "$@"\n', 0o755)
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


#: What logging in would do where there is no systemd; and device nodes that the user may open.
_RUN_DIRECTORY = f"""
    mkdir -p -m 700 /run/user/{UID} && chown {UID}:{UID} /run/user/{UID}
    mkdir /run/nodes && mount -t tmpfs -o mode=755 nodes /run/nodes
    mknod -m 666 /run/nodes/tun c 10 200 && mknod -m 666 /run/nodes/fuse c 10 229
    mount --bind /run/nodes/tun /dev/net/tun && mount --bind /run/nodes/fuse /dev/fuse
"""

#: The user's manager, which stays without a session.
_LOG_IN = f"""
    chmod 666 /dev/fuse /dev/net/tun
    loginctl enable-linger {USER}
    for i in $(seq 300); do systemctl is-active -q user@{UID}.service && exit; sleep 0.1; done
    exit 1
"""


@pytest.fixture(scope="session")
def user_space(podman_space: Space, image: tuple[Path, Path]) -> Space:
    """A user with ranges of subordinate ids in podman's space, and the image in the user's storage."""
    need("newuidmap", "slirp4netns")
    space = podman_space
    assert not any(entry.pw_uid == UID for entry in pwd.getpwall())
    for file, line in (
        ("/etc/passwd", f"{USER}:*:{UID}:{UID}::/var/lib/{USER}:/bin/sh"),
        ("/etc/group", f"{USER}:x:{UID}:"),
        ("/etc/subuid", f"{USER}:300000:65536"),
        ("/etc/subgid", f"{USER}:300000:65536"),
    ):
        space("sh", "-c", f"echo '{line}' >> {file}")
    home = space.directory / "home"
    home.mkdir()
    os.chown(home, UID, UID)
    space("sh", "-ec", f"mkdir -p /var/lib/{USER} && mount --bind {home} /var/lib/{USER}")
    space("sh", "-ec", _LOG_IN if SYSTEMD else _RUN_DIRECTORY)
    tar = space.directory / "rootfs.tar"
    tar.write_bytes(image[0].read_bytes())
    tar.chmod(0o644)
    space(*AS_USER, "podman", "import", "--change", 'CMD ["/bin/sleep", "1000"]', tar, images.NAME)
    return space


@pytest.fixture(params=[*RUNTIMES, *(f"{name} without root" for name in ROOTLESS)])
def podman(podman_space: Space, request: pytest.FixtureRequest) -> Iterator[Podman]:
    """podman with each of the runtimes, and of an ordinary user with ocirt."""
    runtime, _, rootless = str(request.param).partition(" ")
    if rootless:
        request.getfixturevalue("user_space")
    podman = Podman(podman_space, runtime, rootless=bool(rootless))
    yield podman
    for id in podman.made:
        podman("rm", "--force", "--time", "0", "--ignore", id)
    for id in podman.made:
        assert_nothing_left(podman_space, id)


@pytest.fixture
def cgroups(podman: Podman) -> None:
    """For what takes cgroups of the containers' own."""
    if not podman.limits:
        pytest.skip("cgroup v1 is not delegated to ordinary users: hack/vm --systemd has v2")


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

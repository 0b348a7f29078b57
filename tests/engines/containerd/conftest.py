"""Shims under test: `kind` is each in turn; tests of a shim alone ask for an `engine`, which plays containerd.

OCIRT_TEST_SHIMS names which ones, of ocirt, runc and runc+ocirt (containerd's shim with ocirt as its binary).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import call
from tests.engines.conftest import ROOT, SHIM
from tests.engines.containerd.calling import Kind
from tests.engines.containerd.engine import Engine
from tests.harness.bundle import make_rootfs
from tests.harness.leftovers import Before

MS_BIND = 0x1000
V2_CONTROLLERS = ("cpu", "cpuset", "blkio", "memory", "pids", "hugetlb", "rdma", "misc", "dmem")
GO = Path("/usr/bin/containerd-shim-runc-v2")


def chosen() -> list[str]:
    default = "ocirt,runc" if SHIM.exists() else "runc"
    return os.environ.get("OCIRT_TEST_SHIMS", default).split(",")


def kind_of(name: str) -> Kind:
    """A shim by its name."""
    if name == "ocirt":
        return Kind(name, SHIM)
    if name == "runc":
        return Kind(name, GO, {"binary_name": "/usr/sbin/runc"})
    assert name == "runc+ocirt", f"OCIRT_TEST_SHIMS: there is no {name}"
    return Kind(name, GO, {"binary_name": str(ROOT / "hack/ocirt")})


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "shim_fails(name, why): a shim that is known to fail here; runc is runc+ocirt, too"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", chosen(), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks of a shim become expected failures."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        name = parameters.params.get("kind") if parameters else None
        for found in item.iter_markers("shim_fails"):
            if name and name.split("+")[0] == found.args[0]:
                strict, run = found.kwargs.get("always", True), found.kwargs.get("run", True)
                item.add_marker(pytest.mark.xfail(reason=found.args[1], strict=strict, run=run))


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    """A shim under test."""
    kind = kind_of(request.param)
    if not kind.binary.exists():
        pytest.fail(f"there is no {kind.binary}", pytrace=False)
    return kind


@pytest.fixture(scope="session")
def shim_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that every test may mount and nobody changes."""
    path = tmp_path_factory.mktemp("shim-image") / "rootfs"
    make_rootfs(path)
    return path


@pytest.fixture(scope="session")
def hierarchies(own_namespace: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a hybrid host every controller gets a v1 hierarchy, in this mount namespace only.

    containerd's shim asks for all of them before it counts anything or hears of an OOM.
    """
    top = Path("/sys/fs/cgroup")
    if not (top / "unified").is_dir():
        return
    held = os.open(top, os.O_PATH)
    names = os.listdir(top)
    call("mount", b"tmpfs", bytes(top), b"tmpfs", 0, b"mode=755")
    for name in names:
        (top / name).mkdir()
        call("mount", f"/proc/self/fd/{held}/{name}".encode(), bytes(top / name), None, MS_BIND, None)
    os.close(held)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounted = {word for line in lines if " - cgroup " in line for word in line.split()[-1].split(",")}
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()}
    for name in (*V2_CONTROLLERS, "net_cls", "net_prio", "perf_event"):
        if name in known and name not in mounted:
            (top / name).mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # v2 uses it
                call("mount", b"cgroup", bytes(top / name), b"cgroup", 0, name.encode())


@pytest.fixture
def engine(
    hierarchies: None,
    apart: None,
    kind: Kind,
    place: Path,
    test_id: str,
    shim_image: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Engine]:
    """containerd's side. Fails a test after which a process, mount, cgroup, socket, file or state is left."""
    Path("/run/containerd").mkdir(exist_ok=True)
    before = Before()
    engine = Engine(kind, place, test_id, shim_image)
    yield engine
    engine.close()
    left = engine.left()
    left += before.left(place, test_id)
    engine.clean()
    shutil.rmtree(place, ignore_errors=True)
    if not request.node.get_closest_marker("xfail"):
        problems = [f"left behind: {', '.join(left)}"] if left else []
        problems += [f"events: {problem}" for problem in engine.events.problems]
        assert not problems, "\n".join(problems)

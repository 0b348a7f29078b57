"""Options and fixtures of all tests."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness import peers  # noqa: E402
from tests.harness.box import Box  # noqa: E402
from tests.harness.helpers import Helpers  # noqa: E402
from tests.harness.leftovers import Before, children, reap, remove_directory  # noqa: E402
from tests.harness.runtime import Runtime  # noqa: E402

MakeBox = Callable[[], Box]

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MS_SHARED = 0x4000, 1 << 18, 1 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    default = os.environ.get("OCIRT_TEST_RUNTIME") or str(ROOT / "hack" / "ocirt")
    parser.addoption("--runtime", default=default, help="the runtime under test (default: %(default)s)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peer_fails(name, why): a peer is known to break the spec here")
    config.addinivalue_line("markers", "peer_lacks(names, what): the peers have no such thing")


def runtime_name(path: str) -> str:
    base = os.path.basename(path)
    return next((name for name in peers.KNOWN if base.startswith(name)), "ocirt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = config.getoption("--runtime")
    peers.mark(items, runtime_name(path), path)


def pytest_report_header(config: pytest.Config) -> str:
    return f"runtime under test: {config.getoption('--runtime')}"


def call(name: str, *arguments: object) -> None:
    """Call libc; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


@pytest.fixture(scope="session")
def own_namespace() -> None:
    """The test process becomes a child subreaper, as an engine's monitor is, with a mount namespace of its own."""
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


@pytest.fixture
def apart(own_namespace: None) -> None:
    """Stand apart from the rest of the machine, with every mount shared, as systemd makes it.

    A mount that escapes from a container is seen here and nowhere else. Each test makes the mounts shared again: a
    runtime that is told to do without a mount namespace could change them.
    """
    call("mount", b"none", b"/", None, MS_REC | MS_SHARED, None)


@pytest.fixture(scope="session")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> Helpers:
    """Compiler of tests/helpers."""
    return Helpers(tmp_path_factory.mktemp("helpers"))


_numbers = count(1)


@pytest.fixture
def test_id() -> str:
    """What the ids of this test's containers begin with: unique on this machine."""
    return f"oct{os.getpid()}x{next(_numbers)}"


@pytest.fixture
def place(test_id: str) -> Iterator[Path]:
    """A directory of the test, with a short path because it holds sockets."""
    directory = Path(tempfile.mkdtemp(prefix=f"{test_id}-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    remove_directory(directory)


@pytest.fixture
def runtime(apart: None, place: Path, request: pytest.FixtureRequest) -> Runtime:
    """The runtime under test with a --root of its own."""
    path = request.config.getoption("--runtime")
    if not os.path.exists(path):
        pytest.fail(f"there is no runtime {path}", pytrace=False)
    return Runtime(path, runtime_name(path), place / "state")


@pytest.fixture
def make_box(runtime: Runtime, place: Path, test_id: str, nothing_left: None) -> Iterator[MakeBox]:
    """Makes boxes: a bundle and an id each. They are deleted at the end."""
    made: list[Box] = []

    def make() -> Box:
        number = len(made) + 1
        directory = place / str(number)
        directory.mkdir(mode=0o755)
        box = Box(directory, f"{test_id}n{number}", runtime)
        made.append(box)
        return box

    yield make
    runtime.close()
    for box in reversed(made):  # a later one may live in namespaces of an earlier one
        box.finish()
        reap(children())  # a zombie keeps the pid namespace that it shares from ending


@pytest.fixture
def box(make_box: MakeBox) -> Box:
    """A container's bundle and the commands on it."""
    return make_box()


@pytest.fixture
def nothing_left(
    apart: None, place: Path, runtime: Runtime, test_id: str, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Fail a test after which something of its containers is still on the host."""
    before = Before()
    yield
    left = before.left(place, test_id)
    if runtime.root.is_dir():
        # A dot is a peer's cache for all containers, such as crun's .empty-directory.
        left += [f"state {entry.name}" for entry in runtime.root.iterdir() if not entry.name.startswith(".")]
    if request.node.get_closest_marker("xfail"):
        return  # a peer that fails as expected may leave things; they have been taken away
    assert not left, "left behind: " + ", ".join(left)

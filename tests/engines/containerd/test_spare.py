"""The spare shim of an installation: the next shim is a fork of it, and like a fork of `start`."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines.conftest import ROOT
from tests.engines.containerd import ttrpc
from tests.engines.containerd.calling import Kind
from tests.engines.containerd.engine import Engine, Task
from tests.engines.containerd.test_daemon import descriptors
from tests.harness.leftovers import Before, cgroup_mounts

SOCKETS = Path("/run/containerd/s")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One shim only: containerd's own has no spare one."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation; a checkout has no spare shims."""
    prefix = tmp_path_factory.mktemp("installed")
    done = subprocess.run(
        [ROOT / "hack/install", "--prefix", prefix], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return prefix


@pytest.fixture
def engine(apart: None, installed: Path, place: Path, test_id: str, shim_image: Path) -> Iterator[Engine]:
    """containerd's side; the spare shim must be gone soon after the last shim."""
    Path("/run/containerd").mkdir(exist_ok=True)
    before, sockets = Before(), set(SOCKETS.glob("*.spare"))
    engine = Engine(Kind("ocirt", installed / "bin/containerd-shim-ocirt-v1"), place, test_id, shim_image)
    engine.caller.spare = 1
    yield engine
    engine.close()
    left = before.left(place, test_id, patience=6)
    left += [f"socket {path}" for path in set(SOCKETS.glob("*.spare")) - sockets]
    engine.clean()
    assert not left, "left behind: " + ", ".join(left)


def children(pid: int) -> set[int]:
    """Of all its threads."""
    return {int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()}


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def words(pid: int) -> list[str]:
    """The command line, as ps(1) shows it; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    except FileNotFoundError:
        return []


def spares(pid: int) -> set[int]:
    """The spare shims that a shim has left."""
    return {child for child in children(pid) if words(child)[-1:] == ["spare"]}


def first(engine: Engine) -> tuple[Task, int]:
    """A task in a shim that `start` has forked, and the spare shim that this one has left."""
    task = engine.task("sleep 1000")
    end = time.monotonic() + 10
    while not (found := spares(task.shim_pid)):
        assert time.monotonic() < end, "there is no spare shim"
        time.sleep(0.01)
    (spare,) = found
    task.create()
    task.start()
    return task, spare


def test_next_shim_is_its_fork(engine: Engine) -> None:
    """And serves: with its own socket, log, descriptors and events."""
    task, spare = first(engine)
    second = engine.task("echo out; exit 3")
    assert parent(second.shim_pid) == spare
    assert second.shim_pid != spare
    assert words(task.shim_pid)[-1] == words(second.shim_pid)[-1] == "start"
    assert second.id in words(second.shim_pid), "people look for a container's shim by its id"
    assert task.id not in words(second.shim_pid)
    assert words(spare)[-1] == "spare"
    assert not {task.id, second.id} & set(words(spare))
    assert second.answer.address != task.answer.address
    second.create()
    second.start()
    assert second.wait() == 3
    assert second.out
    assert second.out.all() == b"out\n"
    second.delete()
    second.leave()
    engine.events.wait("delete", second.id)
    assert engine.events.names(second.id) == ["create", "start", "exit", "delete"]
    assert second.shim.closed()
    third = engine.running("sleep 1000")
    assert parent(third.shim_pid) == spare
    assert sorted(descriptors(third.pid)) == [0, 1, 2]
    held = set(descriptors(third.shim_pid).values())
    assert not {name for name in held if second.id in name or task.id in name}
    third.end()
    task.end()


def test_what_it_holds(engine: Engine) -> None:
    """Nothing of the container that it was made beside, and no name in anybody's way."""
    task, spare = first(engine)
    held = descriptors(spare)
    assert [held[fd] for fd in (0, 1, 2)] == ["/dev/null"] * 3
    others = sorted(name.partition(":")[0] for fd, name in held.items() if fd > 2)
    assert [name.rpartition("/")[2] for name in others] == ["ocirt.image", "anon_inode", "socket"], others
    assert os.readlink(f"/proc/{spare}/cwd") == "/"
    assert os.getsid(spare) == spare
    assert Path(f"/proc/{spare}/oom_score_adj").read_text() == Path(f"/proc/{task.shim_pid}/oom_score_adj").read_text()
    task.end()


def test_other_limits(engine: Engine) -> None:
    """A `start` that is unlike it gets a shim like itself."""
    task, spare = first(engine)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        second = engine.task("sleep 1000")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert parent(second.shim_pid) != spare
    assert resource.prlimit(second.shim_pid, resource.RLIMIT_NOFILE)[0] == soft - 1
    second.create()
    second.delete()
    second.leave()
    task.end()


def test_other_cgroup(engine: Engine) -> None:
    task, spare = first(engine)
    directory = Path(cgroup_mounts()[0]) / f"{engine.name}-elsewhere"
    directory.mkdir()
    (directory / "cgroup.procs").write_text("0")
    try:
        second = engine.task("sleep 1000")
        assert parent(second.shim_pid) != spare
        assert directory.name in Path(f"/proc/{second.shim_pid}/cgroup").read_text()
        second.create()
        second.delete()
        second.leave()
    finally:
        (directory.parent / "cgroup.procs").write_text("0")
        end = time.monotonic() + 10
        while (directory / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        directory.rmdir()
    task.end()


def test_mount_namespace(engine: Engine) -> None:
    """A containerd that has moved to another mount namespace has its mounts made there."""
    task, spare = first(engine)
    bundle = engine.bundle("sleep 1000")
    bundle.write()
    caller = engine.caller
    argv = ["unshare", "--mount", str(caller.kind.binary), *caller.flags(bundle.id, "1.6"), "start"]
    done = caller.run(argv, bundle.path, b"", env=caller.environment("1.6"), timeout=40)
    connection = ttrpc.Connection(os.fsdecode(done.stdout), 2, engine.namespace)
    pid = connection.call("Connect", id="").shim_pid
    engine.shims.add(pid)
    assert parent(pid) != spare
    assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{spare}/ns/mnt")
    connection.call("Shutdown", id=bundle.id)
    connection.close()
    task.end()


def test_killed(engine: Engine) -> None:
    """Nobody depends on it: the next `start` forks, and its shim leaves another."""
    task, spare = first(engine)
    os.kill(spare, signal.SIGKILL)
    second = engine.running("sleep 1000")
    assert parent(second.shim_pid) != spare
    end = time.monotonic() + 10
    while not spares(second.shim_pid):
        assert time.monotonic() < end, "there is no new spare shim"
        time.sleep(0.01)
    third = engine.task("sleep 1000")
    assert parent(third.shim_pid) in spares(second.shim_pid)
    third.create()
    third.delete()
    third.leave()
    second.end()
    task.end()


def test_told_to_end(engine: Engine) -> None:
    """SIGTERM: it goes, and takes its socket along; the shims of its making live on."""
    before = set(SOCKETS.glob("*.spare"))
    task, spare = first(engine)
    second = engine.running("sleep 1000")
    assert parent(second.shim_pid) == spare
    assert set(SOCKETS.glob("*.spare")) - before
    os.kill(spare, signal.SIGTERM)
    end = time.monotonic() + 5
    while set(SOCKETS.glob("*.spare")) - before:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert second.run("/bin/true")[0] == 0
    second.end()
    task.end()


def test_stopped(engine: Engine) -> None:
    """One that doesn't answer holds nobody up for long, and no container gets two shims."""
    task, spare = first(engine)
    os.kill(spare, signal.SIGSTOP)
    try:
        began = time.monotonic()
        second = engine.running("sleep 1000")
        assert time.monotonic() - began < 15
        assert parent(second.shim_pid) != spare
    finally:
        os.kill(spare, signal.SIGCONT)
    time.sleep(0.5)
    assert second("Connect").shim_pid == second.shim_pid
    second.end()
    task.end()


def test_none_is_wanted(engine: Engine) -> None:
    engine.caller.spare = 0
    task = engine.task("sleep 1000")
    time.sleep(0.5)
    assert not spares(task.shim_pid)
    task.create()
    task.delete()
    task.leave()


def test_core_scheduling_and_shim_cgroup(engine: Engine) -> None:
    """Whoever wants a shim of a special kind gets it, and leaves none of that kind to others."""
    task, spare = first(engine)
    name = f"{engine.name}-shim"
    bundle = engine.bundle("sleep 1000")
    answer = engine.start(bundle, engine.options(shim_cgroup=f"/{name}"))
    second = engine.adopt(bundle, answer)
    assert parent(second.shim_pid) != spare
    assert f"/{name}" in Path(f"/proc/{second.shim_pid}/cgroup").read_text()
    time.sleep(0.3)
    assert not spares(second.shim_pid)
    second.create()
    second.delete()
    second.leave()
    assert second.shim.closed()
    for mountpoint in cgroup_mounts():
        directory = Path(mountpoint) / name
        end = time.monotonic() + 10
        while directory.exists():
            try:
                directory.rmdir()
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
    task.end()


def test_many_at_once(engine: Engine) -> None:
    """Eight starts: each has a shim of its own."""
    task, spare = first(engine)
    bundles = [engine.bundle("sleep 1000") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(engine.start, bundles))
    tasks = [engine.adopt(bundle, answer) for bundle, answer in zip(bundles, answers, strict=True)]
    assert len({each.shim_pid for each in tasks}) == 8
    assert {parent(each.shim_pid) for each in tasks} == {spare}
    for each in tasks:
        each.create()
        each.start()
    for each in tasks:
        each.end()
    task.end()

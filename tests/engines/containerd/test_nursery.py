"""The process that forks workers: nobody sees it, whatever happens to it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.engines.containerd import schema, ttrpc
from tests.engines.containerd.calling import Kind
from tests.engines.containerd.engine import PROCESS, RUNNING, Engine
from tests.engines.containerd.test_bootstrap import GROUP
from tests.engines.containerd.test_daemon import descriptors
from tests.engines.containerd.test_races import hook, killed_in_create, ours, until
from tests.engines.containerd.test_spare import parent
from tests.harness.leftovers import alive, cgroup_mounts, children
from tests.harness.waiting import eventually

NAME = "ocirt-nursery\n"


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except FileNotFoundError:
        return ""


def nursery_of(shim: int) -> int:
    """Its pid, once it has a worker ready."""
    found: list[int] = []

    def is_ready() -> bool:
        found[:] = [pid for pid in children(shim) if name(pid) == NAME]
        return bool(found and children(found[0]))

    assert eventually(is_ready)
    return found[0]


def family(shim: int) -> set[int]:
    """The shim's processes: itself, the nursery, the worker that is ready."""
    nursery = nursery_of(shim)
    return {shim, nursery, *children(nursery)}


@contextlib.contextmanager
def group_of_pids(engine: Engine, members: Iterable[int]) -> Iterator[Path]:
    """A cgroup in which processes of a shim can be counted; they are taken out again."""
    (pids,) = [Path(point) for point in cgroup_mounts() if Path(point, "pids.max").exists() or point.endswith("/pids")]
    directory = pids / f"{engine.name}-shim"
    directory.mkdir()
    try:
        for pid in members:
            (directory / "cgroup.procs").write_text(str(pid))
        yield directory
    finally:
        for pid in (directory / "cgroup.procs").read_text().split():
            (pids / "cgroup.procs").write_text(pid)
        time.sleep(0.2)
        directory.rmdir()


def test_killed(engine: Engine, kind: Kind) -> None:
    """The next operation makes another; the worker that was ready goes with it."""
    ours(kind)
    task = engine.running()
    nursery = nursery_of(task.shim_pid)
    workers = children(nursery)
    os.kill(nursery, signal.SIGKILL)
    assert eventually(lambda: not any(map(alive, {nursery, *workers})))
    assert task.run("/bin/true")[0] == 0
    assert nursery_of(task.shim_pid) != nursery
    task.end()


def test_killed_with_a_request_left(engine: Engine, kind: Kind) -> None:
    """What it hadn't done is told to have failed, once: the next operation makes another."""
    ours(kind)
    task = engine.running()
    nursery = nursery_of(task.shim_pid)
    assert eventually(lambda: len(children(nursery)) == 1)
    (worker,) = children(nursery)
    os.kill(worker, signal.SIGSTOP)  # it takes nothing
    start = task.shim.begin("Start", id=task.id, exec_id=task.exec("/bin/true"))
    time.sleep(0.2)
    os.kill(nursery, signal.SIGKILL)
    with pytest.raises(ttrpc.RpcError, match="was killed"):
        task.shim.result(start)
    assert task.run("/bin/true")[0] == 0
    task.end()


def test_killed_and_no_other(engine: Engine, kind: Kind) -> None:
    """While there can't be another process, operations fail; later ones don't."""
    ours(kind)
    task = engine.running()
    shim = family(task.shim_pid)
    with group_of_pids(engine, [task.shim_pid]) as directory:
        (directory / "pids.max").write_text("1")
        os.kill(nursery_of(task.shim_pid), signal.SIGKILL)
        assert eventually(lambda: not any(map(alive, shim - {task.shim_pid})))
        for _ in range(2):
            id = task.exec("/bin/true")
            assert "another process: resource temporarily" in task.fails("Start", exec_id=id).text
        (directory / "pids.max").write_text("max")
        assert task.run("/bin/true")[0] == 0
    task.end()


def test_killed_worker(engine: Engine, kind: Kind) -> None:
    """One that was ready, by the OOM killer perhaps: there is another at once."""
    ours(kind)
    task = engine.running()
    nursery = nursery_of(task.shim_pid)
    for _ in range(3):
        (worker,) = children(nursery_of(task.shim_pid))
        os.kill(worker, signal.SIGKILL)
        assert eventually(lambda worker=worker: children(nursery) not in (set(), {worker}))
        assert task.run("/bin/true")[0] == 0
    task.end()


def test_killed_in_create(engine: Engine, kind: Kind) -> None:
    """Its workers die with it."""
    ours(kind)
    killed_in_create(engine, parent)


def test_side_by_side(engine: Engine, kind: Kind) -> None:
    """A worker that waits keeps nobody else waiting."""
    ours(kind)
    bundle = engine.bundle("sleep 1000", **{GROUP: "pod"})
    bundle.config["hooks"] = {"createRuntime": [hook(f"touch {engine.place}/begun; exec sleep 3")]}
    slow = engine.task(bundle=bundle)
    create = slow.shim.begin("Create", **slow.request())
    until(f"{engine.place}/begun")
    began = time.monotonic()
    quick = engine.running(bundle=engine.bundle("sleep 1000", **{GROUP: "pod"}))
    assert quick.shim_pid == slow.shim_pid
    assert quick.run("/bin/true")[0] == 0
    assert time.monotonic() - began < 2.5
    slow.shim.result(create)
    slow.end()
    quick.end()


def test_many_at_once(engine: Engine, kind: Kind) -> None:
    """More than the nursery's socket has room for: none is refused."""
    ours(kind)
    task = engine.running()
    ids = [task.exec("/bin/true") for _ in range(400)]
    starts = [task.shim.begin("Start", id=task.id, exec_id=id) for id in ids]
    for start in starts:
        assert task.shim.result(start).pid
    for id in ids:
        assert task.wait(id) == 0
    task.end()


def test_stopped(engine: Engine, kind: Kind) -> None:
    """It takes nothing: who asks waits, and the daemon serves on."""
    ours(kind)
    task = engine.running()
    nursery = nursery_of(task.shim_pid)
    assert eventually(lambda: len(children(nursery)) == 1)  # the worker that is ready
    shim = {nursery, *children(nursery)}
    for pid in shim:
        os.kill(pid, signal.SIGSTOP)
    starts = [task.shim.begin("Start", id=task.id, exec_id=task.exec("/bin/true")) for _ in range(40)]
    assert task.status == RUNNING
    for pid in shim:
        os.kill(pid, signal.SIGCONT)
    for start in starts:
        assert task.shim.result(start).pid
    task.end()


def test_large_operation(engine: Engine, kind: Kind) -> None:
    """One message between processes has room for 200 KB; a process's environment may have more."""
    ours(kind)
    task = engine.running()
    environment = [f"V{number}={'x' * 100_000}" for number in range(8)]
    spec = {"env": ["PATH=/bin", *environment]}
    status, out = task.run("/bin/sh", "-c", "echo ${#V7}", spec=spec)
    assert (status, out) == (0, b"100000\n")
    task.end()


def test_deep_operation(engine: Engine, kind: Kind) -> None:
    """What can just be read may be too deep to be written: the exec fails, and can be deleted."""
    ours(kind)
    task = engine.running()
    for depth in range(900, 1000, 4):
        text = '{"args": ["/bin/true"], "cwd": "/", "x": %s}' % ("[" * depth + "]" * depth)
        spec = schema.message("google.protobuf.Any", type_url=PROCESS, value=text.encode())
        try:
            task("Exec", exec_id="x", spec=spec)
        except ttrpc.RpcError:
            break
        assert "nested" in task.fails("Start", exec_id="x").text
        task.delete("x")
    else:
        pytest.fail("none was too deep to be read")
    assert "bug in ocirt" not in task.bundle.logged()
    task.end()
    engine.events.wait("exit", task.id)


def test_what_it_holds(engine: Engine, kind: Kind) -> None:
    """Its socket and the log; of the workers that have ended not even a zombie."""
    ours(kind)
    task = engine.running()
    for _ in range(3):
        assert task.run("/bin/true")[0] == 0
    nursery = nursery_of(task.shim_pid)
    assert eventually(lambda: len(children(nursery)) == 1)
    (worker,) = children(nursery)
    log = str(task.bundle.path / "log")
    for pid in (nursery, worker):
        held = descriptors(pid)
        assert [held[fd] for fd in (0, 1, 2)] == ["/dev/null", "/dev/null", log]
        assert sorted(held[fd].partition(":")[0] for fd in held if fd > 2) == sorted([log, "pipe", "socket"])
    task.end()


def test_dies_with_its_shim(engine: Engine, kind: Kind) -> None:
    """At once, and so does the worker that was ready."""
    ours(kind)
    task = engine.running()
    shim = family(task.shim_pid)
    os.kill(task.shim_pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(alive, shim)))
    engine.caller.delete(task.id, task.bundle.path)
    assert not task.rootfs_mounted()

"""What comes at the wrong time: calls while others are under way, processes that end early, workers that are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.calling import CallFailed, Kind
from tests.engines.containerd.engine import STOPPED, Engine, mount
from tests.harness.leftovers import alive, children, mounts


def hook(script: str) -> dict[str, object]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}


def until(what: str, seconds: float = 10) -> None:
    """Wait for a file."""
    end = time.monotonic() + seconds
    while not os.path.exists(what):
        assert time.monotonic() < end, f"there is no {what}"
        time.sleep(0.01)


def ours(kind: Kind) -> None:
    if kind.name != "ocirt":
        pytest.skip("what only the shim of ocirt promises")


def test_kill_while_start_runs_hooks(engine: Engine, kind: Kind) -> None:
    """The program has ended and is reaped while poststart hooks run: no other process of its pid may be hit."""
    ours(kind)
    bundle = engine.bundle("exit 3")
    bundle.config["hooks"] = {"poststart": [hook(f"touch {engine.place}/in; sleep 1.5")]}
    task = engine.task(bundle=bundle)
    task.create()
    start = task.shim.begin("Start", id=task.id)
    until(f"{engine.place}/in")
    end = time.monotonic() + 1
    while alive(task.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert task.fails("Kill", signal=9).code == ttrpc.NOT_FOUND
    task.shim.result(start)
    assert task.wait() == 3
    task.delete()
    task.leave()


def test_delete_while_delete_drains(engine: Engine, kind: Kind) -> None:
    """Delete waits for output that nobody takes: it isn't done twice, and nothing is started meanwhile."""
    ours(kind)
    task = engine.task("head -c 120000 /dev/zero")
    out = engine.output(paused=True)
    task.create(stdout=str(out.path))
    task.start()
    task.wait()
    delete = task.shim.begin("Delete", id=task.id)
    time.sleep(0.5)
    assert task.fails("Delete").code == ttrpc.PRECONDITION
    assert task.state().status == STOPPED
    deleted = task.shim.result(delete, 20)
    assert deleted.pid == task.pid
    task.exit_status = deleted.exit_status
    assert task.fails("Delete").code == ttrpc.NOT_FOUND
    assert "bug in ocirt" not in task.bundle.logged()
    task.leave()


def test_exec_deleted_twice_and_added_again(engine: Engine, kind: Kind) -> None:
    """The second Delete of an exec, answered late, doesn't take away a new one of its id."""
    ours(kind)
    task = engine.running()
    out = engine.output(paused=True)
    task.exec("/bin/sh", "-c", "head -c 120000 /dev/zero", id="x", stdout=str(out.path))
    task.start("x")
    task.wait("x")
    deletes = [task.shim.begin("Delete", id=task.id, exec_id="x")]
    time.sleep(0.5)
    deletes.append(task.shim.begin("Delete", id=task.id, exec_id="x"))
    task.shim.result(deletes[0], 20)
    task.exec("/bin/sleep", "1000", id="x")
    pid = task.start("x")
    task.shim.result(deletes[1], 20)
    assert task.state("x").pid == pid
    task.kill(9, "x")
    task.wait("x")
    task.delete("x")
    task.end()


def killed_in_create(engine: Engine, of_worker: Callable[[int], int]) -> None:
    """Create while its worker waits for a hook, and a process is killed, which `of_worker` chooses.

    The worker leaves a mount, a process and a state; the shim takes them away, and Create fails.
    """
    bundle = engine.bundle()
    bundle.config["hooks"] = {"createRuntime": [hook(f"echo $PPID > {engine.place}/worker; exec sleep 3")]}
    task = engine.task(bundle=bundle)
    create = task.shim.begin("Create", **task.request())
    until(f"{engine.place}/worker")
    time.sleep(0.1)
    worker = int(Path(engine.place, "worker").read_text())
    assert worker in {one for child in children(task.shim_pid) for one in children(child)}
    assert task.rootfs_mounted()
    os.kill(of_worker(worker), signal.SIGKILL)
    with pytest.raises(ttrpc.RpcError):
        task.shim.result(create)
    assert not task.rootfs_mounted()
    assert task.fails("State").code == ttrpc.NOT_FOUND
    root = Path("/run/containerd/ocirt", engine.namespace, task.id)
    assert not root.exists()
    task.leave()


def test_worker_killed_in_create(engine: Engine, kind: Kind) -> None:
    ours(kind)
    killed_in_create(engine, lambda worker: worker)


def test_create_fails_after_starting_over(engine: Engine, kind: Kind) -> None:
    """A worker that started over from a sealed interpreter takes back what it had mounted before."""
    ours(kind)
    bundle = engine.bundle()
    bundle.namespace("pid", remove=True)
    for name in ("bounding", "permitted", "effective"):
        bundle.process["capabilities"][name] = [*bundle.process["capabilities"].get(name, ()), "CAP_SYS_PTRACE"]
    bundle.config["hooks"] = {"createRuntime": [hook("exit 1")]}
    task = engine.task(bundle=bundle)
    with pytest.raises(ttrpc.RpcError):
        task.create()
    assert not task.rootfs_mounted()
    task.leave()


def test_mounts_at_targets_only(engine: Engine, kind: Kind) -> None:
    """Nothing on the root itself: what is below it is unmounted all the same."""
    ours(kind)
    bundle = engine.bundle()
    (bundle.rootfs / "a").mkdir()
    (bundle.rootfs / "a b").mkdir()
    for name in os.listdir(engine.image):
        (bundle.rootfs / name).mkdir(exist_ok=True)
    task = engine.task(bundle=bundle)
    binds = [mount("bind", engine.image / name, "rbind", "rw", target=f"/{name}") for name in os.listdir(engine.image)]
    task.create(rootfs=[*binds, mount("tmpfs", "tmpfs", target="/a b"), mount("tmpfs", "tmpfs", target="/a")])
    assert any(point.startswith(f"{bundle.rootfs}/") for point in mounts().values())
    task.delete()
    assert not [point for point in mounts().values() if point.startswith(f"{bundle.rootfs}")]
    task.leave()


def test_delete_of_a_state_that_cannot_be_read(engine: Engine, kind: Kind) -> None:
    """`delete` says so, and unmounts all the same: containerd removes the bundle next."""
    ours(kind)
    task = engine.task()
    task.create()
    os.kill(task.shim_pid, signal.SIGKILL)
    state = Path("/run/containerd/ocirt", engine.namespace, task.id, "state.json")
    kept = state.read_bytes()
    state.write_text("{")
    with pytest.raises(CallFailed, match=r"state\.json"):
        engine.caller.delete(task.id, task.bundle.path)
    assert not task.rootfs_mounted()
    state.write_bytes(kept)
    engine.caller.delete(task.id, task.bundle.path)
    assert not alive(task.pid)


def test_shim_killed_between_mount_and_state(engine: Engine, kind: Kind) -> None:
    """There is a mount and nothing else of the container: `delete` finds it."""
    ours(kind)
    directory = engine.place / "bin"
    directory.mkdir()
    helper = directory / "mount.fuse3"
    helper.write_text(f'#!/bin/sh\nmount --bind "$1" "$2"; touch {engine.place}/in; sleep 1\n')
    helper.chmod(0o755)
    bundle = engine.bundle()
    task = engine.adopt(bundle, engine.start(bundle, env={"PATH": f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"}))
    pid = task.shim_pid
    task.shim.begin("Create", **task.request(rootfs=[mount("fuse3.test", engine.image)]))
    until(f"{engine.place}/in")
    os.kill(pid, signal.SIGKILL)
    assert task.rootfs_mounted()
    engine.caller.delete(task.id, bundle.path)
    assert not task.rootfs_mounted()
    assert not Path("/run/containerd/ocirt", engine.namespace, task.id).exists()
    time.sleep(1)


def test_worker_that_started_over_dies_with_its_shim(engine: Engine, kind: Kind) -> None:
    """PR_SET_PDEATHSIG outlives execve: the container's lock isn't kept by a worker without a shim."""
    ours(kind)
    bundle = engine.bundle()
    bundle.namespace("pid", remove=True)
    for name in ("bounding", "permitted", "effective"):
        bundle.process["capabilities"][name] = [*bundle.process["capabilities"].get(name, ()), "CAP_SYS_PTRACE"]
    bundle.config["hooks"] = {"createRuntime": [hook(f"echo $PPID > {engine.place}/worker; exec sleep 2")]}
    task = engine.task(bundle=bundle)
    pid = task.shim_pid
    task.shim.begin("Create", **task.request())
    until(f"{engine.place}/worker")
    time.sleep(0.1)
    worker = int(Path(engine.place, "worker").read_text())
    assert b"-operation" in Path(f"/proc/{worker}/cmdline").read_bytes()
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 2
    while alive(worker):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.01)
    engine.caller.delete(task.id, bundle.path)
    assert not task.rootfs_mounted()
    time.sleep(2)

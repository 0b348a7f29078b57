"""Nothing depends on the shim being alive: `delete` by a fresh process ends and removes what is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.calling import Kind
from tests.engines.containerd.engine import KILLED, RUNNING, Engine, Task, mount
from tests.engines.containerd.test_bootstrap import GROUP
from tests.engines.containerd.test_races import ours
from tests.harness.leftovers import alive, cgroups, mounts


def kill_shim(task: Task) -> None:
    """SIGKILL, as an OOM killer would, and the end of the connection."""
    pid = task.shim_pid
    os.kill(pid, signal.SIGKILL)
    assert task.shim.closed()
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def removed(task: Task) -> None:
    """`delete` succeeds, and then nothing is left of the container but its bundle."""
    response, text = task.engine.caller.delete(task.id, task.bundle.path)
    task._done = True
    assert response.exit_status == (task.exit_status if task.engine.kind.name == "ocirt" else KILLED)
    assert abs(response.exited_at.seconds - time.time()) < 60
    assert b"Traceback" not in text
    end = time.monotonic() + 5
    while task.pid and alive(task.pid):
        assert time.monotonic() < end, "init still lives"
        time.sleep(0.01)
    assert not [point for point in mounts().values() if point.startswith(str(task.bundle.path))]
    assert not cgroups(task.id)


def reap_later(*pids: int) -> None:
    """As a host's init does: once the shim is dead, its children are ours.

    A pid namespace ends only when all that was in it has been reaped.
    """

    def wait(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

    for pid in pids:
        threading.Thread(target=wait, args=(pid,), daemon=True).start()


def finish(task: Task) -> None:
    """What containerd doesn't do for a killed shim: its socket stays until `start` or `delete` takes it away."""
    if task.engine.kind.name == "ocirt":
        assert not ttrpc.exists(task.answer.address), "the socket of a dead shim"
    else:
        Path(task.answer.address.removeprefix("unix://")).unlink(missing_ok=True)


def test_running(engine: Engine) -> None:
    task = engine.running("sleep 1000 & sleep 1000")
    kill_shim(task)
    removed(task)
    finish(task)


def test_created(engine: Engine) -> None:
    task = engine.task()
    task.create()
    kill_shim(task)
    removed(task)
    finish(task)


def test_stopped(engine: Engine) -> None:
    task = engine.running("exit 3")
    task.wait()
    kill_shim(task)
    removed(task)
    finish(task)


@pytest.mark.shim_fails("runc", "runc 1.1 can't delete what is frozen on v1", always=False)
def test_paused(engine: Engine) -> None:
    task = engine.running()
    task("Pause")
    kill_shim(task)
    removed(task)
    finish(task)


def test_others_of_its_shim(engine: Engine, kind: Kind) -> None:
    """They go as well: containerd 2.3 calls `delete` for a pod's sandbox only. Another pod's containers live on."""
    ours(kind)
    sandbox, running, created = (engine.task(bundle=engine.bundle("sleep 1000", **{GROUP: "pod"})) for _ in range(3))
    other = engine.running(bundle=engine.bundle("sleep 1000", **{GROUP: "other"}))
    for task in (sandbox, running, created):
        task.create()
    running.start()
    kill_shim(sandbox)
    (running.bundle.path / "ocirt-root").unlink()  # it has even removed the bundle
    reap_later(running.pid, created.pid)
    removed(sandbox)
    for task in (running, created):
        removed(task)  # which is quiet
        assert not Path("/run/containerd/ocirt", engine.namespace, task.id).exists()
    finish(sandbox)
    assert other.status == RUNNING
    other.end()


def test_shared_pid_namespace(engine: Engine) -> None:
    """Every process of the container is ended, those without a pid namespace too."""
    bundle = engine.bundle("sleep 1000 & sleep 1000 & echo ready; wait")
    bundle.namespace("pid", remove=True)
    task = engine.task(bundle=bundle)
    task.create()
    task.start()
    assert task.out
    task.out.until(b"ready")
    pids = task.pids()
    kill_shim(task)
    removed(task)
    end = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)
    finish(task)


def test_with_execs(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/bin/sleep", "1000")
    pid = task.start(id)
    kill_shim(task)
    reap_later(pid)
    removed(task)
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
    finish(task)


def test_nothing_created(engine: Engine) -> None:
    task = engine.task()
    kill_shim(task)
    if engine.kind.name == "ocirt":
        removed(task)
    task._done = True
    finish(task)


def test_again_and_again(engine: Engine) -> None:
    """`delete` of what isn't there any more succeeds, and is quick."""
    task = engine.running("exit 0")
    task.wait()
    task.delete()
    task.shutdown()
    times = []
    for _ in range(3):
        begin = time.monotonic()
        removed(task)
        times.append(time.monotonic() - begin)
    assert min(times) < 2


def test_a_live_shim_is_left_alone(engine: Engine) -> None:
    """containerd calls `delete` after every Delete: the other containers of the pod and their shim live on."""
    annotation = {"io.kubernetes.cri.sandbox-id": f"{engine.name}n-pod"}
    first = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    second = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    first.kill()
    first.wait()
    first.delete()
    removed(first)
    assert second.status == 2
    assert ttrpc.exists(second.answer.address)
    second.end()


@pytest.mark.shim_fails("runc", "runc leaves cgroups when it is killed early", always=False)
def test_killed_at_any_instant(engine: Engine) -> None:
    """SIGKILL in the middle of Create, Start or Delete: `delete` removes whatever is there."""
    for number in range(12):
        task = engine.task()
        pid = task.shim_pid
        stream = task.shim.begin("Create", **task.request())
        if number >= 6:
            task.pid = task.shim.result(stream).pid
            task.shim.begin("Start" if number % 2 else "Delete", id=task.id)
        time.sleep(0.004 * number if number < 6 else 0.001 * (number - 6))
        os.kill(pid, signal.SIGKILL)
        assert task.shim.closed()
        if engine.kind.name == "ocirt" or (task.bundle.path / "runtime").exists():
            removed(task)
        task._done = True
        finish(task)
        stray = [int(p) for p in os.listdir("/proc") if p.isdigit() and belongs(int(p), task.id)]
        end = time.monotonic() + 5
        while any(map(alive, stray)):
            assert engine.kind.name != "ocirt" or time.monotonic() < end, f"left in round {number}: {stray}"
            if time.monotonic() > end:
                break
            time.sleep(0.02)


def belongs(pid: int, id: str) -> bool:
    """Whether a process is in a cgroup of the container."""
    try:
        return id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def test_without_its_bundle(engine: Engine) -> None:
    """The state is not in the bundle alone: config.json may be gone by then."""
    task = engine.running()
    kill_shim(task)
    (task.bundle.path / "config.json").unlink()
    removed(task)
    finish(task)


def test_process_with_a_reused_pid_is_safe(engine: Engine) -> None:
    """A pid that now is somebody else's isn't killed: init is known by its start time too."""
    task = engine.running("exit 0")
    task.wait()
    kill_shim(task)
    innocent = engine.running()
    for path in task.bundle.path.glob("*.pid"):
        path.write_text(str(innocent.pid))
    removed_pid, task.pid = task.pid, 0
    assert removed_pid
    if engine.kind.name == "ocirt":
        removed(task)
        assert innocent.status == 2
    finish(task)
    innocent.end()


def test_restart_of_containerd(engine: Engine) -> None:
    """containerd goes and comes: by the file `address` it finds the shim, the task and what has ended meanwhile."""
    task = engine.running("sleep 1; exit 9")
    task.shim.close()
    engine.events.down()
    time.sleep(1.5)
    engine.events.up()
    address = (task.bundle.path / "address").read_text()
    assert address == task.answer.address
    task.shim = engine.connect(task.answer)
    assert task("Connect").task_pid == task.pid
    assert task.pids() == [] or task.status == 3
    assert task.wait() == 9
    task.delete()
    task.leave()


def test_bundle_is_taken_away_below_a_live_shim(engine: Engine) -> None:
    """containerd removes the bundle right after `delete`; a shim whose directory is gone still ends in order."""
    annotation = {"io.kubernetes.cri.sandbox-id": f"{engine.name}n-pod"}
    first = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    second = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    first.kill()
    first.wait()
    first.delete()
    removed(first)
    shutil.rmtree(first.bundle.path)
    third_bundle = engine.bundle("sleep 1000", **annotation)
    third = engine.running(bundle=third_bundle)
    assert third.shim_pid == second.shim_pid
    assert second.run("/bin/true")[0] == 0
    third.kill()
    third.wait()
    third.delete()
    third.shutdown()
    third._done = True
    engine.caller.delete(third.id, third.bundle.path)
    second.end()


def test_mounts_of_several_layers(engine: Engine) -> None:
    """`delete` unmounts whatever is stacked on the root file system."""
    task = engine.task()
    upper, work = engine.place / "upper", engine.place / "work"
    upper.mkdir()
    work.mkdir()
    task.create(
        rootfs=[
            mount("overlay", "overlay", f"lowerdir={engine.image}", f"upperdir={upper}", f"workdir={work}"),
            mount("tmpfs", "tmpfs", "size=1m", target="/mnt"),
        ]
        if engine.kind.name == "ocirt"
        else [mount("overlay", "overlay", f"lowerdir={engine.image}", f"upperdir={upper}", f"workdir={work}")]
    )
    task.start()
    kill_shim(task)
    removed(task)
    finish(task)

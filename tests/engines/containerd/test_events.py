"""Events: their order, their fields, and a containerd that is away, slow or forgetful while they are sent."""

from __future__ import annotations

import os
import time

import pytest

from tests.engines.containerd.engine import Engine


def test_fields(engine: Engine) -> None:
    task = engine.running("exit 3")
    task.wait()
    deleted = task.delete()
    create = engine.events.wait("create", task.id)
    assert create.namespace == engine.namespace
    assert create.type_url == "containerd.events.TaskCreate"
    assert (create.message.bundle, create.message.pid) == (str(task.bundle.path), task.pid)
    assert task.out
    assert create.message.io.stdout == str(task.out.path)
    assert [m.type for m in create.message.rootfs] == ["bind"]
    assert abs(create.stamp.seconds - time.time()) < 60
    assert engine.events.wait("start", task.id).message.pid == task.pid
    end = engine.events.wait("exit", task.id).message
    assert (end.id, end.pid, end.exit_status) == (task.id, task.pid, 3)
    assert end.exited_at == deleted.exited_at
    gone = engine.events.wait("delete", task.id).message
    assert (gone.pid, gone.exit_status, gone.exited_at) == (task.pid, 3, deleted.exited_at)
    task.leave()


def test_order_with_an_exec(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/bin/sh", "-c", "exit 4")
    pid = task.start(id)
    assert task.wait(id) == 4
    task.delete(id)
    task.kill()
    task.wait()
    task.delete()
    task.leave()
    engine.events.wait("delete", task.id)
    events = engine.events.of(task.id)
    assert [event.name for event in events] == [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "delete",
    ]
    assert (events[2].message.exec_id, events[3].message.exec_id, events[3].message.pid) == (id, id, pid)
    exit_ = events[4].message
    assert (exit_.id, exit_.pid, exit_.exit_status) == (id, pid, 4)
    assert events[5].process == task.id


def test_execs_exit_before_init(engine: Engine) -> None:
    """When init ends, the exits of the execs that end with it come first."""
    task = engine.running()
    ids = [task.exec("/bin/sleep", "1000") for _ in range(5)]
    for id in ids:
        task.start(id)
    task.kill()
    assert task.wait() == 137
    engine.events.wait("exit", task.id, task.id)
    exits = [event.process for event in engine.events.of(task.id) if event.name == "exit"]
    assert exits[-1] == task.id
    assert sorted(exits[:-1]) == sorted(ids)
    assert {task.wait(id) for id in ids} == {137}
    for id in ids:
        task.delete(id)
    task.delete()
    task.leave()


def test_exec_that_ends_at_once(engine: Engine) -> None:
    """exec-started before exit, however short it was."""
    task = engine.running()
    for number in range(10):
        id = task.exec("/bin/true", id=f"short{number}")
        task.start(id)
        assert task.wait(id) == 0
        task.delete(id)
    task.end()
    engine.events.wait("delete", task.id)
    for number in range(10):
        names = [event.name for event in engine.events.of(task.id) if event.process == f"short{number}"]
        assert names == ["exec-added", "exec-started", "exit"]


def test_pause_and_resume(engine: Engine) -> None:
    task = engine.running()
    task("Pause")
    task("Resume")
    task.end()
    engine.events.wait("delete", task.id)
    assert engine.events.names(task.id) == ["create", "start", "paused", "resumed", "exit", "delete"]


def test_signal(engine: Engine) -> None:
    """128 and the signal."""
    task = engine.running("kill -TERM $$; sleep 1000")
    task.kill(9)
    task.wait()
    id = engine.events.wait("exit", task.id).message
    assert id.exit_status == 137
    task.delete()
    task.leave()


def test_out_of_memory(engine: Engine) -> None:
    """TaskOOM, before the exit."""
    bundle = engine.bundle("echo ready; read line; tail -c 300000000 /dev/zero | wc -c; sleep 0.5; exit 3")
    bundle.linux["resources"]["memory"] = {"limit": 24 << 20}
    stdin = engine.input()
    out = engine.output()
    task = engine.task(bundle=bundle)
    task.create(stdin=str(stdin.path), stdout=str(out.path), stderr=str(engine.output().path))
    task.start()
    out.until(b"ready")
    stdin.write(b"\n")
    task.wait()
    engine.events.wait("oom", task.id)
    engine.events.wait("exit", task.id)
    names = engine.events.names(task.id)
    assert names.index("oom") < names.index("exit")
    task.delete()
    task.leave()


@pytest.mark.shim_fails("runc", "its event may come after the end, or never", always=False)
def test_init_out_of_memory(engine: Engine) -> None:
    """Init itself is what is killed: still TaskOOM, and before the exit."""
    bundle = engine.bundle()
    bundle.args("/bin/tail", "-c", "300000000", "/dev/zero")
    bundle.linux["resources"]["memory"] = {"limit": 24 << 20}
    task = engine.running(bundle=bundle)
    assert task.wait() == 137
    engine.events.wait("oom", task.id)
    engine.events.wait("exit", task.id)
    names = engine.events.names(task.id)
    assert names.index("oom") < names.index("exit")
    task.delete()
    task.leave()


def test_many_in_order(engine: Engine) -> None:
    """Events of ten tasks at once: each task's own are in order, on one connection."""
    annotation = {"io.kubernetes.cri.sandbox-id": f"{engine.name}n-pod"}
    tasks = [engine.task(bundle=engine.bundle("exit 0", **annotation)) for _ in range(10)]
    creating = [task.shim.begin("Create", **task.request()) for task in tasks]
    for task, stream in zip(tasks, creating, strict=True):
        task.pid = task.shim.result(stream).pid
    starting = [task.shim.begin("Start", id=task.id) for task in tasks]
    for task, stream in zip(tasks, starting, strict=True):
        task.shim.result(stream)
    for task in tasks:
        assert task.wait() == 0
        task.delete()
        task.leave()
    for task in tasks:
        engine.events.wait("delete", task.id)
        assert engine.events.names(task.id) == ["create", "start", "exit", "delete"]


def test_containerd_is_away_for_a_while(engine: Engine) -> None:
    """What happens meanwhile is told when it is back, in order and once."""
    task = engine.running()
    engine.events.wait("start", task.id)
    engine.events.down()
    task("Pause")
    task("Resume")
    time.sleep(1)
    engine.events.up()
    task.end()
    engine.events.wait("delete", task.id, timeout=30)
    assert engine.events.names(task.id) == ["create", "start", "paused", "resumed", "exit", "delete"]


def test_slow_containerd(engine: Engine) -> None:
    """Nobody waits for events: calls are answered at once."""
    task = engine.running()
    engine.events.delay = 0.5
    begin = time.monotonic()
    for _ in range(4):
        task("Pause")
        task("Resume")
    took = time.monotonic() - begin
    engine.events.delay = 0
    assert took < 3.5 or engine.kind.name != "ocirt", f"{took:.1f} s"
    task.end()
    engine.events.wait("delete", task.id, timeout=30)
    assert engine.events.names(task.id).count("paused") == 4


def test_connection_that_breaks(engine: Engine) -> None:
    """An event whose connection is reset before the answer is sent again."""
    task = engine.running()
    engine.events.wait("start", task.id)
    engine.events.resets = 1
    task("Pause")
    task("Resume")
    engine.events.wait("paused", task.id)
    engine.events.wait("resumed", task.id)
    task.end()
    engine.events.wait("delete", task.id)
    names = engine.events.names(task.id)
    assert names == ["create", "start", "paused", "resumed", "exit", "delete"]


def test_nobody_there_at_all(engine: Engine) -> None:
    """Without containerd's socket a shim still works, and ends."""
    engine.events.down()
    task = engine.running()
    assert task.status == 2
    task.kill()
    task.wait()
    task.delete()
    pid = task.shim_pid
    task.leave()
    end = time.monotonic() + 40
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < end
        time.sleep(0.1)
    engine.events.up()


def test_events_of_the_last_task_are_not_lost(engine: Engine) -> None:
    """Shutdown waits for what has still to be told."""
    for _ in range(5):
        task = engine.running()
        engine.events.delay = 0.1
        task.kill()
        task.wait()
        task.delete()
        task.leave()
        engine.events.delay = 0
        engine.events.wait("delete", task.id)

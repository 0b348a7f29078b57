"""A task's life by the shim's API, from `start` to `delete`, as containerd leads it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.engine import CREATED, PAUSED, RUNNING, STOPPED, Engine
from tests.harness.leftovers import alive


def test_whole_life(engine: Engine) -> None:
    task = engine.task("echo out; echo err >&2; exit 7")
    assert task("Connect").task_pid == 0
    pid = task.create()
    assert pid > 0
    state = task.state()
    assert (state.id, state.pid, state.status, state.exec_id) == (task.id, pid, CREATED, "")
    assert state.bundle == str(task.bundle.path)
    assert task.start() == pid
    assert task.wait() == 7
    assert task.out
    assert task.err
    assert (task.out.all(), task.err.all()) == (b"out\n", b"err\n")
    state = task.state()
    assert (state.status, state.exit_status, state.pid) == (STOPPED, 7, pid)
    assert abs(state.exited_at.seconds - time.time()) < 60
    response = task.delete()
    assert (response.pid, response.exit_status) == (pid, 7)
    assert response.exited_at == state.exited_at
    assert task.fails("State").code == ttrpc.NOT_FOUND
    task.leave()
    engine.events.wait("delete", task.id)
    assert engine.events.names(task.id) == ["create", "start", "exit", "delete"]
    assert task.shim.closed()
    assert not ttrpc.exists(task.answer.address)


def test_status(engine: Engine) -> None:
    task = engine.running()
    assert task.status == RUNNING
    task("Pause")
    assert task.status == PAUSED
    task("Resume")
    assert task.status == RUNNING
    task.kill()
    assert task.wait() == 128 + signal.SIGKILL
    assert task.status == STOPPED
    task.delete()
    task.leave()


def test_connect(engine: Engine) -> None:
    task = engine.running()
    told = task("Connect")
    assert (told.shim_pid, told.task_pid) == (task.shim_pid, task.pid)
    assert task.shim.call("Connect", id="unknown").task_pid == 0
    assert os.path.exists(f"/proc/{told.shim_pid}")
    task.end()


def test_waiting_thrice(engine: Engine) -> None:
    """Wait is answered to everybody, before and after the end."""
    task = engine.running()
    other = engine.connect(task.answer)
    streams = [task.shim.begin("Wait", id=task.id), task.shim.begin("Wait", id=task.id)]
    third = other.begin("Wait", id=task.id)
    assert not task.shim.answered(streams[0], 0.3)
    task.kill(signal.SIGTERM)  # init of a pid namespace has no handler
    assert task.status == RUNNING
    task.kill()
    answers = [task.shim.result(streams[0]), task.shim.result(streams[1]), other.result(third)]
    answers.append(task("Wait"))
    assert {answer.exit_status for answer in answers} == {137}
    assert len({str(answer.exited_at) for answer in answers}) == 1
    task.delete()
    assert task.fails("Wait").code == ttrpc.NOT_FOUND
    task.leave()


def test_wait_for_what_is_only_created(engine: Engine) -> None:
    """containerd calls Wait before Start."""
    task = engine.task("exit 5")
    task.create()
    stream = task.shim.begin("Wait", id=task.id)
    assert not task.shim.answered(stream, 0.3)
    task.start()
    assert task.shim.result(stream).exit_status == 5
    task.delete()
    task.leave()


def test_delete_of_a_created_task(engine: Engine) -> None:
    task = engine.task()
    pid = task.create()
    task.delete()
    task.leave()
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_signal_in_created(engine: Engine) -> None:
    """A signal is legal before the program runs."""
    task = engine.task()
    task.create()
    stream = task.shim.begin("Wait", id=task.id)
    task.kill()
    assert task.shim.result(stream).exit_status == 137
    task.delete()
    task.leave()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, 40])
def test_signals(engine: Engine, number: int) -> None:
    """Any signal arrives, by its number, the real-time ones too."""
    task = engine.running(f"trap 'echo got {number}; exit 3' {number}; echo ready; while :; do sleep 0.1; done")
    assert task.out
    task.out.until(b"ready")
    task.kill(number)
    assert task.wait() == 3
    assert task.out.all().endswith(f"got {number}\n".encode())
    task.delete()
    task.leave()


def test_kill_all(engine: Engine) -> None:
    """`all` reaches every process of the container."""
    bundle = engine.bundle("sleep 1000 & sleep 1000 & echo ready; wait")
    bundle.namespace("pid", remove=True)
    task = engine.task(bundle=bundle)
    task.create()
    task.start()
    assert task.out
    task.out.until(b"ready")
    pids = task.pids()
    assert len(pids) == 3
    task.kill(all=True)
    assert task.wait() == 137
    end = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)
    task.delete()
    task.leave()


def test_rest_of_a_shared_pid_namespace(engine: Engine) -> None:
    """When init ends without a pid namespace of its own, the rest is killed before its exit is told."""
    bundle = engine.bundle("sleep 1000 & echo $!; exit 4")
    bundle.namespace("pid", remove=True)
    task = engine.task(bundle=bundle)
    task.create()
    task.start()
    assert task.wait() == 4
    assert task.out
    pid = int(task.out.all())
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
    task.delete()
    task.leave()


def test_ends_at_once(engine: Engine) -> None:
    """A program that has ended before Start has answered."""
    for _ in range(8):
        task = engine.task("exit 0")
        task.bundle.args("/bin/true")
        task.bundle.write()
        task.create()
        task.start()
        assert task.wait() == 0
        task.delete()
        task.leave()
        engine.events.wait("delete", task.id)
        assert engine.events.names(task.id) == ["create", "start", "exit", "delete"]

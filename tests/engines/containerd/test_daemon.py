"""The shim's process: its descriptors, its place in the system, its log, its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.engine import Engine
from tests.harness.leftovers import alive, cgroup_mounts
from tests.harness.waiting import eventually


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open."""
    return {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


@pytest.mark.shim_fails("runc", "its containers may get what it got", always=False)
def test_stray_descriptors(engine: Engine) -> None:
    """Neither the shim nor a container keeps what containerd happens to have open."""
    secret = engine.place / "secret"
    secret.write_text("not for containers")
    stray = os.open(secret, os.O_RDONLY)
    os.dup2(stray, 251)
    try:
        bundle = engine.bundle("sleep 1000")
        answer = engine.start(bundle, pass_fds=(stray, 251))
    finally:
        os.close(stray)
        os.close(251)
    task = engine.adopt(bundle, answer)
    task.create()
    task.start()
    assert sorted(descriptors(task.pid)) == [0, 1, 2]
    if engine.kind.name == "ocirt":
        assert str(secret) not in descriptors(task.shim_pid).values()
    task.end()


@pytest.mark.shim_fails("runc", "the socket's file lives until Go's garbage is collected", always=False)
def test_descriptors_of_containers(engine: Engine) -> None:
    """0, 1 and 2: neither the shim's socket nor another client's."""
    task = engine.running("sleep 1000")
    assert sorted(descriptors(task.pid)) == [0, 1, 2]
    id = task.exec("/bin/sleep", "1000")
    pid = task.start(id)
    assert sorted(descriptors(pid)) == [0, 1, 2]
    task.kill(exec_id=id)
    task.wait(id)
    task.delete(id)
    task.end()


def test_descriptors_of_a_long_life(engine: Engine) -> None:
    """Nothing is left open by execs and clients that came and went."""
    task = engine.running()

    def once() -> None:
        assert task.run("/bin/true")[0] == 0
        connection = engine.connect(task.answer)
        connection.call("State", id=task.id)
        connection.close()

    for _ in range(3):
        once()
    time.sleep(0.3)
    before = descriptors(task.shim_pid)
    for _ in range(8):
        once()
    time.sleep(0.3)
    after = descriptors(task.shim_pid)
    assert len(after) <= len(before) + 1, (before, after)
    task.end()


def test_standard_streams(engine: Engine) -> None:
    """containerd waits for the end of `start`'s output: the daemon keeps neither. Its log is stderr."""
    task = engine.task()
    open_ = descriptors(task.shim_pid)
    assert not any(open_.get(number, "").startswith("pipe:") for number in (0, 1, 2)), open_
    task.leave()


def test_place_in_the_system(engine: Engine) -> None:
    """A session or process group of its own, a subreaper whose oom_score_adj is one more than containerd's."""
    task = engine.running()
    pid = task.shim_pid
    assert os.getpgid(pid) != os.getpgid(0)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == own + 1
    assert parent(task.pid) == pid, "init is the shim's child"
    assert f"-id {task.id}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    task.end()


def parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def test_oom_score(engine: Engine) -> None:
    """One more than containerd's, whatever that is; containers get what their configuration says."""
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    bundle = engine.bundle("sleep 1000")
    bundle.process["oomScoreAdj"] = 321
    try:
        own.write_text("77")
        answer = engine.start(bundle)
    finally:
        own.write_text(before)
    task = engine.adopt(bundle, answer)
    task.create()
    task.start()
    assert int(Path(f"/proc/{task.shim_pid}/oom_score_adj").read_text()) == 78
    assert int(Path(f"/proc/{task.pid}/oom_score_adj").read_text()) == 321
    task.end()


def test_adopted_orphans_are_reaped(engine: Engine) -> None:
    """What is orphaned in a shared pid namespace becomes the shim's child, and no zombie."""
    bundle = engine.bundle("(sleep 0.2 & echo $!) ; sleep 1000")
    bundle.namespace("pid", remove=True)
    task = engine.task(bundle=bundle)
    task.create()
    task.start()
    assert task.out
    pid = int(task.out.until(b"\n"))
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < end, "a zombie"
        time.sleep(0.05)
    task.end()


def test_group_of_the_shim(engine: Engine) -> None:
    """Option shim_cgroup: the shim itself is put there, in every hierarchy."""
    group = f"{engine.name}n-shim"
    made = [Path(point, group) for point in cgroup_mounts()]
    for path in made:
        path.mkdir()
        if path.parent.name == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):
                (path / file).write_text((path.parent / file).read_text())
    bundle = engine.bundle("sleep 1000")
    try:
        answer = engine.start(bundle, engine.options(shim_cgroup=f"/{group}"))
        task = engine.adopt(bundle, answer)
        task.create(options=engine.options(shim_cgroup=f"/{group}"))
        assert str(task.shim_pid) in (made[0] / "cgroup.procs").read_text().split()
        places = Path(f"/proc/{task.shim_pid}/cgroup").read_text().split()
        assert [place for place in places if place.startswith(("memory", "pids")) and group not in place] == []
        assert group not in Path(f"/proc/{task.pid}/cgroup").read_text(), "the container isn't the shim"
        task.delete()
        task.leave()
    finally:
        for path in made:
            eventually(lambda path=path: not (path / "cgroup.procs").read_text())  # its workers die after it
            path.rmdir()


def test_log(engine: Engine) -> None:
    """The bundle's fifo gets logrus text, line by line."""
    task = engine.running()
    task.fails("Start")
    task.fails("State", exec_id="nobody")
    task.end()
    text = task.bundle.logged()
    for line in text.splitlines():
        assert re.match(r'time="[^"]+" level=(debug|info|warning|error) msg=', line), line
    assert "Traceback" not in text


@pytest.mark.shim_fails("runc", "blocks for ever", run=False)
def test_log_that_nobody_reads(engine: Engine) -> None:
    """A full fifo doesn't stop the shim."""
    bundle = engine.bundle("sleep 1000")
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(bundle.log, b"x" * 4096)
    task = engine.running(bundle=bundle)
    for _ in range(50):
        task.fails("State", exec_id="nobody")
    task.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end(engine: Engine, number: int) -> None:
    """With nothing to look after it goes, and takes its socket along."""
    task = engine.task()
    pid = task.shim_pid
    os.kill(pid, number)
    if engine.kind.name != "ocirt":
        return  # the Go shim ignores them
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end, "still alive"
        time.sleep(0.02)
    assert not ttrpc.exists(task.answer.address)


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1])
def test_signals_that_do_not_end_it(engine: Engine, number: int) -> None:
    if engine.kind.name != "ocirt" and number != signal.SIGPIPE:
        return
    task = engine.running()
    pid = task.pid
    task.bundle.logged()
    os.kill(task.shim_pid, number)
    time.sleep(0.2)
    assert task.status == 2
    said = task.bundle.logged()
    if number == signal.SIGUSR1:  # it says what it has
        assert f"{task.id}: init: pid {pid}, " in said
    else:
        assert f"{task.id}: init" not in said
    task.end()


def test_working_directory(engine: Engine) -> None:
    """The container's is its own; the shim doesn't hold up the unmounting of what it was started in."""
    task = engine.running("pwd; sleep 1000")
    assert task.out
    task.out.until(b"/\n")
    task.end()


def test_environment(engine: Engine) -> None:
    """Nothing of containerd's environment reaches a container."""
    bundle = engine.bundle("env; sleep 1000")
    answer = engine.start(bundle, env={"SECRET": "of containerd"})
    task = engine.adopt(bundle, answer)
    task.create()
    task.start()
    assert task.out
    text = task.out.until(b"PATH=")
    assert b"SECRET" not in text
    assert b"TTRPC_ADDRESS" not in text
    task.end()


def test_idle(engine: Engine) -> None:
    """An idle shim doesn't wake up."""
    task = engine.running()
    time.sleep(0.5)

    def used() -> int:
        fields = Path(f"/proc/{task_pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    task_pid = task.shim_pid
    before, switches = used(), voluntary(task_pid)
    time.sleep(2)
    assert used() - before <= 2, "ticks of CPU in two idle seconds"
    if engine.kind.name == "ocirt":
        assert voluntary(task_pid) - switches <= 4, "wake-ups in two idle seconds"
    task.end()


def voluntary(pid: int) -> int:
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1))

"""What nobody should do to a shim, and what the machine does to it: it serves on, doesn't spin, and shows nothing."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.calling import Kind
from tests.engines.containerd.engine import Engine, Task, mount
from tests.engines.containerd.test_daemon import descriptors
from tests.engines.containerd.test_nursery import family, group_of_pids
from tests.engines.containerd.test_races import ours

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def idles(pid: int) -> bool:
    """Does it wait, and not ask again and again?"""
    time.sleep(0.3)
    before = cpu(pid)
    time.sleep(1)
    return cpu(pid) - before < 0.2


def end(task: Task) -> None:
    """The end of a task that may have output left that nobody takes."""
    for stream in (task.out, task.err):
        if stream:
            stream.resume()
    task.end()


def test_any_timeout(engine: Engine) -> None:
    """292 years is a timeout, too; epoll knows 24 days only."""
    task = engine.running()
    waits = [task.shim.begin("Wait", timeout=(2**63 - 1) / 1e9 - 1000, id=task.id), task.shim.begin("Wait", id=task.id)]
    time.sleep(0.3)
    assert task.state().pid == task.pid
    task.kill()
    for stream in waits:
        assert task.shim.result(stream).exit_status == 137
    task.delete()
    task.leave()


@pytest.mark.shim_fails("runc", "answers with more than a message may have", always=False)
def test_long_names_in_errors(engine: Engine) -> None:
    task = engine.running()
    for fields in ({"exec_id": "x" * ((4 << 20) - 200)}, {"exec_id": "\x00" * (1 << 20)}):
        assert task.fails("State", **fields).code == ttrpc.NOT_FOUND
    assert task.state().pid == task.pid
    task.end()


def test_sizes_of_terminals(engine: Engine) -> None:
    """Numbers on the wire are larger than those of a terminal."""
    task = engine.task("sleep 1000")
    task.bundle.process["terminal"] = True
    task.bundle.write()
    out = engine.output()
    task.create(terminal=True, stdout=str(out.path))
    task.start()
    task("ResizePty", width=(1 << 32) - 1, height=70000)
    task("ResizePty", width=80, height=25)
    task.end()


@pytest.mark.parametrize("script", ["exec 0<&-; sleep 1000", "sleep 1000", "exec >/dev/null 2>&1; sleep 1000"])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("leaves", ["stays", "leaves", "closes"])
def test_streams_that_nobody_serves(engine: Engine, script: str, *, terminal: bool, leaves: str) -> None:
    """Whoever doesn't read or write any more costs the shim nothing."""
    if terminal and ">" in script:
        script = "exec <&- >/dev/null 2>&1; sleep 1000"  # nobody has the terminal open
    task = engine.task(f"(yes | head -c 300000) & {script}")
    task.bundle.process["terminal"] = terminal
    task.bundle.write()
    given, out, err = engine.input(), engine.output(paused=True), engine.output()
    streams = {"stdin": str(given.path), "stdout": str(out.path)}
    task.create(terminal=terminal, **streams, **({} if terminal else {"stderr": str(err.path)}))
    task.start()
    given.open()
    os.set_blocking(given.fd, False)
    try:
        for _ in range(100):
            os.write(given.fd, b"x" * 4000 + b"\n")
            time.sleep(0.002)
    except (BlockingIOError, BrokenPipeError):
        pass
    pid = task.shim_pid
    assert idles(pid)
    if leaves != "stays":
        if leaves == "closes":
            task("CloseIO", stdin=True)
        given.close()
        out.leave()
        assert idles(pid)
    out.resume()
    task.kill()
    task.wait()
    task.delete()
    task.leave()


def test_no_more_descriptors(engine: Engine, kind: Kind) -> None:
    """Connections, execs and events have to wait; nothing is lost, nothing spins, nothing is half-made."""
    ours(kind)
    task = engine.running()
    pid = task.shim_pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    id = task.exec("/bin/true")
    terminal = task.exec("/bin/true", terminal=True, stdout=str(engine.output().path))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(descriptors(pid)) + 1, limits[1]))
    connections = [ttrpc.Connection(task.answer.address) for _ in range(5)]
    try:
        assert idles(pid)
        assert "too many open files" in task.fails("Start", exec_id=id).text
        task.fails("Start", exec_id=terminal)
        assert task.state(id).exit_status == 255
        assert task.state(terminal).exit_status == 255
        task.kill()
        assert task.wait() == 137
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    for connection in connections:
        assert connection.call("Connect", id=task.id).shim_pid == pid
        connection.close()
    engine.events.wait("exit", task.id)
    task.delete()
    task.leave()
    assert "bug in ocirt" not in task.bundle.logged()


def test_no_more_processes(engine: Engine, kind: Kind) -> None:
    """Without a worker nothing is done, and what was there is there still."""
    ours(kind)
    task = engine.running()
    shim = family(task.shim_pid)
    with group_of_pids(engine, shim) as directory:
        (directory / "pids.max").write_text(str(len(shim)))
        id = task.exec("/bin/true")
        assert task.fails("Start", exec_id=id).text  # by the worker that was ready
        (directory / "pids.max").write_text("1")
        id = task.exec("/bin/true")
        assert "another process" in task.fails("Start", exec_id=id).text
        assert "another process" in task.fails("Pause").text
        assert task.status == 2
        (directory / "pids.max").write_text("max")
        assert task.run("/bin/true")[0] == 0
    task.end()


def test_file_that_is_a_fifo(engine: Engine, kind: Kind) -> None:
    """Opening a fifo that nobody reads would keep the whole pod waiting."""
    ours(kind)
    os.mkfifo(engine.place / "fifo")
    task = engine.task()
    error = task.shim.fails("Create", within=10, **task.request(stdout=f"file://{engine.place}/fifo"))
    assert "no such device" in error.text
    task.leave()


def test_log_is_not_the_containers(engine: Engine, kind: Kind) -> None:
    """A container with a terminal and users of its own isn't given the log, which is the worker's stderr."""
    ours(kind)
    bundle = engine.bundle("sleep 1000")
    bundle.process["terminal"] = True
    bundle.namespace("user")
    for name in ("uidMappings", "gidMappings"):
        bundle.linux[name] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.write()
    bundle.path.chmod(0o711)
    task = engine.task(bundle=bundle)
    task.create(terminal=True, stdout=str(engine.output().path))
    status = os.stat(bundle.path / "log")
    assert (status.st_uid, status.st_gid) == (0, 0)
    task.delete()
    task.leave()


def test_log_of_a_worker_that_starts_over(engine: Engine, kind: Kind) -> None:
    """Its stderr is the container's."""
    ours(kind)
    bundle = engine.bundle("sleep 1000")
    bundle.namespace("pid", remove=True)
    for name in ("bounding", "permitted", "effective"):
        bundle.process["capabilities"][name] = [*bundle.process["capabilities"].get(name, ()), "CAP_SYS_PTRACE"]
    task = engine.running(bundle=bundle)
    assert sorted(descriptors(task.pid)) == [0, 1, 2]
    assert f"create {task.id}: done" in bundle.logged()
    assert task.err
    assert not task.err.data
    task.end()


def test_descriptors_of_mount_helpers(engine: Engine, kind: Kind) -> None:
    """A fuse file system's server lives as long as the mount: it has nothing of the shim, nor of the container."""
    ours(kind)
    directory = engine.place / "bin"
    directory.mkdir()
    helper = directory / "mount.fuse3"
    helper.write_text(
        f'#!/bin/sh\nls -l /proc/self/fd > {engine.place}/held\nmount --bind "$1" "$2"\nsleep 8 & exit 0\n'
    )
    helper.chmod(0o755)
    path = f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"
    bundle = engine.bundle("echo out")
    answer = engine.start(bundle, env={"PATH": path})
    task = engine.adopt(bundle, answer)
    task.create(rootfs=[mount("fuse3.test", engine.image)])
    held = [line.rpartition(" -> ")[2] for line in (engine.place / "held").read_text().splitlines() if " -> " in line]
    assert not [name for name in held if name.startswith(("pipe:", "socket:", "anon_inode:"))], held
    task.start()
    task.wait()
    before = time.monotonic()
    task.delete()
    assert time.monotonic() - before < 5
    task.leave()
    time.sleep(8)

"""run in the foreground and detached: exit status, signals, streams."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.box import Box, alive, wait_dead
from tests.harness.leftovers import cgroups
from tests.harness.peers import peer_fails


@pytest.mark.parametrize("status", [0, 1, 3, 125, 255])
def test_exit_status_is_that_of_the_process(box: Box, status: int) -> None:
    assert box.run(f"exit {status}", check=False).rc == status


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_exit_status_of_a_signal_is_128_more(box: Box, name: str) -> None:
    box.namespace("pid", remove=True)  # init of a pid namespace can't signal itself
    assert box.run(f"kill -{name} $$; sleep 1000", check=False).rc == 128 + signal.Signals[f"SIG{name}"]


def test_streams(box: Box) -> None:
    result = box.run("cat; echo err >&2", stdin="in\n")
    assert (result.out, result.err) == ("in\n", "err\n")


def test_much_output_arrives_whole(box: Box, place: Path) -> None:
    box.sh("dd if=/dev/zero bs=1M count=20 2>/dev/null")
    box.run(out=place / "much")
    assert (place / "much").stat().st_size == 20 << 20


def test_nothing_but_the_process_writes(box: Box) -> None:
    box.args("/bin/true")
    result = box.run()
    assert (result.out, result.err) == ("", "")


def test_pipes_reach_end_of_file(box: Box) -> None:
    """Neither the runtime nor a leftover of it holds the streams when the process has closed them."""
    box.sh("echo gone; exec >&- 2>&-; sleep 1000")
    box.write()
    process = box.runtime.popen(
        "run", "--detach", "--bundle", box.path, box.id, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == b"gone\n"


def test_run_leaves_no_container(box: Box) -> None:
    box.run("exit 0")
    assert box.runtime("list", "--quiet").out == ""
    assert not cgroups(box.id)


@peer_fails("crun", "1.8.1 has no run --keep")
def test_keep(box: Box) -> None:
    box.run("exit 0", "--keep")
    assert box.status == "stopped"
    box.delete()


def test_detach(box: Box) -> None:
    box.sh("echo up; sleep 1000")
    box.write()
    result = box.runtime("run", "--detach", "--bundle", box.path, box.id, out=box.out_file)
    assert result.err == ""
    assert box.status == "running"
    box.wait_for_output("up")
    box.delete("--force")


def test_detached_process_survives_the_runtime_with_its_streams(box: Box) -> None:
    box.sh("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    box.write()
    box.runtime("run", "--detach", "--bundle", box.path, box.id, out=box.out_file)
    box.wait_for_output("up")
    pid = box.pid
    box.kill("TERM")
    assert box.exit_status(pid) == 0
    assert box.out == "up\nbye\n"


def wait_until_up(path: Path) -> None:
    end = time.monotonic() + 10
    while "up" not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < end, "the container did not come up"
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT", "ALRM"])
def test_signals_are_forwarded(box: Box, place: Path, name: str) -> None:
    box.sh(f"trap 'echo got; exit 7' {name}; echo up; while :; do sleep 0.05; done")
    box.write()
    with (place / "log").open("wb") as log:
        process = box.runtime.popen("run", "--bundle", box.path, box.id, stdout=log)
        wait_until_up(place / "log")
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(20) == 7
    assert (place / "log").read_text() == "up\ngot\n"


@peer_fails("runc", "1.1.5 forwards SIGURG, with which Go preempts its own threads")
@peer_fails("crun", "1.8.1 forwards both")
def test_signals_of_the_terminal_and_of_children_are_not_forwarded(box: Box, place: Path) -> None:
    box.sh('for s in WINCH URG CHLD; do trap "echo $s" $s; done; echo up; read line; echo end')
    box.write()
    with (place / "log").open("wb") as log:
        process = box.runtime.popen("run", "--bundle", box.path, box.id, stdout=log, stdin=subprocess.PIPE)
        wait_until_up(place / "log")
        for each in (signal.SIGWINCH, signal.SIGURG, signal.SIGCHLD):
            process.send_signal(each)
        time.sleep(0.2)
        process.communicate(b"\n", timeout=20)
        assert process.returncode == 0
    assert (place / "log").read_text() == "up\nend\n"


def test_killing_the_foreground_runtime_leaves_a_container_that_delete_ends(box: Box, place: Path) -> None:
    box.sh("echo up; sleep 1000")
    box.write()
    with (place / "log").open("wb") as log:
        process = box.runtime.popen("run", "--bundle", box.path, box.id, stdout=log)
        wait_until_up(place / "log")
        process.kill()
        process.wait(10)
    pid = box.pid
    assert alive(pid)
    box.delete("--force")
    wait_dead(pid)


def test_pid_file_and_detach(box: Box) -> None:
    box.sh("sleep 1000")
    box.write()
    box.runtime("run", "-d", "--pid-file", box.pid_file, "-b", box.path, box.id, out=box.out_file)
    assert box.pid_file.read_text() == str(box.pid)


def test_run_of_a_taken_id_leaves_the_container_alone(box: Box) -> None:
    box.create_and_start("sleep 1000")
    result = box.runtime("run", "--bundle", box.path, box.id, check=False)
    assert result.rc == 1
    assert box.status == "running"


def test_failing_run_leaves_nothing(box: Box) -> None:
    box.args("/nonexistent")
    result = box.run(check=False)
    assert result.rc != 0
    assert box.runtime("list", "--quiet").out == ""


@peer_fails("crun", "1.8.1 waits for every child, not for init")
def test_orphans_of_a_container_without_pid_namespace_end_with_it(box: Box) -> None:
    """Without a pid namespace a process that outlives init stays in the cgroup until delete."""
    box.namespace("pid", remove=True)
    result = box.run("setsid sleep 1004 >/dev/null 2>&1 & exit 5", check=False)
    assert result.rc == 5
    assert not cgroups(box.id)


@peer_fails("crun", "1.8.1 fails with closed streams")
def test_closed_streams(box: Box) -> None:
    """A caller that closed 0, 1 and 2 must not make the runtime's own files the container's streams."""
    box.sh("ls -l /proc/self/fd > /fds; exit 4")
    box.write()
    script = 'exec "$@" <&- >&- 2>&-'
    result = box.runtime(
        argv=["/bin/sh", "-c", script, "sh", *box.runtime.argv(["run", "--bundle", box.path, box.id])], check=False
    )
    assert result.rc == 4
    listing = (box.rootfs / "fds").read_text()
    assert str(box.runtime.root) not in listing
    assert "socket" not in listing
    assert os.fspath(box.path) not in listing

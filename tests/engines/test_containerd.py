"""containerd and ctr with ocirt, runc and crun as the binary of io.containerd.runc.v2."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import assert_nothing_left, make_space, need
from tests.engines.images import NAME
from tests.engines.space import Census, Space
from tests.harness.bundle import make_rootfs
from tests.harness.runtime import Result
from tests.harness.terminal import read_until, set_size

CONFIG = """
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs"]
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  restrict_oom_score_adj = true
"""


class Containerd:
    """The daemon in its space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.process = self.launch()

    def launch(self) -> subprocess.Popen[bytes]:
        log = (self.space.directory / "containerd.log").open("ab")
        process = self.space.popen("containerd", stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + 30
        while self.space("ctr", "version", rc=None).rc:
            assert time.monotonic() < end, (self.space.directory / "containerd.log").read_text()[-2000:]
            time.sleep(0.1)
        return process

    def restart(self) -> None:
        """Kill the daemon and start it again; the shims live on."""
        found = self.space("pidof", "containerd").out.split()
        self.space("kill", "-KILL", *found)
        self.process.wait(10)
        self.process = self.launch()


@pytest.fixture(scope="module")
def containerd(program: str, image: tuple[Path, Path]) -> Iterator[Containerd]:
    need("containerd", "ctr")
    space = make_space("containerd", program)
    try:
        space.write("/etc/containerd/config.toml", CONFIG)
        daemon = Containerd(space)
        for namespace in ("ocirt", "runc", "crun"):
            space("ctr", "--namespace", namespace, "images", "import", image[1])
        yield daemon
        daemon.process.kill()
        daemon.process.wait()
    finally:
        space.close()


class Ctr:
    """ctr in a namespace of the runtime."""

    def __init__(self, containerd: Containerd, runtime: str) -> None:
        self.containerd = containerd
        self.space = containerd.space
        self.runtime = runtime
        self.binary = self.space("sh", "-c", f"command -v {runtime}").out.strip()
        self.made: list[str] = []

    def argv(self, *arguments: str) -> list[str]:
        return ["ctr", "--namespace", self.runtime, *arguments]

    def __call__(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        __tracebackhide__ = True
        return self.space(*self.argv(*arguments), rc=rc, **options)

    def run(self, name: str, *command: str, flags: tuple[str, ...] = (), rc: int | None = 0, **options: Any) -> Result:
        """`run --rm`"""
        __tracebackhide__ = True
        self.made.append(name)
        return self("run", "--rm", *self.given(), *flags, NAME, name, *command, rc=rc, **options)

    def background(self, name: str, *command: str, flags: tuple[str, ...] = ()) -> None:
        """`run -d`"""
        __tracebackhide__ = True
        self.made.append(name)
        self("run", "--detach", "--null-io", *self.given(), *flags, NAME, name, *(command or ("sleep", "1000")))

    def given(self) -> tuple[str, ...]:
        return ("--cgroup", f"/{self.made[-1]}", "--runc-binary", self.binary)

    def status(self, name: str) -> str:
        lines = [line.split() for line in self("tasks", "ls").out.splitlines()]
        return next((line[2] for line in lines if line[0] == name), "")

    def wait_for(self, name: str, status: str) -> None:
        end = time.monotonic() + 15
        while (seen := self.status(name)) != status:
            assert time.monotonic() < end, f"{name} is {seen}, not {status}"
            time.sleep(0.1)

    def execute(self, name: str, *command: str, flags: tuple[str, ...] = (), rc: int | None = 0) -> Result:
        __tracebackhide__ = True
        return self("tasks", "exec", "--exec-id", f"x{os.urandom(3).hex()}", *flags, name, *command, rc=rc)

    def remove(self, name: str) -> None:
        """Kill and remove, whatever there is."""
        self("tasks", "rm", "--force", name, rc=None)
        self("containers", "rm", name, rc=None)


@pytest.fixture
def ctr(containerd: Containerd, runtime_name: str) -> Iterator[Ctr]:
    ctr = Ctr(containerd, runtime_name)
    yield ctr
    for name in ctr.made:
        ctr.remove(name)
    for name in ctr.made:
        assert_nothing_left(ctr.space, name)


def test_output_and_status(ctr: Ctr, name: str) -> None:
    result = ctr.run(name, "sh", "-c", "echo out; echo err >&2; exit 7", rc=7)
    assert (result.out, result.err) == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        ("/nonexistent", "no such file or directory|executable file"),
        ("nonexistent", "executable file"),
        ("/etc", "permission denied|operation not permitted"),
        ("/etc/passwd", "permission denied"),
    ],
)
def test_program_that_cannot_run(ctr: Ctr, name: str, command: str, pattern: str) -> None:
    """The message comes from the runtime's JSON log."""
    error = ctr.run(name, command, rc=1).err
    assert "OCI runtime create failed" in error
    assert "unable to retrieve OCI runtime error" not in error
    assert re.search(pattern, error, re.IGNORECASE)


def test_delayed_input(ctr: Ctr, name: str) -> None:
    ctr.made.append(name)
    command = " ".join(ctr.argv("run", "--rm", *ctr.given(), NAME, name, "cat"))
    assert ctr.space("sh", "-c", f"(echo word; sleep 1) | {command}").out == "word\n"


def test_much_output(ctr: Ctr, name: str) -> None:
    """20 MB arrive complete and unchanged.

    The pause: 1.6's client closes the fifos when the task has ended, read or not (task.go, Delete), with every shim.
    """
    ctr.made.append(name)
    script = "'head -c 20000000 /dev/zero; sleep 1'"
    command = " ".join(ctr.argv("run", "--rm", *ctr.given(), NAME, name, "sh", "-c", script))
    expected = hashlib.md5(bytes(20_000_000), usedforsecurity=False).hexdigest()
    assert ctr.space("sh", "-c", f"{command} | md5sum").out.split()[0] == expected


def in_terminal(ctr: Ctr, *arguments: str, rc: int | None = 0) -> Result:
    """Run with a terminal of 33 rows and 91 columns."""
    command = "stty rows 33 cols 91; " + " ".join(ctr.argv(*arguments))
    return ctr.space("script", "--quiet", "--return", "--command", command, "/dev/null", rc=rc)


def test_terminal(ctr: Ctr, name: str) -> None:
    ctr.made.append(name)
    script = "'sleep 0.5; tty; stty size; exit 3'"
    result = in_terminal(ctr, "run", "--rm", "--tty", *ctr.given(), NAME, name, "sh", "-c", script, rc=3)
    assert "/dev/" in result.out
    assert "33 91" in result.out


def test_resized_terminal(ctr: Ctr, name: str) -> None:
    """ctr follows the size of its terminal while the task runs."""
    ctr.made.append(name)
    script = "while [ ! -e /end ]; do stty size; sleep 0.1; done; exit 3"
    argv = ctr.argv("run", "--rm", "--tty", *ctr.given(), NAME, name, "sh", "-c", script)
    master, slave = pty.openpty()
    set_size(master, 33, 91)
    running = ctr.space.popen("setsid", "--ctty", "--wait", *argv, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        read_until(master, b"33 91")
        for columns in range(55, 60):  # ctr asks for SIGWINCH a moment after it has set the first size
            set_size(master, 44, columns)
            with contextlib.suppress(AssertionError):
                read_until(master, b"44 %d" % columns, 2)
                break
        else:
            pytest.fail("the terminal inside has kept its size")
        ctr.execute(name, "touch", "/end")
        assert running.wait(20) == 3
    finally:
        running.kill()
        running.wait()
        os.close(master)


def test_life(ctr: Ctr, name: str) -> None:
    ctr.background(name)
    seen = [ctr.status(name)]
    ctr("tasks", "pause", name)
    seen.append(ctr.status(name))
    ctr("tasks", "resume", name)
    seen.append(ctr.status(name))
    ctr("tasks", "kill", "--signal", "KILL", name)
    ctr.wait_for(name, "STOPPED")
    assert seen == ["RUNNING", "PAUSED", "RUNNING"]
    ctr("tasks", "rm", name)
    assert "not found" in ctr("tasks", "rm", name, rc=1).err
    assert "not found" in ctr("tasks", "kill", name, rc=1).err
    ctr("containers", "rm", name)
    assert "not found" in ctr("tasks", "pause", name, rc=1).err


def test_kill_of_what_has_ended(ctr: Ctr, name: str) -> None:
    """The shim takes from the text that the process is gone."""
    ctr.background(name, "true")
    ctr.wait_for(name, "STOPPED")
    assert "process already finished: not found" in ctr("tasks", "kill", name, rc=1).err


def test_exec(ctr: Ctr, name: str) -> None:
    ctr.background(name)
    result = ctr.execute(name, "sh", "-c", "echo out; echo err >&2; exit 9", rc=9)
    assert (result.out, result.err) == ("out\n", "err\n")
    assert ctr.execute(name, "pwd", flags=("--cwd", "/tmp")).out == "/tmp\n"
    assert ctr.execute(name, "id", "-u", flags=("--user", "1000")).out == "1000\n"
    assert re.search("executable file|no such file", ctr.execute(name, "/nope", rc=1).err, re.IGNORECASE)
    ctr.execute(name, "sh", "-c", "kill -9 $$", rc=137)
    command = ("tasks", "exec", "--tty", "--exec-id", "t", name, "sh", "-c", "'sleep 0.5; stty size; exit 4'")
    assert "33 91" in in_terminal(ctr, *command, rc=4).out


def test_exec_in_paused(ctr: Ctr, name: str) -> None:
    ctr.background(name)
    ctr("tasks", "pause", name)
    ctr.execute(name, "true", rc=1)
    ctr("tasks", "resume", name)
    ctr.execute(name, "true")


def test_processes_and_metrics(ctr: Ctr, name: str) -> None:
    ctr.background(name, "sh", "-c", "sleep 1000 & sleep 1000")
    time.sleep(0.3)
    assert len(ctr("tasks", "ps", name).out.splitlines()) == 1 + 2
    metrics = json.loads(ctr("tasks", "metrics", "--format", "json", name).out)
    assert metrics


def test_events(ctr: Ctr, name: str) -> None:
    """create before start before exit before delete; an exec's exit before init's."""
    file = ctr.space.directory / f"events-{name}"
    with file.open("wb") as out:
        watching = ctr.space.popen(*ctr.argv("events"), stdout=out)
    time.sleep(0.5)
    ctr.background(name)
    ctr.execute(name, "true")
    ctr("tasks", "kill", "--signal", "KILL", name)
    ctr.wait_for(name, "STOPPED")
    ctr("tasks", "rm", name)
    time.sleep(0.5)
    watching.kill()
    watching.wait()
    topics = re.findall(r"/tasks/[a-z-]+", file.read_text())
    assert topics == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ]


def test_memory(ctr: Ctr, name: str) -> None:
    """What goes beyond the limit is killed."""
    flags = ("--memory-limit", str(32 << 20))
    ctr.run(name, "sh", "-c", "head -c 300000000 /dev/zero | tail -c 300000000 | wc -c; exit $?", flags=flags, rc=None)
    failed = f"{name}b"
    assert ctr.run(failed, "tail", "-c", "300000000", "/dev/zero", flags=flags, rc=137).rc == 137


def test_flags(ctr: Ctr, name: str) -> None:
    """Host network, privileged, seccomp, user namespace, read-only."""
    assert "lo" in ctr.run(f"{name}a", "ls", "/sys/class/net", flags=("--net-host",)).out
    ctr.run(f"{name}b", "true", flags=("--privileged",))
    ctr.run(f"{name}c", "true", flags=("--seccomp",))
    mapped = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
    assert ctr.run(f"{name}d", "cat", "/proc/self/uid_map", flags=mapped).out.split() == ["0", "100000", "65536"]
    ctr.run(f"{name}e", "touch", "/x", flags=("--read-only",), rc=1)
    assert ctr.run(f"{name}f", "sh", "-c", "echo $A; pwd", flags=("--env", "A=b", "--cwd", "/tmp")).out == "b\n/tmp\n"


def test_log_uri(ctr: Ctr, name: str) -> None:
    file = ctr.space.directory / f"log-{name}"
    ctr.made.append(name)
    ctr("run", "--detach", "--log-uri", f"file://{file}", *ctr.given(), NAME, name, "echo", "logged")
    ctr.wait_for(name, "STOPPED")
    assert file.read_text() == "logged\n"


def test_logging_program(ctr: Ctr, name: str) -> None:
    """--log-uri binary://"""
    log = ctr.space.directory / f"log-{name}"
    program = f"#!/bin/sh\nexec 5>&-\n(cat <&3; cat <&4) > {log}\n"
    ctr.space.write("/usr/local/bin/logger-of-tests", program, 0o755)
    ctr.made.append(name)
    uri = "binary:///usr/local/bin/logger-of-tests?key=value"
    ctr("run", "--detach", "--log-uri", uri, *ctr.given(), NAME, name, "echo", "logged")
    ctr.wait_for(name, "STOPPED")
    end = time.monotonic() + 10
    while not log.exists() or log.read_text() != "logged\n":
        assert time.monotonic() < end, log.exists() and log.read_text()
        time.sleep(0.05)


def test_config_file(ctr: Ctr, name: str) -> None:
    """A configuration of one's own, made of what `spec` writes."""
    ctr.made.append(name)
    directory = ctr.space.directory / name
    directory.mkdir()
    maker = "runc" if ctr.runtime == "crun" else ctr.binary  # crun's differs
    ctr.space(maker, "spec", "--bundle", str(directory))
    config = json.loads((directory / "config.json").read_text())
    config["process"] |= {"args": ["/bin/echo", "from a file"], "terminal": False}
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(ctr.space.directory / "config-rootfs")}
    config["linux"]["cgroupsPath"] = f"/{name}"
    if not (ctr.space.directory / "config-rootfs").exists():
        make_rootfs(ctr.space.directory / "config-rootfs")
    (directory / "config.json").write_text(json.dumps(config))
    given = ("--runc-binary", ctr.binary, "--config", str(directory / "config.json"))
    assert ctr("run", "--rm", *given, name).out == "from a file\n"


def test_restart_of_the_daemon(ctr: Ctr, name: str) -> None:
    """A live task survives and obeys afterwards."""
    ctr.background(name)
    ctr.containerd.restart()
    assert ctr.status(name) == "RUNNING"
    assert ctr.execute(name, "echo", "still here").out == "still here\n"
    ctr("tasks", "kill", "--signal", "KILL", name)
    ctr.wait_for(name, "STOPPED")
    ctr("tasks", "rm", name)


def test_death_of_the_shim(ctr: Ctr, name: str) -> None:
    """containerd runs the shim's `delete`, and that `delete --force` of the runtime: the container is ended."""
    ctr.background(name)
    listing = ctr.space("ps", "-eo", "pid,args").out.splitlines()
    (shim,) = [line.split()[0] for line in listing if f"-id {name} " in line and "containerd-shim" in line]
    ctr.space("kill", "-KILL", shim)
    end = time.monotonic() + 15
    while ctr.status(name) not in ("", "STOPPED", "UNKNOWN"):
        assert time.monotonic() < end
        time.sleep(0.1)
    ctr.remove(name)
    assert_nothing_left(ctr.space, name)


@pytest.mark.timeout(500)
def test_hundred(containerd: Containerd, name: str) -> None:
    """100 containers, 8 at a time, started and stopped: none lost, nothing left behind."""
    ctr = Ctr(containerd, "ocirt")
    ctr.run(name, "true")  # what there is once for all
    census = Census(containerd.space)

    def one(number: int) -> str:
        id = f"{name}n{number}"
        given = ("--cgroup", f"/{id}", "--runc-binary", ctr.binary)
        assert ctr("run", "--rm", *given, NAME, id, "echo", id).out == f"{id}\n"
        return id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(one, range(100)))
    assert len(set(ids)) == 100
    assert name not in ctr("containers", "ls").out
    assert not census.new()
    for id in ids:
        assert_nothing_left(ctr.space, id)


def test_signals_are_forwarded(ctr: Ctr, name: str) -> None:
    """`ctr run` in the foreground sends its signals on."""
    ctr.made.append(name)
    script = "trap 'echo got it; exit 8' USR1; echo ready; while :; do sleep 0.1; done"
    out = ctr.space.directory / f"signals-{name}"
    with out.open("wb") as stdout:
        running = ctr.space.popen(*ctr.argv("run", "--rm", *ctr.given(), NAME, name, "sh", "-c", script), stdout=stdout)
    end = time.monotonic() + 20
    while "ready" not in out.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    ctr("tasks", "kill", "--signal", "USR1", name)
    assert running.wait(20) == 8
    assert out.read_text() == "ready\ngot it\n"

"""containerd and ctr with io.containerd.ocirt.v1: the tests of io.containerd.runc.v2 (tests/engines/test_containerd.py)
with the same outcomes, and what only a shim of one's own can get wrong.

OCIRT_TEST_CONTAINERD names a directory with another containerd and ctr than Debian's, for instance of version 2
(hack/containerd builds one).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines import test_containerd as runc
from tests.engines.conftest import assert_nothing_left, make_space, need
from tests.engines.grpc import call
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.engines.test_containerd import (  # noqa: F401 (they are tests)
    CONFIG,
    Containerd,
    Ctr,
    test_config_file,
    test_death_of_the_shim,
    test_delayed_input,
    test_events,
    test_exec,
    test_exec_in_paused,
    test_flags,
    test_kill_of_what_has_ended,
    test_life,
    test_log_uri,
    test_logging_program,
    test_memory,
    test_much_output,
    test_output_and_status,
    test_processes_and_metrics,
    test_program_that_cannot_run,
    test_resized_terminal,
    test_restart_of_the_daemon,
    test_signals_are_forwarded,
    test_terminal,
)

NAMESPACE = "shim"
SOCKET = "/run/containerd/containerd.sock"
OTHER = os.environ.get("OCIRT_TEST_CONTAINERD", "")


def install(space: Space) -> None:
    """Perhaps another containerd than Debian's."""
    for program in ("containerd", "ctr", "containerd-shim-runc-v2") if OTHER else ():
        if (Path(OTHER) / program).exists():
            space.write(f"/usr/local/bin/{program}", f'#!/bin/sh\nexec {OTHER}/{program} "$@"\n', 0o755)


@pytest.fixture(scope="module")
def containerd(program: str, image: tuple[Path, Path]) -> Iterator[Containerd]:
    need("containerd", "ctr")
    space = make_space("shim", program)
    try:
        space.write("/etc/containerd/config.toml", CONFIG)
        install(space)
        daemon = Containerd(space)
        for namespace in (NAMESPACE, "ocirt"):
            space("ctr", "--namespace", namespace, "images", "import", image[1])
        yield daemon
        daemon.process.kill()
        daemon.process.wait()
    finally:
        space.close()


class ShimCtr(Ctr):
    """ctr whose containers get our shim."""

    def argv(self, *arguments: str) -> list[str]:
        return ["ctr", "--namespace", NAMESPACE, *arguments]

    def given(self) -> tuple[str, ...]:
        return ("--cgroup", f"/{self.made[-1]}", "--runtime", "io.containerd.ocirt.v1")

    def shims(self, id: str) -> list[int]:
        """Pids of the shims that were started for a container, in the space."""
        listing = self.space("ps", "-eo", "pid,stat,args").out.splitlines()[1:]
        return [
            int(line.split()[0])
            for line in listing
            if f"-id {id} " in f"{line} " and "containerd-shim" in line and not line.split()[1].startswith("Z")
        ]

    def sockets(self) -> list[str]:
        directory = self.space.root / "run/containerd/s"
        names = os.listdir(directory) if directory.exists() else []
        return [name for name in names if not name.endswith(".spare")]  # it waits for the next container


@pytest.fixture
def ctr(containerd: Containerd) -> Iterator[ShimCtr]:
    ctr = ShimCtr(containerd, "ocirt")
    yield ctr
    for name in ctr.made:
        ctr.remove(name)
    for name in ctr.made:
        assert_nothing_left(ctr.space, name)
    end = time.monotonic() + 5
    while ctr.sockets() and time.monotonic() < end:
        time.sleep(0.05)
    assert ctr.sockets() == [], "sockets of shims that are gone"


def test_it_is_our_shim(ctr: ShimCtr, name: str) -> None:
    ctr.background(name)
    assert len(ctr.shims(name)) == 1
    shim = ctr.shims(name)[0]
    assert "containerd-shim-ocirt-v1" in ctr.space("cat", f"/proc/{shim}/cmdline").out
    assert not ctr.space.processes("containerd-shim-runc-v2")


def test_killed_from_outside(ctr: ShimCtr, name: str) -> None:
    """137, as `ctr run` says it."""
    ctr.made.append(name)
    running = ctr.space.popen(*ctr.argv("run", "--rm", *ctr.given(), NAME, name, "sleep", "1000"))
    ctr.wait_for(name, "RUNNING")
    pid = next(line.split()[1] for line in ctr("tasks", "ls").out.splitlines() if line.split()[0] == name)
    ctr.space("kill", "-KILL", pid)
    assert running.wait(20) == 137


def test_events_when_the_shim_is_killed(ctr: ShimCtr, name: str) -> None:
    """containerd has `delete` end the container and tells of 137."""
    file = ctr.space.directory / f"events-{name}"
    with file.open("wb") as out:
        watching = ctr.space.popen(*ctr.argv("events"), stdout=out)
    time.sleep(0.5)
    ctr.background(name)
    (shim,) = ctr.shims(name)
    ctr.space("kill", "-KILL", str(shim))
    end = time.monotonic() + 15
    while "/tasks/delete" not in file.read_text():
        assert time.monotonic() < end, file.read_text()
        time.sleep(0.1)
    watching.kill()
    watching.wait()
    text = file.read_text()
    assert re.search(r'/tasks/exit .*"exit_status":137', text), text
    ctr("containers", "rm", name)
    assert_nothing_left(ctr.space, name)


def test_out_of_memory_is_told(ctr: ShimCtr, name: str) -> None:
    file = ctr.space.directory / f"events-{name}"
    with file.open("wb") as out:
        watching = ctr.space.popen(*ctr.argv("events"), stdout=out)
    time.sleep(0.5)
    ctr.run(name, "tail", "-c", "300000000", "/dev/zero", flags=("--memory-limit", str(32 << 20)), rc=137)
    time.sleep(0.5)
    watching.kill()
    watching.wait()
    topics = re.findall(r"/tasks/[a-z-]+", file.read_text())
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


def test_metrics(ctr: ShimCtr, name: str) -> None:
    """`ctr` understands what we count."""
    ctr.background(name)
    metrics = json.loads(ctr("tasks", "metrics", "--format", "json", name).out)
    if "memory" in metrics and "usage" in metrics["memory"] and isinstance(metrics["memory"]["usage"], dict):
        assert metrics["memory"]["usage"]["usage"] > 0
        assert metrics["cpu"]["usage"]["total"] > 0
    else:
        assert metrics["memory"]["usage"] > 0
    assert metrics["pids"]["current"] == 1


def test_update(ctr: ShimCtr, name: str) -> None:
    """By containerd's API: ctr has no command for it."""
    ctr.background(name)
    resources = {"memory": {"limit": 70 << 20}, "pids": {"limit": 47}}
    any_ = {1: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", 2: json.dumps(resources)}
    request = {1: name, 2: any_}
    with_namespace(ctr, "Update", request)
    shown = ctr.space("sh", "-c", f"cat /sys/fs/cgroup/pids/{name}/pids.max || cat /sys/fs/cgroup/{name}/pids.max").out
    assert shown == "47\n"


def with_namespace(ctr: ShimCtr, method: str, request: dict[int, object]) -> dict[int, object]:
    """A call of containerd's Tasks service in the namespace of the tests."""
    header = {"containerd-namespace": NAMESPACE}
    return call(ctr.space, SOCKET, f"containerd.services.tasks.v1.Tasks/{method}", request, header)


def test_twenty_at_once(ctr: ShimCtr, name: str) -> None:
    def one(number: int) -> str:
        id = f"{name}n{number}"
        given = ("--cgroup", f"/{id}", "--runtime", "io.containerd.ocirt.v1")
        return ctr("run", "--rm", *given, NAME, id, "echo", id).out

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(one, range(20))) == sorted(f"{name}n{number}\n" for number in range(20))
    assert_nothing_left(ctr.space, name)


@pytest.mark.parametrize("which", ["containerd", "both"])
def test_sudden_death(ctr: ShimCtr, name: str, which: str) -> None:
    """kill -9 of containerd, or of it and the shim: after its restart the task is there, or gone with all it had."""
    ctr.background(name)
    (shim,) = ctr.shims(name)
    found = ctr.space("pidof", "containerd").out.split()
    ctr.space("kill", "-KILL", *found, *([str(shim)] if which == "both" else []))
    ctr.containerd.process.wait(10)
    ctr.containerd.process = ctr.containerd.launch()
    if which == "containerd":
        assert ctr.status(name) == "RUNNING"
        assert ctr.execute(name, "echo", "word").out == "word\n"
        return
    end = time.monotonic() + 15
    while ctr.status(name) not in ("", "STOPPED", "UNKNOWN"):
        assert time.monotonic() < end, ctr.status(name)
        time.sleep(0.1)
    assert not ctr.space.processes("sleep 1000")
    ctr.remove(name)


def test_end_while_containerd_is_away(ctr: ShimCtr, name: str) -> None:
    """The exit status is told when it is back."""
    ctr.background(name, "sh", "-c", "sleep 1.5; exit 9")
    found = ctr.space("pidof", "containerd").out.split()
    ctr.space("kill", "-KILL", *found)
    ctr.containerd.process.wait(10)
    time.sleep(2)
    ctr.containerd.process = ctr.containerd.launch()
    if OTHER and not ctr.status(name):
        return  # from 2.0 on a shim without processes counts as leaked, containerd's own as well: `delete` is called
    ctr.wait_for(name, "STOPPED")
    assert "exit code 9" in ctr("tasks", "rm", name, rc=None).err


def test_options_of_a_file(ctr: ShimCtr, name: str) -> None:
    """--runtime-config-path: TOML, as the CRI plugin has it in its configuration."""
    root = "/run/other-root"
    ctr.space.write("/etc/ocirt-shim.toml", f'Root = "{root}"\n')
    ctr.made.append(name)
    flags = ("--runtime-config-path", "/etc/ocirt-shim.toml")
    ctr("run", "--detach", "--null-io", *ctr.given(), *flags, NAME, name, "sleep", "1000")
    assert (ctr.space.root / root.lstrip("/") / NAMESPACE / name).is_dir()


def test_large_input(ctr: ShimCtr, name: str) -> None:
    """5 MB in, 5 MB out."""
    data = os.urandom(5_000_000)
    file = ctr.space.directory / f"data-{name}"
    file.write_bytes(data)
    ctr.made.append(name)
    command = " ".join(ctr.argv("run", "--rm", *ctr.given(), NAME, name, "cat"))
    out = ctr.space("sh", "-c", f"(sleep 0.5; cat {file}; sleep 1) | {command} | md5sum").out
    assert out.split()[0] == hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_checkpoint(ctr: ShimCtr, name: str) -> None:
    """Without CRIU an error, and the task lives on."""
    ctr.background(name)
    result = ctr("tasks", "checkpoint", name, rc=None)
    if result.rc:
        assert "criu" in result.err.lower()
    assert ctr.status(name) == "RUNNING"


def test_both_shims_side_by_side(ctr: ShimCtr, containerd: Containerd, name: str) -> None:
    """A container of ours and one of io.containerd.runc.v2 with our runtime, in one containerd."""
    other = runc.Ctr(containerd, "ocirt")
    ctr.background(name)
    other.background(f"{name}b")
    assert (ctr.status(name), other.status(f"{name}b")) == ("RUNNING", "RUNNING")
    other.remove(f"{name}b")
    assert ctr.execute(name, "echo", "word").out == "word\n"
    assert_nothing_left(ctr.space, f"{name}b")

"""containerd's tasks beyond what test_containerd does by ctr: update, checkpoint, death from outside, restarts."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.cli.test_criu import criu_works
from tests.engines.grpc import GrpcError, call
from tests.engines.images import NAME
from tests.engines.test_containerd import Containerd, Ctr, containerd, ctr

__all__ = ["containerd", "ctr"]  # fixtures

SOCKET = "/run/containerd/containerd.sock"
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def update(ctr: Ctr, name: str, resources: object) -> None:
    """Tasks.Update; ctr has no command for it."""
    value = {1: RESOURCES, 2: json.dumps(resources)}
    method = "containerd.services.tasks.v1.Tasks/Update"
    call(ctr.space, SOCKET, method, {1: name, 2: value}, {"containerd-namespace": ctr.runtime})


def test_update(ctr: Ctr, name: str) -> None:
    ctr.background(name, flags=("--memory-limit", str(64 << 20)))
    update(ctr, name, {"memory": {"limit": 80 << 20}, "pids": {"limit": 44}})
    pid = next(line.split()[1] for line in ctr("tasks", "ls").out.splitlines() if line.startswith(name))
    lines = ctr.space("cat", f"/proc/{pid}/cgroup").out.split()
    groups = {name: line.split(":")[2] for line in lines for name in line.split(":")[1].split(",")}
    for controller, file, wanted in (("memory", "memory.limit_in_bytes", 80 << 20), ("pids", "pids.max", 44)):
        assert ctr.space("cat", f"/sys/fs/cgroup/{controller}{groups[controller]}/{file}").out == f"{wanted}\n"


def test_update_that_can_not_be(ctr: Ctr, name: str) -> None:
    ctr.background(name)
    with pytest.raises(GrpcError, match=r"(?i)cpuset"):
        update(ctr, name, {"cpu": {"cpus": "4000"}})
    assert ctr.status(name) == "RUNNING"


@pytest.mark.skipif(criu_works(), reason="CRIU works with this kernel")
def test_checkpoint_without_criu(ctr: Ctr, name: str) -> None:
    """The runtime's own words arrive, and the task runs on."""
    ctr.background(name)
    images = str(ctr.space.directory / f"images-{name}")
    failed = ctr("tasks", "checkpoint", "--image-path", images, name, rc=1)
    assert re.search("unknown command" if ctr.runtime == "crun" else "criu", failed.err, re.IGNORECASE), failed
    assert ctr.status(name) == "RUNNING"


def test_out_of_memory_is_an_event(ctr: Ctr, name: str) -> None:
    file = ctr.space.directory / f"events-{name}"
    with file.open("wb") as out:
        watching = ctr.space.popen(*ctr.argv("events"), stdout=out)
    time.sleep(0.3)
    ctr.run(name, "tail", "-c", "300000000", "/dev/zero", flags=("--memory-limit", str(32 << 20)), rc=137)
    end = time.monotonic() + 10
    while "/tasks/oom" not in file.read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    watching.kill()
    watching.wait()


def test_killed_from_outside(ctr: Ctr, name: str) -> None:
    """By the kernel or an administrator, not through the runtime."""
    ctr.made.append(name)
    out = ctr.space.directory / f"out-{name}"
    with out.open("wb") as stdout:
        running = ctr.space.popen(
            *ctr.argv("run", "--rm", *ctr.given(), NAME, name, "sh", "-c", "echo ready; sleep 1000"), stdout=stdout
        )
    ctr.wait_for(name, "RUNNING")
    pid = next(line.split()[1] for line in ctr("tasks", "ls").out.splitlines() if line.startswith(name))
    ctr.space("kill", "-KILL", pid)
    assert running.wait(30) == 137
    assert name not in ctr("containers", "ls").out


def test_restart_of_the_daemon_with_paused_and_dead_tasks(containerd: Containerd, ctr: Ctr, name: str) -> None:
    """What paused is paused afterwards; what has ended while nobody looked has its exit status."""
    paused, ending = f"{name}p", f"{name}e"
    ctr.background(paused)
    ctr("tasks", "pause", paused)
    ctr.background(ending, "sh", "-c", "sleep 1; exit 6")
    containerd.restart()
    assert ctr.status(paused) == "PAUSED"
    ctr("tasks", "resume", paused)
    assert ctr.execute(paused, "echo", "again").out == "again\n"
    ctr.wait_for(ending, "STOPPED")
    assert "exit code 6" in ctr("tasks", "rm", ending).err


def test_metrics_are_the_same(containerd: Containerd, name: str) -> None:
    """The statistics come from the shim, of the cgroups that the runtime has made."""
    seen = {}
    for runtime in ("ocirt", "runc", "crun"):
        ctr = Ctr(containerd, runtime)
        ctr.background(name, flags=("--memory-limit", str(64 << 20)))
        metrics = json.loads(ctr("tasks", "metrics", "--format", "json", name).out)
        assert metrics["memory"]["usage"]["limit"] == 64 << 20
        # what is zero is left out of the rest
        seen[runtime] = (set(metrics), set(metrics["memory"]["usage"]), set(metrics["pids"]))
        ctr.remove(name)
    assert seen["ocirt"] == seen["runc"] == seen["crun"]

"""Exec, Pids, Stats, Update and Checkpoint: what they do to the container."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.engines.containerd import schema, ttrpc
from tests.engines.containerd.engine import RESOURCES, RUNNING, STOPPED, Engine, Task, json_any


def test_exec(engine: Engine) -> None:
    """Its own output, exit status, user, directory and environment."""
    task = engine.running()
    assert task.run("/bin/sh", "-c", "echo out; exit 9") == (9, b"out\n")
    assert task.run("/bin/pwd", spec={"cwd": "/tmp"}) == (0, b"/tmp\n")
    assert task.run("/bin/id", "-u", spec={"user": {"uid": 1000, "gid": 1000}}) == (0, b"1000\n")
    assert task.run("/bin/sh", "-c", "echo $A", spec={"env": ["A=b", "PATH=/bin"]}) == (0, b"b\n")
    assert task.run("/bin/sh", "-c", "kill -9 $$")[0] == 137
    assert task.run("hostname")[1] == b"box\n"
    task.end()


def test_state_of_an_exec(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/bin/sleep", "1000")
    state = task.state(id)
    assert (state.status, state.pid) == (1, 0)
    pid = task.start(id)
    state = task.state(id)
    assert (state.id, state.status, state.pid, state.bundle) == (id, RUNNING, pid, str(task.bundle.path))
    task("Pause")
    assert task.state(id).status == 4, "an exec is paused with its container"
    task("Resume")
    task.kill(15, exec_id=id)
    assert task.wait(id) == 143
    state = task.state(id)
    assert (state.status, state.exit_status) == (STOPPED, 143)
    response = task.delete(id)
    assert (response.pid, response.exit_status) == (pid, 143)
    assert task.fails("State", exec_id=id).code == ttrpc.NOT_FOUND
    assert task.status == RUNNING
    task.end()


def test_exec_that_was_never_started(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/bin/true")
    task.delete(id)
    assert task.fails("State", exec_id=id).code == ttrpc.NOT_FOUND
    assert task.exec("/bin/true", id=id) == id
    task.delete(id)
    task.end()


def test_many_execs_at_once(engine: Engine) -> None:
    """Twenty started in one go: each has its own status."""
    task = engine.running()
    ids = [task.exec("/bin/sh", "-c", f"exit {number}") for number in range(20)]
    starts = [task.shim.begin("Start", id=task.id, exec_id=id) for id in ids]
    waits = [task.shim.begin("Wait", id=task.id, exec_id=id) for id in ids]
    pids = {task.shim.result(stream).pid for stream in starts}
    assert len(pids) == 20
    assert [task.shim.result(stream).exit_status for stream in waits] == list(range(20))
    for id in ids:
        task.delete(id)
    task.end()


def test_wait_for_an_exec_before_its_start(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/bin/sh", "-c", "exit 6")
    stream = task.shim.begin("Wait", id=task.id, exec_id=id)
    assert not task.shim.answered(stream, 0.2)
    task.start(id)
    assert task.shim.result(stream).exit_status == 6
    task.delete(id)
    task.end()


def test_processes(engine: Engine) -> None:
    """Every process of the cgroup; an exec's is named."""
    task = engine.running("sleep 1000 & sleep 1000")
    id = task.exec("/bin/sh", "-c", "sleep 1000 & wait")
    pid = task.start(id)
    end = time.monotonic() + 10
    while len(task.pids()) < 4:
        assert time.monotonic() < end, task.pids()
        time.sleep(0.05)
    processes = task("Pids").processes
    named = {p.pid: schema.open_any(p.info).exec_id for p in processes if p.info.type_url}
    assert named == {pid: id}
    assert task.pid in [p.pid for p in processes]
    for process in processes:
        assert task.id in Path(f"/proc/{process.pid}/cgroup").read_text()
    task.end()


def metrics(task: Task) -> object:
    return schema.open_any(task("Stats").stats)


def test_stats(engine: Engine) -> None:
    """The numbers are those of the cgroup."""
    bundle = engine.bundle("n=0; while [ $n -lt 60000 ]; do n=$((n+1)); done; echo ready; sleep 1000")
    bundle.linux["resources"] |= {
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 100},
        "cpu": {"quota": 50000, "period": 100000},
    }
    task = engine.running(bundle=bundle)
    assert task.out
    task.out.until(b"ready")
    found: object = metrics(task)
    if type(found).__name__.startswith("cgroups1"):
        v1_numbers(task, found)
    else:
        v2_numbers(task, found)
    task.end()


def v1_numbers(task: Task, found: object) -> None:
    def read(controller: str, name: str) -> str:
        return Path("/sys/fs/cgroup", controller, task.id, name).read_text()

    m: object = found
    memory = m.memory  # type: ignore[attr-defined]
    assert memory.usage.limit == 64 << 20
    assert abs(memory.usage.usage - int(read("memory", "memory.usage_in_bytes"))) < 4 << 20
    assert memory.usage.max >= memory.usage.usage
    numbers = dict(line.split() for line in read("memory", "memory.stat").splitlines())
    assert memory.hierarchical_memory_limit == 64 << 20
    assert abs(memory.rss - int(numbers["rss"])) < 1 << 20
    assert memory.total_pg_fault > 0
    assert abs(memory.total_inactive_file - int(numbers["total_inactive_file"])) < 4 << 20
    pids = m.pids  # type: ignore[attr-defined]
    assert (pids.current, pids.limit) == (int(read("pids", "pids.current")), 100)
    cpu = m.cpu  # type: ignore[attr-defined]
    assert cpu.usage.total > 10_000_000
    assert abs(cpu.usage.total - int(read("cpuacct", "cpuacct.usage"))) < 500_000_000
    assert len(cpu.usage.per_cpu) >= (os.cpu_count() or 1)
    assert cpu.throttling.periods > 0
    assert 0 <= m.memory_oom_control.oom_kill < 2  # type: ignore[attr-defined]


def v2_numbers(task: Task, found: object) -> None:
    m: object = found
    memory = m.memory  # type: ignore[attr-defined]
    assert memory.usage_limit == 64 << 20
    assert memory.usage > 0
    assert memory.pgfault > 0
    pids = m.pids  # type: ignore[attr-defined]
    assert (pids.current, pids.limit) == (1, 100)
    assert m.cpu.usage_usec > 10_000  # type: ignore[attr-defined]
    assert m.cpu.nr_periods > 0  # type: ignore[attr-defined]


def test_stats_of_a_created_task(engine: Engine) -> None:
    task = engine.task()
    task.create()
    assert metrics(task).pids.current >= 1  # type: ignore[attr-defined]
    task.delete()
    task.leave()


def test_stats_without_a_limit(engine: Engine) -> None:
    """No limit: 0 for pids on v1, the largest number for memory."""
    task = engine.running()
    found = metrics(task)
    limit = found.pids.limit  # type: ignore[attr-defined]
    assert limit in (0, (1 << 64) - 1)
    task.end()


def limit(id: str, controller: str, v1: str, v2: str) -> str:
    """A limit of a container's cgroup, on either kind of host."""
    one = Path(f"/sys/fs/cgroup/{controller}/{id}/{v1}")
    return (one if one.exists() else Path(f"/sys/fs/cgroup/{id}/{v2}")).read_text().strip()


def test_update(engine: Engine) -> None:
    task = engine.running("sleep 1000")
    task("Update", resources=json_any(RESOURCES, {"memory": {"limit": 80 << 20}, "pids": {"limit": 55}}))
    assert limit(task.id, "pids", "pids.max", "pids.max") == "55"
    assert limit(task.id, "memory", "memory.limit_in_bytes", "memory.max") == str(80 << 20)
    task("Pause")
    task("Update", resources=json_any(RESOURCES, {"pids": {"limit": 44}}))
    assert limit(task.id, "pids", "pids.max", "pids.max") == "44"
    task("Resume")
    task.end()


def test_update_of_a_created_task(engine: Engine) -> None:
    task = engine.task()
    task.create()
    task("Update", resources=json_any(RESOURCES, {"pids": {"limit": 33}}))
    assert limit(task.id, "pids", "pids.max", "pids.max") == "33"
    task.delete()
    task.leave()


@pytest.mark.parametrize("value", [b"{", b'{"memory": {"limit": "much"}}', b"[]"])
def test_update_that_cannot_be(engine: Engine, value: bytes) -> None:
    task = engine.running()
    wrong = schema.message("google.protobuf.Any", type_url=RESOURCES, value=value)
    task.fails("Update", resources=wrong)
    assert task.status == RUNNING
    task.end()


def test_frozen_means_frozen(engine: Engine) -> None:
    """Nothing runs while paused."""
    task = engine.running("n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done")
    assert task.out
    task.out.until(b"3\n")
    task("Pause")
    time.sleep(0.2)
    before = len(task.out.data)
    time.sleep(0.4)
    assert len(task.out.data) == before
    task("Resume")
    end = time.monotonic() + 5
    while len(task.out.data) == before:
        assert time.monotonic() < end
        time.sleep(0.02)
    task.end()


def test_kill_of_a_paused_task(engine: Engine) -> None:
    """SIGKILL ends it, at the latest when it is resumed."""
    task = engine.running()
    task("Pause")
    task.kill()
    stream = task.shim.begin("Wait", id=task.id)
    if not task.shim.answered(stream, 1):
        task("Resume")
    assert task.shim.result(stream).exit_status == 137
    task.delete()
    task.leave()


def test_checkpoint(engine: Engine) -> None:
    """By CRIU; where that isn't to be had, an error that says so and a task that lives on."""
    task = engine.running()
    path = engine.place / "checkpoint"
    path.mkdir()
    options = schema.any_of("containerd.runc.v1.CheckpointOptions", work_path=str(engine.place / "work"))
    try:
        task("Checkpoint", path=str(path), options=options)
    except ttrpc.RpcError as error:
        assert not shutil.which("criu") or "criu" in error.text.lower()
        assert "criu" in error.text.lower() or engine.kind.name != "ocirt"
    assert task.status == RUNNING
    task.end()


def test_restore_from_nowhere(engine: Engine) -> None:
    """Create with a checkpoint that isn't there: an error, and nothing left."""
    task = engine.task()
    error: ttrpc.RpcError | None = None
    try:
        task.create(checkpoint=str(engine.place / "nowhere"))
        task.start()
    except ttrpc.RpcError as found:
        error = found
    assert error
    with contextlib.suppress(ttrpc.RpcError):
        task.delete()
    task.leave()


@pytest.mark.shim_fails("runc", "runc 1.1 runs poststart in create", always=False)
def test_hooks(engine: Engine) -> None:
    """Each at its time, in the runtime's namespaces."""
    file = engine.place / "hooks"
    bundle = engine.bundle("sleep 1000")
    names = ("prestart", "createRuntime", "poststart", "poststop")
    bundle.config["hooks"] = {
        name: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >/dev/null; echo {name} >> {file}"]}] for name in names
    }
    task = engine.task(bundle=bundle)
    task.create()
    assert file.read_text().split() == ["prestart", "createRuntime"]
    task.start()
    task.end()
    assert file.read_text().split() == list(names)


def test_hook_that_fails(engine: Engine) -> None:
    bundle = engine.bundle("sleep 1000")
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]}
    task = engine.task(bundle=bundle)
    error = task.shim.fails("Create", **task.request())
    assert "hook" in error.text
    task.leave()


def test_seccomp_and_user_namespace(engine: Engine) -> None:
    """What an engine asks for works in the shim as it does on the command line."""
    bundle = engine.bundle("mkdir /tmp/x$$ 2>&1; grep Seccomp: /proc/self/status; sleep 1000")
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    }
    task = engine.running(bundle=bundle)
    assert task.out
    text = task.out.until(b"Seccomp:\t2")
    assert b"Function not implemented" in text
    task.end()


@pytest.mark.parametrize("which", ["network", "ipc"])
def test_namespaces_of_a_pod(engine: Engine, which: str) -> None:
    """A container joins the namespaces of its sandbox by path."""
    annotation = {"io.kubernetes.cri.sandbox-id": f"{engine.name}n-pod"}
    sandbox = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    bundle = engine.bundle("sleep 1000", **annotation)
    name = {"network": "net"}.get(which, which)
    bundle.namespace(which, f"/proc/{sandbox.pid}/ns/{name}")
    member = engine.running(bundle=bundle)
    links = [os.readlink(f"/proc/{task.pid}/ns/{name}") for task in (sandbox, member)]
    assert links[0] == links[1]
    member.kill()
    member.wait()
    member.delete()
    member.shutdown()
    member._done = True
    engine.caller.delete(member.id, member.bundle.path)
    sandbox.end()


def test_shared_pid_namespace_of_a_pod(engine: Engine) -> None:
    """A container in its sandbox's pid namespace: the end of one is not the end of the other."""
    annotation = {"io.kubernetes.cri.sandbox-id": f"{engine.name}n-pod"}
    sandbox = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    bundle = engine.bundle("sleep 1000 & sleep 1000", **annotation)
    bundle.namespace("pid", f"/proc/{sandbox.pid}/ns/pid")
    member = engine.running(bundle=bundle)
    assert os.readlink(f"/proc/{member.pid}/ns/pid") == os.readlink(f"/proc/{sandbox.pid}/ns/pid")
    member.kill()
    assert member.wait() == 137
    member.delete()
    member.shutdown()
    member._done = True
    engine.caller.delete(member.id, member.bundle.path)
    assert sandbox.status == RUNNING
    sandbox.end()

"""Limits, and the commands for what runs: pause, resume, ps, update, events, exec into cgroups, kill --all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.peers import lacks, peer_fails

MIB = 1 << 20
UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def file(pid: int, controller: str, v1: str, v2: str) -> str:
    """What a file of the process's cgroup says, on whichever kind of host."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if UNIFIED and not names:
            return Path("/sys/fs/cgroup" + path, v2).read_text().strip()
        if controller in names.split(","):
            mounts = Path("/proc/self/mountinfo").read_text().splitlines()
            found = [m for m in mounts if " - cgroup " in m and controller in m.rpartition(" ")[2].split(",")]
            return Path(found[0].split()[4] + path, v1).read_text().strip()
    raise AssertionError(f"process {pid} has no {controller} cgroup")


def resources(box: Box, **sections: Any) -> None:
    box.linux["resources"].update(sections)


# -- limits of a container


def test_memory_limit_kills(box: Box) -> None:
    resources(box, memory={"limit": 24 * MIB, "swap": 24 * MIB})
    box.mount("/dev/shm", "tmpfs", "shm", ["size=64m"])
    result = box.run("dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null; echo $?", check=False)
    assert result.out.strip() == "137"  # dd was killed, the shell tells


def test_pids_limit_stops_a_fork_bomb(box: Box) -> None:
    resources(box, pids={"limit": 5})
    result = box.run("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo all", check=False)
    assert "all" not in result.out
    assert "resource temporarily unavailable" in result.text.lower() or "can't fork" in result.text.lower()


@peer_fails("runc", "ignores 0, which is a valid limit")
@peer_fails("crun", "ignores 0, which is a valid limit")
def test_a_pids_limit_of_zero_is_a_limit(box: Box) -> None:
    resources(box, pids={"limit": 0})
    box.args("/bin/sleep", "100")
    box.create()
    box.start()
    assert file(box.pid, "pids", "pids.max", "pids.max") in ("0", "1")


def test_a_single_process_is_enough_to_start(box: Box) -> None:
    resources(box, pids={"limit": 1})
    box.args("/bin/true")
    box.run()


@pytest.mark.parametrize("kib", [1024, 3072])
@peer_fails("runc", "needs 2.5 MiB to start", always=False)
def test_a_small_memory_limit_is_enough_to_start(box: Box, kib: int) -> None:
    resources(box, memory={"limit": kib << 10})
    box.args("/bin/true")
    box.run()


@peer_fails("runc", "says nothing of what would do")
@peer_fails("crun", "starts, or says nothing of what would do")
def test_a_memory_limit_that_is_too_small_names_one_that_would_do(box: Box) -> None:
    resources(box, memory={"limit": 32 << 10})
    box.namespace("cgroup")  # with it, init is charged from early on
    box.args("/bin/true")
    result = box.run(check=False)
    assert result.rc != 0
    assert "too small for start-up; " in result.err, result.err
    words = result.err.partition("too small for start-up; ")[2].split()
    assert words[1] == "would", result.err
    resources(box, memory={"limit": int(words[0])})
    box.run()


def test_a_denied_device_cannot_be_opened(box: Box) -> None:
    box.capabilities("CAP_MKNOD")
    result = box.run("mknod /tmp/mem c 1 1 && cat /tmp/mem; cat /dev/null && echo null", check=False)
    assert "operation not permitted" in result.err.lower()
    assert result.out.strip() == "null"


def test_an_allowed_device_can_be_opened(box: Box) -> None:
    box.capabilities("CAP_MKNOD", "CAP_SYSLOG")
    rule = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    box.linux["resources"]["devices"].append(rule)
    result = box.run("mknod /tmp/k c 1 11; exec 5</tmp/k && echo open; (exec 6>/tmp/k) || echo closed", check=False)
    assert result.out.split() == ["open", "closed"]


@peer_fails("runc", "warns only")
@peer_fails("crun", "doesn't look")
def test_a_cgroup_in_use_is_refused(box: Box, make_box: Any) -> None:
    box.create_and_start("exec sleep 100")
    other = make_box()
    other.linux["cgroupsPath"] = box.linux["cgroupsPath"]
    other.args("/bin/true")
    result = other.run(check=False)
    assert result.rc != 0
    assert "is not empty" in result.err
    assert box.status == "running"


# -- pause and resume

COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


def test_pause_stops_and_resume_goes_on(box: Box) -> None:
    box.create_and_start(COUNT)
    box.wait_for_output("2\n")
    box.runtime("pause", box.id)
    assert box.status == "paused"
    before = box.out
    time.sleep(0.3)
    assert box.out == before
    box.runtime("resume", box.id)
    assert box.status == "running"
    box.wait_for_output(f"{int(before.split()[-1]) + 3}\n")


@peer_fails("crun", "says created of what is paused")
def test_pause_of_a_created_container(box: Box) -> None:
    box.args("/bin/true")
    box.create()
    box.runtime("pause", box.id)
    assert box.status == "paused"
    box.runtime("resume", box.id)
    assert box.status == "created"


@peer_fails("crun", "leaves it frozen, so that it never dies", always=UNIFIED is False)
def test_a_paused_container_is_killed_and_deleted(box: Box) -> None:
    box.create_and_start("exec sleep 100")
    pid = box.pid
    box.runtime("pause", box.id)
    box.kill("KILL")
    assert box.exit_status(pid) == -signal.SIGKILL
    box.delete()


def test_a_paused_container_is_deleted_with_force(box: Box) -> None:
    box.create_and_start("sleep 100 & exec sleep 100")
    box.runtime("pause", box.id)
    box.delete("--force")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_pause_and_resume_of_what_is_stopped(box: Box, command: str) -> None:
    box.create_and_start("true")
    box.wait_for("stopped")
    assert box.runtime(command, box.id, check=False).rc != 0


@peer_fails("crun", "resumes what isn't paused")
def test_resume_of_what_runs(box: Box) -> None:
    box.create_and_start("exec sleep 100")
    assert box.runtime("resume", box.id, check=False).rc != 0


# -- ps


def test_ps_as_json_has_every_process(box: Box) -> None:
    box.create_and_start("sleep 100 & sleep 100 & echo on; exec sleep 100")
    box.wait_for_output("on")
    pids = json.loads(box.runtime("ps", "--format", "json", box.id).out)
    assert len(pids) == 3
    assert box.pid in pids


def test_ps_as_a_table(box: Box) -> None:
    box.create_and_start("sleep 123 & echo on; exec sleep 456")
    box.wait_for_output("on")
    header, *lines = box.runtime("ps", box.id).out.splitlines()
    assert "PID" in header.split()
    assert len(lines) == 2


@peer_fails("crun", "takes no arguments for ps")
def test_ps_with_arguments(box: Box) -> None:
    box.create_and_start("exec sleep 123")
    header, *lines = box.runtime("ps", box.id, "-o", "pid,args").out.splitlines()
    assert header.split() == ["PID", "COMMAND"]
    assert [line.split() for line in lines] == [[str(box.pid), "sleep", "123"]]


# -- update

FLAGS = [
    (("--memory", "48m", "--memory-swap", "64m"), ("memory", "memory.limit_in_bytes", "memory.max"), 48 * MIB),
    (("--memory-reservation", "16M"), ("memory", "memory.soft_limit_in_bytes", "memory.low"), 16 * MIB),
    (("--pids-limit", "77"), ("pids", "pids.max", "pids.max"), 77),
    (("--pids-limit", "-1"), ("pids", "pids.max", "pids.max"), "max"),
    (("--cpu-share", "512"), ("cpu", "cpu.shares", "cpu.weight"), (512, 59)),
    (
        ("--cpu-period", "50000", "--cpu-quota", "20000"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max"),
        (20000, "20000 50000"),
    ),
    (("--cpuset-cpus", "0"), ("cpuset", "cpuset.cpus", "cpuset.cpus"), 0),
]
UNITS = "takes no units"


@pytest.mark.parametrize(("flags", "where", "value"), FLAGS, ids=lambda v: v[0] if isinstance(v, tuple) else None)
def test_update_by_flags(
    box: Box, flags: tuple[str, ...], where: tuple[str, str, str], value: Any, request: pytest.FixtureRequest
) -> None:
    if box.runtime.name == "crun" and "-memory" in flags[0]:
        pytest.xfail(UNITS)
    if box.runtime.name == "crun" and flags == ("--pids-limit", "-1"):
        pytest.xfail("writes -1 into pids.max")
    if box.runtime.name != "ocirt" and flags[0] == "--cpu-share" and UNIFIED:
        pytest.xfail("this version has the formula from before 2025")
    box.create_and_start("exec sleep 100")
    box.runtime("update", *flags, box.id)
    expected = value[UNIFIED] if isinstance(value, tuple) else value
    assert file(box.pid, *where) == str(expected)


@lacks("runc", "crun", what="--cpu-burst and --cpu-idle")
def test_update_burst_and_idle(box: Box) -> None:
    resources(box, cpu={"quota": 50_000, "period": 100_000})
    box.create_and_start("exec sleep 100")
    box.runtime("update", "--cpu-burst", "30000", box.id)
    assert file(box.pid, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == "30000"
    box.runtime("update", "--cpu-idle", "1", box.id)
    assert file(box.pid, "cpu", "cpu.idle", "cpu.idle") == "1"
    box.runtime("update", "--cpu-idle", "0", box.id)
    assert file(box.pid, "cpu", "cpu.idle", "cpu.idle") == "0"


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_update_from_json(box: Box, place: Path, source: str) -> None:
    box.create_and_start("exec sleep 100")
    text = json.dumps({"memory": {"limit": 40 * MIB}, "pids": {"limit": 33}, "cpu": {"quota": 0, "period": 0}})
    if source == "file":
        (place / "r.json").write_text(text)
        box.runtime("update", "--resources", place / "r.json", box.id)
    else:
        box.runtime("update", "-r", "-", box.id, stdin=text)
    assert file(box.pid, "memory", "memory.limit_in_bytes", "memory.max") == str(40 * MIB)
    assert file(box.pid, "pids", "pids.max", "pids.max") == "33"


@lacks("runc", "crun", what="an error: it succeeds and changes nothing", always=False)
@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"ociVersion": "1.0.0", "linux": {"resources": {"pids": {"limit": 33}}}}, "`jq .linux.resources`"),
        ({"resources": {"pids": {"limit": 33}}}, "`jq .resources`"),
        ({"Pids": {"limit": 33}}, "those are blockIO, cpu, "),
        ([{"pids": {}}], "must be a JSON object"),
    ],
)
def test_update_from_json_of_something_else(box: Box, document: object, hint: str) -> None:
    box.create_and_start("exec sleep 100")
    result = box.runtime("update", "-r", "-", box.id, stdin=json.dumps(document), check=False)
    assert result.rc == 1
    assert "linux.resources" in result.err
    assert hint in result.err
    assert box.runtime("update", "-r", "-", box.id, stdin="{}").rc == 0


@peer_fails("runc", "leaves the devices as they are")
@peer_fails("crun", "leaves the devices as they are", always=False)
def test_update_of_devices(box: Box) -> None:
    box.capabilities("CAP_MKNOD", "CAP_SYSLOG")
    box.create_and_start("mknod /tmp/k c 1 11; until (exec 5</tmp/k) 2>/dev/null; do sleep 0.05; done; echo open")
    rule = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    box.runtime("update", "-r", "-", box.id, stdin=json.dumps({"devices": [{"allow": False}, rule]}))
    box.wait_for_output("open")


@lacks("runc", "crun", what="an update that takes back what it had changed")
def test_a_failed_update_changes_nothing(box: Box) -> None:
    resources(box, pids={"limit": 44})
    box.create_and_start("exec sleep 100")
    before = box.runtime.root / box.id / "state.json"
    record = before.read_bytes()
    text = json.dumps({"pids": {"limit": 55}, "rdma": {"nonsense": {"hcaHandles": 1}}})
    result = box.runtime("update", "-r", "-", box.id, stdin=text, check=False)
    assert result.rc == 1
    assert "linux.resources.rdma.nonsense" in result.err
    assert file(box.pid, "pids", "pids.max", "pids.max") == "44"
    assert before.read_bytes() == record


@pytest.mark.parametrize("flags", [("--memory", "lots"), ("--pids-limit", "1_0"), ("--cpu-quota", ""), ("-r", "/none")])
def test_updates_that_are_none(box: Box, flags: tuple[str, ...]) -> None:
    if box.runtime.name != "ocirt" and flags[1] in ("", "1_0"):
        pytest.xfail("takes it for nothing, or for a number")
    box.create_and_start("exec sleep 100")
    result = box.runtime("update", *flags, box.id, check=False)
    assert (result.rc != 0) == (flags[1] != "")


# -- events


def event_lines(box: Box, *flags: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return box.runtime.popen("events", *flags, box.id, **pipes)  # type: ignore[return-value]


@lacks("crun", what="events")
def test_stats(box: Box) -> None:
    resources(box, memory={"limit": 64 * MIB}, pids={"limit": 20})
    box.create_and_start("sleep 100 & exec sleep 100")
    event = json.loads(box.runtime("events", "--stats", box.id).out)
    assert (event["type"], event["id"]) == ("stats", box.id)
    data = event["data"]
    assert data["memory"]["usage"]["limit"] == 64 * MIB
    assert data["memory"]["usage"]["usage"] > 0
    assert data["pids"] == {"current": 2, "limit": 20}
    assert data["cpu"]["usage"]["total"] > 0


@lacks("crun", what="events")
@peer_fails("runc", "its events don't end", always=False)
def test_events_tell_of_an_oom_kill_and_end_with_the_container(box: Box) -> None:
    resources(box, memory={"limit": 24 * MIB, "swap": 24 * MIB})
    box.mount("/dev/shm", "tmpfs", "shm", ["size=64m"])
    box.create_and_start(
        "while [ ! -e /go ]; do sleep 0.05; done; dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null; sleep 0.5"
    )
    events = event_lines(box, "--interval", "200ms")
    try:
        assert events.stdout
        assert json.loads(events.stdout.readline())["type"] == "stats"
        (box.rootfs / "go").touch()
        out, _ = events.communicate(timeout=30)
    finally:
        events.kill()
        events.wait()
    assert events.returncode == 0
    kinds = [json.loads(line)["type"] for line in out.splitlines()]
    assert kinds.count("oom") >= 1


@pytest.mark.parametrize("interval", ["0s", "-1s", "soon"])
def test_intervals_that_are_none(box: Box, interval: str) -> None:
    box.create_and_start("exec sleep 100")
    assert box.runtime("events", "--interval", interval, box.id, check=False).rc != 0


# -- all processes of a container


def test_kill_all_reaches_every_process(box: Box) -> None:
    box.namespace("pid", remove=True)
    box.create_and_start("trap '' TERM; sleep 100 & sleep 100 & echo on; wait; sleep 100")
    box.wait_for_output("on")
    pids = json.loads(box.runtime("ps", "--format", "json", box.id).out)
    assert len(pids) == 3
    box.kill("KILL", "--all")
    for pid in pids:
        os.waitpid(pid, 0)  # orphans are ours: we are a subreaper


def hierarchies(box: Box) -> list[Path]:
    """The container's cgroup in every hierarchy that is mounted here."""
    found: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup" in line:
            directory = Path(line.split()[4] + box.linux["cgroupsPath"])
            if directory.is_dir() and directory not in found:
                found.append(directory)
    return found


@pytest.fixture
def below(box: Box) -> Box:
    """A container with a cgroup `sub` below its own in every hierarchy."""
    box.create_and_start("exec sleep 100")
    for directory in hierarchies(box):
        (directory / "sub").mkdir()
        if not UNIFIED and (directory / "cpuset.cpus").exists():
            for name in ("cpuset.cpus", "cpuset.mems"):
                (directory / "sub" / name).write_text((directory / name).read_text())
    return box


def test_exec_into_a_cgroup_below(below: Box) -> None:
    result = below.exec("cat", "/proc/self/cgroup", flags=("--cgroup", "sub"))
    paths = {line.split(":", 2)[2] for line in result.out.splitlines()}
    assert below.linux["cgroupsPath"] + "/sub" in paths
    assert below.linux["cgroupsPath"] not in paths


@pytest.mark.skipif(UNIFIED, reason="cgroup v2 has one hierarchy: nothing to choose between")
@peer_fails("crun", "takes the whole for a path")
def test_exec_into_a_cgroup_of_one_controller(below: Box) -> None:
    result = below.exec("cat", "/proc/self/cgroup", flags=("--cgroup", "pids:sub"))
    own = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in result.out.splitlines()}
    assert own["pids"] == below.linux["cgroupsPath"] + "/sub"
    assert own["memory"] == below.linux["cgroupsPath"]


@lacks("runc", "crun", what="the flag in the error", always=False)
@pytest.mark.parametrize("sub", ["missing", "sub/missing", "pids:missing"])
def test_exec_into_a_cgroup_that_there_is_not(below: Box, sub: str) -> None:
    """Neither the process nor the cgroup is made; the error has the flag and its value."""
    if UNIFIED and ":" in sub:
        pytest.skip("cgroup v2 has no controllers to name")
    result = below.exec("true", flags=("--cgroup", sub), check=False)
    assert result.rc == 255
    assert f"--cgroup {sub}: there is no cgroup /" in result.err
    assert len(result.err.splitlines()) == 1
    assert not any((directory / "missing").exists() for directory in hierarchies(below))


@peer_fails("crun", "makes the cgroup, or goes where it leads", always=False)
@pytest.mark.parametrize("path", ["../escape", "sub/../../escape", "missing"])
def test_exec_into_a_cgroup_that_is_not_below(below: Box, path: str) -> None:
    for directory in hierarchies(below):
        (directory.parent / "escape").mkdir(exist_ok=True)
    try:
        assert below.exec("true", flags=("--cgroup", path), check=False).rc == 255
    finally:
        for directory in hierarchies(below):
            (directory.parent / "escape").rmdir()

"""kill -9 of the runtime at any instant: `delete --force` finds what it had made and removes all of it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import MakeBox
from tests.harness.box import Box
from tests.harness.leftovers import cgroups, children, kill
from tests.harness.peers import peer_fails
from tests.harness.runtime import Runtime

#: The peers write their state last: what a killed create leaves, their delete does not know.
LATE = "writes its state when everything exists: a killed create leaves cgroups and processes that delete doesn't know"


def created_state(box: Box) -> list[Path]:
    root = box.runtime.root
    return [e for e in root.iterdir() if not e.name.startswith(".")] if root.exists() else []


def kill_create_after(box: Box, seconds: float) -> int:
    """Start create and kill it; how it ended."""
    with box.out_file.open("wb") as out:
        process = box.runtime.popen("create", "--bundle", box.path, box.id, stdout=out, stderr=out)
        time.sleep(seconds)
        process.kill()
        return process.wait(10)


def check_cleaned(box: Box, before: set[int]) -> None:
    """After delete --force nothing of the container is left, and the id is free."""
    box.delete("--force")
    assert not created_state(box)
    assert not cgroups(box.id)
    end = time.monotonic() + 3
    while living := {p for p in children() - before if Path(f"/proc/{p}/stat").exists() and alive_state(p)}:
        assert time.monotonic() < end, f"processes left: {living}"
        time.sleep(0.02)


def alive_state(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def duration_of_create(box: Box) -> float:
    """How long a whole create takes here and now."""
    start = time.monotonic()
    box.create()
    seconds = time.monotonic() - start
    box.delete("--force")
    return seconds


@peer_fails("runc", LATE, always=False)
@peer_fails("crun", LATE, always=False)
def test_create_killed_at_any_instant(make_box: MakeBox) -> None:
    """Twenty-five instants from the start of the command to its end."""
    seconds = duration_of_create(make_box())
    box = make_box()
    box.write()
    before = children()
    ended: set[int] = set()
    for step in range(25):
        ended.add(kill_create_after(box, seconds * 1.1 * step / 25))
        check_cleaned(box, before)
    assert -signal.SIGKILL in ended, "no create was killed while it ran"


@peer_fails("runc", LATE, always=False)
@peer_fails("crun", LATE, always=False)
@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_create_killed_while_a_hook_runs(box: Box, kind: str) -> None:
    """A certain instant: the cgroup and init exist, the command is in the middle."""
    marker = box.directory / "hook-runs"
    script = f"touch {marker}; sleep 1000"
    box.config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]}
    box.bind(box.directory, str(box.directory), "bind", "rw")
    box.write()
    before = children()
    with box.out_file.open("wb") as out:
        process = box.runtime.popen("create", "--bundle", box.path, box.id, stdout=out, stderr=out)
        end = time.monotonic() + 10
        while not marker.exists():
            assert time.monotonic() < end, "the hook did not run"
            time.sleep(0.01)
        process.kill()
        process.wait(10)
    state = box.runtime("state", box.id, check=False)
    if box.runtime.name == "ocirt":
        assert state.rc == 0
        assert '"creating"' in state.out or '"stopped"' in state.out
    # a hook of the host is nobody's child now; it is not the container's and may go on
    kill({pid for pid in children() - before if f"/{box.id}" not in cgroup_of(pid)})
    check_cleaned(box, before)


def cgroup_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("command", ["start", "kill", "delete"])
def test_other_commands_killed_at_any_instant(make_box: MakeBox, command: str) -> None:
    arguments = {"start": ["start"], "kill": ["kill"], "delete": ["delete", "--force"]}[command]
    before = children()
    for step in range(8):
        box = make_box()
        box.sh("exec sleep 1000")
        box.create()
        if command != "start":
            box.start()
        process = box.runtime.popen(*arguments, box.id, *(["KILL"] if command == "kill" else []))
        time.sleep(0.004 * step)
        process.kill()
        process.wait(10)
        check_cleaned(box, before)


def test_foreground_run_killed_at_any_instant(make_box: MakeBox) -> None:
    before = children()
    box = make_box()
    box.sh("exec sleep 1000")
    box.write()
    for step in range(10):
        process = box.runtime.popen("run", "--bundle", box.path, box.id)
        time.sleep(0.015 * step)
        process.kill()
        process.wait(10)
        if box.runtime.name == "ocirt":
            check_cleaned(box, before)
        else:
            box.finish()


def test_a_damaged_record_is_named_and_stops_nobody_else(box: Box, make_box: MakeBox) -> None:
    """Without its record nothing says what belongs to a container; the error says which file to look at."""
    if box.runtime.name != "ocirt":
        pytest.xfail("of the peers' own files nothing is said")
    other = make_box()
    other.create()
    box.create()
    (record,) = (box.runtime.root / box.id).glob("state.json")
    intact = record.read_text()
    record.write_text('{"cut off')
    for command in (["state"], ["start"], ["kill"], ["delete"], ["delete", "--force"]):
        result = box.runtime(*command, box.id, check=False)
        assert result.rc == 1
        assert str(record) in result.err
        assert "Traceback" not in result.err
    assert box.runtime("list", "--quiet").out.split() == [other.id]
    record.write_text(intact)
    assert box.status == "created"


def test_a_reused_pid_is_not_the_container(box: Box) -> None:
    """The record has the start time: another process with the pid is neither shown nor killed."""
    box.create_and_start("exit 0")
    if box.runtime.name != "ocirt":
        pytest.xfail("of the peers' own files nothing is said")
    box.wait_for("stopped")
    state = created_state(box)[0]
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        for path in state.glob("*.json"):
            text = path.read_text()
            import re

            path.write_text(re.sub(r'("pid": *)\d+', rf"\g<1>{pid}", text))
        assert box.status == "stopped"
        assert box.kill("KILL", check=False).rc == 1
        box.delete("--force")
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the innocent process was killed"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_an_empty_state_directory_is_no_obstacle(runtime: Runtime, box: Box) -> None:
    """What a crash between mkdir and the first write leaves."""
    runtime.root.mkdir(parents=True, exist_ok=True)
    (runtime.root / box.id).mkdir()
    if runtime.name == "crun":
        (runtime.root / box.id).rmdir()
        return
    box.delete("--force")
    assert not (runtime.root / box.id).exists()
    box.create()


def test_an_init_that_still_has_the_lock_of_a_killed_create(runtime: Runtime) -> None:
    """It closes its copy as its first act; on a busy machine that takes a while."""
    if runtime.name != "ocirt":
        pytest.xfail("of the peers' own files nothing is said")
    directory = runtime.root / "c1"
    directory.mkdir(parents=True)
    (directory / "state.json").write_text(json.dumps({"id": "c1", "ociVersion": "1.0.2", "status": "creating"}))
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused = runtime("delete", "c1", check=False)
    assert (refused.rc, "while it is being created" in refused.err) == (1, True)
    threading.Timer(0.4, os.close, (lock,)).start()
    runtime("delete", "--force", "c1")
    assert not directory.exists()

"""What a shim answers to calls that can't be done: codes that containerd maps, and the texts that clients know."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.engines.containerd import schema, ttrpc
from tests.engines.containerd.engine import PROCESS, RESOURCES, Engine, Task, json_any, mount
from tests.engines.containerd.ttrpc import EXISTS, INVALID, NOT_FOUND, PRECONDITION, UNKNOWN

#: Fields beside the id that a call must have.
NEEDED: dict[str, dict[str, Any]] = {
    "Kill": {"signal": 9},
    "Exec": {"exec_id": "x", "spec": json_any(PROCESS, {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}})},
    "Update": {"resources": json_any(RESOURCES, {})},
    "Checkpoint": {"path": "/nowhere"},
}
BY_ID = sorted(set(ttrpc.METHODS) - {"Create", "Connect", "Shutdown"})
BY_EXEC = ("Start", "State", "Delete", "Kill", "ResizePty", "CloseIO", "Wait")


@pytest.mark.parametrize("method", BY_ID)
def test_unknown_container(engine: Engine, method: str) -> None:
    """Before anything has been created, and while another container lives."""
    task = engine.task()
    for id in (task.id, "nobody"):
        error = task.shim.fails(method, id=id, **NEEDED.get(method, {}))
        assert error.code == NOT_FOUND
        assert error.text == "container not created: not found"
    task.create()
    error = task.shim.fails(method, id="nobody", **NEEDED.get(method, {}))
    assert error.code == NOT_FOUND
    task.delete()
    error = task.fails(method, **NEEDED.get(method, {}))
    assert error.code == NOT_FOUND
    task.leave()


@pytest.mark.parametrize(
    "method",
    [
        *(name for name in BY_EXEC if name != "CloseIO"),
        pytest.param("CloseIO", marks=pytest.mark.shim_fails("runc", "code 2, unlike all others")),
    ],
)
def test_unknown_exec(engine: Engine, method: str) -> None:
    task = engine.running()
    error = task.fails(method, exec_id="nobody", **NEEDED.get(method, {}))
    assert error.code == NOT_FOUND
    assert error.text == "process does not exist nobody: not found"
    task.end()


def test_shutdown_of_nobody(engine: Engine) -> None:
    """Shutdown of an unknown id is ignored while there are containers."""
    task = engine.running()
    task.shim.call("Shutdown", id="nobody")
    task.shim.call("Shutdown", id=task.id)
    assert task.status == 2
    task.end()


def test_create_twice(engine: Engine) -> None:
    task = engine.running()
    error = task.shim.fails("Create", **task.request())
    assert error.code in (EXISTS, UNKNOWN)
    assert "exist" in error.text
    assert task.status == 2
    task.end()


def test_start_twice(engine: Engine) -> None:
    task = engine.running()
    error = task.fails("Start")
    assert (error.code, error.text) == (UNKNOWN, "cannot start a running process")
    task.kill()
    task.wait()
    error = task.fails("Start")
    assert (error.code, error.text) == (UNKNOWN, "cannot start a stopped process")
    task.delete()
    task.leave()


def test_delete_of_what_runs(engine: Engine) -> None:
    task = engine.running()
    error = task.fails("Delete")
    assert (error.code, error.text) == (UNKNOWN, "cannot delete a running process")
    assert task.status == 2
    task("Pause")
    assert task.fails("Delete").code == UNKNOWN
    task("Resume")
    task.end()


def test_kill_of_what_has_ended(engine: Engine) -> None:
    task = engine.running("exit 0")
    task.wait()
    error = task.fails("Kill", signal=9)
    assert (error.code, error.text) == (NOT_FOUND, "process already finished: not found")
    task.delete()
    task.leave()


def test_invalid_signal(engine: Engine) -> None:
    task = engine.running()
    assert task.fails("Kill", signal=1000).code in (UNKNOWN, INVALID)
    assert task.status == 2
    task.end()


def test_pause_and_resume_at_the_wrong_time(engine: Engine) -> None:
    task = engine.task()
    task.create()
    assert task.fails("Pause").code in (UNKNOWN, PRECONDITION)
    assert task.fails("Resume").code in (UNKNOWN, PRECONDITION)
    task.start()
    assert task.fails("Resume").code in (UNKNOWN, PRECONDITION)
    task("Pause")
    assert task.fails("Pause").code in (UNKNOWN, PRECONDITION)
    task("Resume")
    task.kill()
    task.wait()
    assert task.fails("Pause").code in (UNKNOWN, PRECONDITION)
    task.delete()
    task.leave()


def test_exec_at_the_wrong_time(engine: Engine) -> None:
    task = engine.running()
    task.exec("/bin/true", id="same")
    error = task.fails("Exec", exec_id="same", spec=NEEDED["Exec"]["spec"])
    assert error.code == EXISTS
    task("Pause")
    assert task.fails("Exec", exec_id="paused", spec=NEEDED["Exec"]["spec"]).code in (UNKNOWN, PRECONDITION)
    task("Resume")
    task.exec("/bin/sleep", "1000", id="late")
    error = task.fails("Kill", exec_id="late", signal=9)
    assert error.code in (PRECONDITION, NOT_FOUND), "an exec that has not been started"
    task.kill()
    task.wait()
    error = task.fails("Start", exec_id="late")
    assert error.code in (PRECONDITION, UNKNOWN)
    assert task.fails("Exec", exec_id="stopped", spec=NEEDED["Exec"]["spec"]).code in (UNKNOWN, PRECONDITION)
    task.delete("late")
    task.delete("same")
    task.delete()
    task.leave()


@pytest.mark.shim_fails("runc", "1.6 doesn't name its init process and its text is of runc")
def test_exec_when_init_has_ended(engine: Engine) -> None:
    task = engine.running()
    task.exec("/bin/true", id="late")
    task.kill()
    task.wait()
    error = task.fails("Start", exec_id="late")
    assert error.code == PRECONDITION
    assert "not running" in error.text
    task.delete("late")
    task.delete()
    task.leave()


def test_exec_start_and_delete_twice(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/bin/sleep", "1000")
    task.start(id)
    assert task.fails("Start", exec_id=id).code in (UNKNOWN, PRECONDITION)
    assert task.fails("Delete", exec_id=id).code in (UNKNOWN, PRECONDITION)
    task.kill(exec_id=id)
    assert task.wait(id) == 137
    error = task.fails("Kill", exec_id=id, signal=9)
    assert (error.code, error.text) == (NOT_FOUND, "process already finished: not found")
    task.delete(id)
    assert task.fails("Delete", exec_id=id).code == NOT_FOUND
    task.end()


def test_program_that_is_not_there(engine: Engine) -> None:
    """Create fails; then containerd calls Delete, which must not find it, and Shutdown."""
    task = engine.task()
    task.bundle.args("/nonexistent")
    task.bundle.write()
    error = fails_to_create(task)
    assert "no such file" in error.text or "executable file not found" in error.text
    assert not task.rootfs_mounted()


def fails_to_create(task: Task, **fields: Any) -> ttrpc.RpcError:
    """The error of Create, and what containerd does after it."""
    error = task.shim.fails("Create", **task.request(**fields))
    assert error.code != 0
    assert task.fails("Delete").code == NOT_FOUND
    task.leave()
    return error


def test_bundle_without_a_configuration(engine: Engine) -> None:
    task = engine.task()
    (task.bundle.path / "config.json").unlink()
    assert "config.json" in fails_to_create(task).text


def test_invalid_configuration(engine: Engine) -> None:
    task = engine.task()
    (task.bundle.path / "config.json").write_text("{")
    fails_to_create(task)


def test_root_file_system_that_cannot_be_mounted(engine: Engine) -> None:
    """The mounts before the one that fails are undone."""
    task = engine.task()
    mounts = [mount("bind", engine.image, "rbind", "ro"), mount("bind", engine.place / "nowhere", "rbind")]
    error = fails_to_create(task, rootfs=mounts)
    assert "no such file" in error.text
    assert not task.rootfs_mounted()


def test_unknown_options(engine: Engine) -> None:
    """Options of a type that isn't known are an error, not a surprise."""
    task = engine.task()
    wrong = schema.message("google.protobuf.Any", type_url="no.such.Options", value=b"\x08\x01")
    task.shim.fails("Create", **task.request(options=wrong))
    task.leave()


def test_exec_without_a_process(engine: Engine) -> None:
    """A missing or unreadable spec is refused, and the container is unharmed."""
    task = engine.running()
    wrong = schema.message("google.protobuf.Any", type_url=PROCESS, value=b"{not json")
    task.shim.fails("Exec", id=task.id, exec_id="bad", spec=wrong)
    task("Connect")
    assert task.status == 2
    assert task.run("/bin/echo", "still")[1] == b"still\n"
    task.end()


def test_exec_of_what_is_not_there(engine: Engine) -> None:
    task = engine.running()
    id = task.exec("/nonexistent")
    error = task.fails("Start", exec_id=id)
    assert "no such file" in error.text or "executable file not found" in error.text
    task.delete(id)
    assert task.status == 2
    task.end()


@pytest.mark.parametrize("id", ["../x", "a/b", ".."])
def test_ids_that_lead_out_of_the_bundle(engine: Engine, id: str) -> None:
    """An exec's id is part of file names."""
    task = engine.running()
    before = sorted(path.name for path in task.bundle.path.parent.iterdir())
    try:
        task.exec("/bin/true", id=id)
        task.start(id)
        task.wait(id)
        task.delete(id)
    except ttrpc.RpcError as error:
        assert error.code in (INVALID, UNKNOWN)
    assert sorted(path.name for path in task.bundle.path.parent.iterdir()) == before
    task.kill(signal.SIGKILL)
    task.wait()
    task.delete()
    task.leave()

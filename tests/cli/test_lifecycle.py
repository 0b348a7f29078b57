"""create, start, state, kill, delete: the operations and the statuses of runtime.md."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import MakeBox
from tests.harness.box import Box, alive, wait_dead
from tests.harness.leftovers import cgroups
from tests.harness.peers import lacks, peer_fails

FOREVER = "while :; do sleep 1000; done"


def test_create_does_not_run_the_process_and_start_does(box: Box) -> None:
    box.sh("echo ran > /ran")
    box.create()
    state = box.state()
    assert state["status"] == "created"
    assert alive(state["pid"])
    assert not (box.rootfs / "ran").exists()
    box.start()
    assert box.exit_status(state["pid"]) == 0
    assert (box.rootfs / "ran").read_text() == "ran\n"
    assert box.status == "stopped"
    box.delete()
    assert box.runtime("state", box.id, check=False).rc == 1


def test_state_of_a_running_container(box: Box) -> None:
    box.config["annotations"] = {"org.example.key": "välue", "empty": ""}
    box.create_and_start(FOREVER)
    state = box.state()
    assert state["id"] == box.id
    assert state["status"] == "running"
    assert os.path.samefile(f"/proc/{state['pid']}/root/bin/busybox", box.rootfs / "bin/busybox")
    assert state["bundle"] == str(box.path)
    assert state["annotations"] == {"org.example.key": "välue", "empty": ""}


@peer_fails("runc", "prints its own version whatever config.json says")
@peer_fails("crun", "prints 1.0.0 whatever config.json says")
def test_state_has_the_version_of_the_config(box: Box) -> None:
    box.config["ociVersion"] = "1.0.1"
    box.create()
    assert box.state()["ociVersion"] == "1.0.1"


def test_state_of_a_stopped_container_names_no_living_pid(box: Box) -> None:
    box.create_and_start("exit 3")
    box.wait_for("stopped")
    assert box.state().get("pid", 0) == 0


def test_stopped_is_seen_while_nobody_reaps_init(box: Box) -> None:
    """An init that is a zombie has stopped (runtime.md, State)."""
    box.create()
    pid = box.pid
    box.start()
    wait_dead(pid)
    assert Path(f"/proc/{pid}").exists(), "the zombie was reaped too early for this test"
    assert box.status == "stopped"
    box.delete()


def test_id_must_be_unique(box: Box, make_box: MakeBox) -> None:
    box.create_and_start(FOREVER)
    other = make_box()
    other.id = box.id
    result = other.create(check=False)
    assert result.rc == 1
    assert "exist" in result.err
    assert box.status == "running"
    assert box.id in "".join(cgroups(box.id))


def test_a_deleted_id_is_free_again(box: Box) -> None:
    for _ in range(3):
        box.create_and_start("exit 0")
        box.wait_for("stopped")
        box.delete()


def test_start_needs_created(box: Box) -> None:
    assert box.start(check=False).rc == 1
    box.create_and_start("sleep 1000")
    pid = box.pid
    assert box.start(check=False).rc == 1
    assert box.status == "running"
    assert box.pid == pid
    box.kill("KILL")
    box.wait_for("stopped")
    assert box.start(check=False).rc == 1


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        (None, signal.SIGTERM),
        ("TERM", signal.SIGTERM),
        ("SIGTERM", signal.SIGTERM),
        ("15", signal.SIGTERM),
        ("KILL", signal.SIGKILL),
        ("SIGUSR1", signal.SIGUSR1),
        ("10", signal.SIGUSR1),
        pytest.param("hup", signal.SIGHUP, marks=peer_fails("crun", "knows names in capitals only")),
        pytest.param("sighup", signal.SIGHUP, marks=peer_fails("crun", "knows names in capitals only")),
    ],
)
def test_kill_sends_the_signal(box: Box, argument: str | None, number: int) -> None:
    # Init of a pid namespace is only reached by signals that it handles, KILL apart.
    box.create_and_start(
        'for s in TERM USR1 HUP; do trap "echo $s; exit 0" $s; done; echo ready; while :; do sleep 0.05; done'
    )
    box.wait_for_output("ready")
    pid = box.pid
    box.kill(argument)
    status = box.exit_status(pid)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 0
        assert box.out.split() == ["ready", signal.Signals(number).name.removeprefix("SIG")]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("BOGUS", marks=peer_fails("crun", "1.8.1 ignores an unknown name and says success")),
        pytest.param("SIGBOGUS", marks=peer_fails("crun", "1.8.1 ignores an unknown name and says success")),
        "65",
        pytest.param("9x", marks=[peer_fails("crun", "1.8.1 reads a number and ignores the rest")]),
    ],
)
def test_kill_refuses_what_is_no_signal(box: Box, bad: str) -> None:
    box.create_and_start("trap 'exit 3' TERM; " + FOREVER)
    assert box.kill(bad, check=False).rc != 0
    assert box.status == "running"


def test_kill_works_on_a_created_container(box: Box) -> None:
    box.create()
    pid = box.pid
    box.kill("KILL")
    wait_dead(pid)
    assert box.status == "stopped"


@peer_fails("crun", "runtime.md, Kill: neither created nor running MUST generate an error; says success")
def test_kill_of_a_stopped_container_is_an_error(box: Box) -> None:
    box.create_and_start("exit 0")
    box.wait_for("stopped")
    result = box.kill("TERM", check=False)
    assert result.rc == 1
    assert "not running" in result.err


def test_kill_all_reaches_every_process(box: Box) -> None:
    box.namespace("pid", remove=True)
    box.create_and_start("sleep 1001 & sleep 1002 & echo up; wait")
    box.wait_for_output("up")
    pid = box.pid
    below = {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    assert len(below) == 2
    box.kill("KILL", "--all")
    for each in (pid, *below):
        wait_dead(each)


def test_kill_all_of_a_stopped_container_is_no_error(box: Box) -> None:
    box.create_and_start("exit 0")
    box.wait_for("stopped")
    box.kill("KILL", "--all")


def test_delete_of_a_running_container_is_refused_and_has_no_effect(box: Box) -> None:
    box.create_and_start(FOREVER)
    pid = box.pid
    result = box.delete(check=False)
    assert result.rc == 1
    assert box.status == "running"
    assert alive(pid)
    assert cgroups(box.id)


def test_delete_force_ends_a_running_container(box: Box) -> None:
    box.create_and_start("trap '' TERM; sleep 1000 & " + FOREVER)
    pid = box.pid
    box.delete("--force")
    assert not alive(pid)
    assert not cgroups(box.id)


def test_delete_of_a_created_container(box: Box) -> None:
    """containerd's shim deletes created tasks without --force, and every runtime allows it."""
    box.create()
    pid = box.pid
    box.delete()
    assert not alive(pid)
    assert not cgroups(box.id)


def test_delete_force_without_a_pid_namespace_ends_all_processes(box: Box) -> None:
    box.namespace("pid", remove=True)
    box.create_and_start("setsid sleep 1003 & echo up; wait")
    box.wait_for_output("up")
    pid = box.pid
    below = {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    box.delete("--force")
    for each in (pid, *below):
        wait_dead(each)


def test_delete_removes_what_create_made(box: Box) -> None:
    box.create()
    assert list(box.runtime.root.iterdir())
    assert cgroups(box.id)
    box.start()
    box.wait_for("stopped")
    box.delete()
    assert not [e for e in box.runtime.root.iterdir() if not e.name.startswith(".")]
    assert not cgroups(box.id)
    assert (box.path / "config.json").exists(), "delete must not touch the bundle"


def test_unknown_id(box: Box) -> None:
    for command in (["state"], ["start"], ["kill"], ["delete"]):
        assert box.runtime(*command, box.id, check=False).rc == 1, command
    box.runtime("delete", "--force", box.id)


@lacks("runc", what="delete --regex")
def test_delete_regex(box: Box, make_box: MakeBox) -> None:
    boxes = [box, make_box(), make_box()]
    for each in boxes:
        each.create()
    box.runtime("delete", "--force", "--regex", f"^{box.id[:-1]}[12]$")
    left = box.runtime("list", "--quiet").out.split()
    assert left == [boxes[2].id]


@pytest.mark.parametrize("good", ["a", "A.b_c-d+e", "0", "x" * 100])
def test_good_ids(box: Box, good: str) -> None:
    box.linux["cgroupsPath"] = f"/{box.id}"
    box.id = good
    box.create()
    assert box.state()["id"] == good
    box.delete("--force")


@pytest.mark.parametrize(
    "bad",
    [
        ".",
        "..",
        pytest.param("a b", marks=peer_fails("crun", "1.8.1 checks little; refused since 1.20")),
        "a/b",
        "../a",
        pytest.param("a\nb", marks=peer_fails("crun", "1.8.1 checks little; refused since 1.20")),
        pytest.param("ä", marks=peer_fails("crun", "1.8.1 checks little; refused since 1.20")),
        pytest.param("a*", marks=peer_fails("crun", "1.8.1 checks little; refused since 1.20")),
        pytest.param("a:b", marks=peer_fails("crun", "1.8.1 checks little; refused since 1.20")),
        "",
        pytest.param("a\udcff", marks=peer_fails("crun", "1.8.1 checks little; refused since 1.20")),
        "x" * 2000,
    ],
)
def test_bad_ids(box: Box, bad: str) -> None:
    box.id = bad
    assert box.create(check=False).rc == 1
    assert not box.runtime.root.exists() or not [e for e in box.runtime.root.iterdir() if not e.name.startswith(".")]


def test_bundle_is_the_current_directory_by_default(box: Box) -> None:
    box.write()
    box.runtime("create", box.id, cwd=box.path, out=box.out_file)
    assert box.state()["bundle"] == str(box.path)


@peer_fails("crun", "looks for a relative --root below the bundle, where it has changed to")
def test_relative_root_and_bundle(box: Box) -> None:
    box.write()
    argv = [*box.runtime.prefix, box.runtime.path, "--root", "state"]
    place = box.runtime.root.parent
    bundle = os.path.relpath(box.path, place)
    box.runtime(cwd=place, argv=[*argv, "create", "--bundle", bundle, box.id], out=box.out_file)
    assert box.state()["bundle"] == str(box.path)

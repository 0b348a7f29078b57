"""The calls of engines as they make them: containerd's shim (go-runc), conmon, CRI-O, nerdctl."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_checkpoint import DUMP, StandIn
from tests.engines.conftest import CONTRIB, need
from tests.harness.box import Box, wait_dead
from tests.harness.peers import lacks, peer_fails
from tests.harness.runtime import Result
from tests.harness.terminal import Foreground

SLEEP = "trap 'exit 5' TERM; while :; do sleep 0.05; done"


def log_of(place: Path) -> list[dict[str, str]]:
    """The objects of a log in JSON."""
    lines = (place / "log.json").read_text().splitlines() if (place / "log.json").exists() else []
    return [json.loads(line) for line in lines]


# containerd's shim


@pytest.fixture
def shim(box: Box, place: Path) -> Box:
    """The global flags of go-runc."""
    box.runtime.extra = ["--log", str(place / "log.json"), "--log-format", "json"]
    return box


def test_life_by_the_shim(shim: Box, place: Path) -> None:
    shim.sh(SLEEP)
    shim.create("--pid-file", place / "init.pid")
    pid = int((place / "init.pid").read_text())
    assert (place / "init.pid").read_text() == str(pid)
    assert shim.start().text == ""
    assert json.loads(shim.runtime("ps", "--format", "json", shim.id).text)[0] == pid
    for command in (["pause", shim.id], ["resume", shim.id], ["kill", shim.id, "15"]):
        assert shim.runtime(*command).text == ""
    assert shim.exit_status(pid) == 5
    assert shim.runtime("delete", shim.id).text == ""
    assert shim.runtime("delete", "--force", shim.id).text == ""
    assert log_of(place) == []


def test_update_from_stdin(shim: Box) -> None:
    shim.create_and_start(SLEEP)
    for arguments in (["--resources=-", shim.id], ["--resources", "-", shim.id]):
        shim.runtime("update", *arguments, stdin='{"pids": {"limit": 40}}')


def test_errors_that_the_shim_understands(shim: Box, place: Path) -> None:
    """The last entry of the log is the message; what is gone is told by fixed words."""
    assert shim.kill("9", check=False).rc
    assert "does not exist" in log_of(place)[-1]["msg"]
    shim.args("/nonexistent")
    assert shim.create(check=False).rc
    assert log_of(place)[-1]["level"] == "error"
    assert set(log_of(place)[-1]) >= {"msg", "time", "level"}


@peer_fails("crun", "has other words")
def test_kill_of_what_has_ended(shim: Box, place: Path) -> None:
    shim.create_and_start("exit 0")
    shim.wait_for("stopped")
    assert shim.kill("9", check=False).rc
    assert "container not running" in log_of(place)[-1]["msg"]


# CRI-O


CRIO = {"XDG_RUNTIME_DIR": ""}


def test_life_by_crio(box: Box) -> None:
    box.sh(SLEEP)
    box.create()
    pid = box.pid
    box.runtime("start", box.id, env=CRIO)
    assert json.loads(box.runtime("state", box.id, env=CRIO).out)["status"] == "running"
    box.runtime("pause", box.id, env=CRIO)
    box.runtime("resume", box.id, env=CRIO)
    box.runtime("kill", box.id, "TERM", env=CRIO)
    assert box.exit_status(pid) == 5
    assert json.loads(box.runtime("state", box.id, env=CRIO).out)["status"] == "stopped"
    box.runtime("delete", "--force", box.id, env=CRIO)
    box.runtime("delete", "--force", box.id, env=CRIO)


def test_kill_all_of_a_shared_pid_namespace(box: Box) -> None:
    box.namespace("pid", remove=True)
    box.create_and_start("sleep 1000 & echo $! > /child; wait")
    while not (box.rootfs / "child").exists() or not (box.rootfs / "child").read_text().endswith("\n"):
        pass
    child = int((box.rootfs / "child").read_text())
    pid = box.pid
    box.runtime("kill", "-a", box.id, "9", env=CRIO)
    wait_dead(child)
    assert box.exit_status(pid) == -signal.SIGKILL


def test_exec_in_the_foreground(box: Box, place: Path) -> None:
    """CRI-O's interactive exec: its streams and status are the command's."""
    box.create_and_start(SLEEP)
    file = place / "process.json"
    file.write_text(json.dumps({**box.process, "args": ["/bin/sh", "-c", "cat; echo err >&2; exit 9"]}))
    result = box.runtime("exec", "--process", file, box.id, env=CRIO, stdin="in", check=False)
    assert (result.rc, result.out, result.err) == (9, "in", "err\n")


def test_exec_on_a_terminal(box: Box, place: Path) -> None:
    """Its interactive exec of a process with a terminal: CRI-O's pty is what the runtime stands on."""
    box.create_and_start(SLEEP)
    file = place / "process.json"
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all; read line; echo got $line; exit 6"
    file.write_text(json.dumps({**box.process, "terminal": True, "args": ["/bin/sh", "-c", script]}))
    with Foreground(box, command=["exec", "--process", str(file), box.id], env=CRIO) as front:
        assert b"/dev/pts/" in front.read_until(b"all")
        os.write(front.master, b"typed\n")
        front.read_until(b"got typed")
        assert front.finish() == 6


@pytest.mark.parametrize("stays", [False, True])
@lacks("runc", "crun", what="a stand-in for CRIU that it would accept", always=False)
def test_checkpoint(box: Box, place: Path, *, stays: bool) -> None:
    """File locks are always allowed; a container that isn't to run on is gone afterwards."""
    criu = StandIn(place / "criu")
    box.create_and_start(SLEEP)
    paths = ("--image-path", place / "images", "--work-path", place / "work")
    left = ["--leave-running"] if stays else []
    box.runtime("checkpoint", "--file-locks", *paths, *left, box.id, env={**CRIO, **criu.environment})
    assert criu.asked["type"] == DUMP
    assert (criu.asked["images"], criu.asked["work"]) == (str(place / "images"), str(place / "work"))
    assert criu.options(8) == [1], "file_locks"
    state = box.runtime("state", box.id, env=CRIO, check=False)
    assert (state.rc == 0) == stays


@peer_fails("crun", "Debian's is built without CRIU")
def test_checkpoint_is_asked_for(box: Box) -> None:
    """By its help, whose exit status is the answer."""
    assert "--file-locks" in box.runtime("checkpoint", "--help", env=CRIO).out


def test_drop_in_of_crio() -> None:
    """A handler `ocirt` through conmon, at the paths of hack/install; nothing that CRI-O wouldn't know."""
    config = tomllib.loads((CONTRIB / "cri-o/10-ocirt.conf").read_text())
    handler = {"runtime_path": "/usr/local/bin/ocirt", "runtime_type": "oci", "runtime_root": "/run/ocirt"}
    assert config == {"crio": {"runtime": {"runtimes": {"ocirt": handler}}}}


@peer_fails("crun", "has no features command in this version")
def test_features(box: Box) -> None:
    features = json.loads(box.runtime("features", env=CRIO).out)
    assert features["ociVersionMin"]
    assert features["ociVersionMax"]


# nerdctl


def test_network_hooks_of_nerdctl(box: Box, place: Path) -> None:
    """createRuntime makes the network of the pid it is told, from the host; poststop runs at delete --force as well."""
    note = place / "note"

    def hook(kind: str) -> dict[str, Any]:
        script = f"echo {kind} $(readlink /proc/self/ns/net) >> {note}; cat > {note}.{kind}"
        return {"path": "/bin/sh", "args": ["sh", "-c", script]}

    box.config["hooks"] = {kind: [hook(kind)] for kind in ("createRuntime", "poststop")}
    box.create_and_start("sleep 1000")
    pid = box.pid
    told = json.loads(Path(f"{note}.createRuntime").read_text())
    assert (told["pid"], told["id"], told["bundle"]) == (pid, box.id, str(box.path))
    box.delete("--force")
    own = os.readlink("/proc/self/ns/net")
    assert note.read_text().splitlines() == [f"createRuntime {own}", f"poststop {own}"]
    assert json.loads(Path(f"{note}.poststop").read_text())["status"] == "stopped"


# conmon


def conmon(box: Box, place: Path, *extra: str) -> tuple[dict[str, Any], Result]:
    """Let conmon make the container, as podman does; (what it says on the sync pipe, its own result)."""
    need("conmon")
    program = shutil.which("conmon", path="/usr/bin:/usr/libexec/podman")
    assert program
    box.write()
    ours, theirs = os.pipe()
    arguments = [
        program, "--api-version", "1", "-c", box.id, "-u", box.id, "-r", box.runtime.path, "-b", str(box.path),
        "-p", str(place / "pidfile"), "-n", "name", "--exit-dir", str(place), "-l", f"k8s-file:{place}/ctr.log",
        "--log-level", "error", "--full-attach", "--conmon-pidfile", str(place / "conmon.pid"),
        "--runtime-arg", f"--root={box.runtime.root}", "--runtime-arg", "--log-format=json",
        "--runtime-arg", f"--log={place}/log.json", *extra,
    ]  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin", "_OCI_SYNCPIPE": str(theirs), "XDG_RUNTIME_DIR": str(place)}
    try:
        result = box.runtime(argv=arguments, env=environment, pass_fds=(theirs,), cwd=place)
    finally:
        os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        line = pipe.readline()
    told: dict[str, Any] = json.loads(line)
    return told, result


def test_conmon(box: Box, place: Path) -> None:
    box.sh("echo to the log; exit 3")
    told, _ = conmon(box, place)
    assert told["data"] == box.pid > 0
    assert int((place / "pidfile").read_text()) == told["data"]
    box.start()
    wait_dead(int((place / "conmon.pid").read_text()))
    assert (place / box.id).read_text() == "3"
    assert " stdout F to the log\n" in (place / "ctr.log").read_text()


def test_conmon_with_a_terminal(box: Box, place: Path) -> None:
    box.process["terminal"] = True
    box.sh("tty; exit 3")
    conmon(box, place, "-t")
    box.start()
    wait_dead(int((place / "conmon.pid").read_text()))
    assert (place / box.id).read_text() == "3"
    assert "/dev/" in (place / "ctr.log").read_text()


def test_conmon_with_systemd(box: Box, place: Path) -> None:
    """CRI-O's -s becomes --systemd-cgroup; where there is no systemd, the runtime's words about that are told."""
    noting, noted = place / "noting", place / "noted"
    noting.write_text(f'#!/bin/sh\necho "$@" >> {noted}\nexec {box.runtime.path} "$@"\n')
    noting.chmod(0o755)
    box.runtime.path = str(noting)
    box.linux["cgroupsPath"] = f"system.slice:crio:{box.id}"
    told, _ = conmon(box, place, "-s")
    words = noted.read_text().splitlines()[0].split()
    assert "--systemd-cgroup" in words[: words.index("create")]
    if Path("/run/systemd/system").is_dir():
        assert told["data"] == box.pid > 0
    else:
        assert told["data"] < 0
        assert re.search("systemd|bus", told["message"])


def test_conmon_tells_the_error(box: Box, place: Path) -> None:
    box.args("/nonexistent")
    told, _ = conmon(box, place)
    assert told["data"] < 0
    assert "no such file or directory" in told["message"].lower()
    entries = log_of(place)
    assert len(entries) == 1, "podman parses the log as one object"
    assert "no such file or directory" in entries[0]["msg"].lower()
    assert subprocess.run(["ls", place / "pidfile"], capture_output=True, check=False).returncode

"""Errors as engines see them: exit status, text on stderr, the JSON line of the log, the words that they match."""

from __future__ import annotations

import json
import re
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.peers import peer_fails
from tests.harness.runtime import Result, Runtime


@pytest.fixture
def log(place: Path) -> Path:
    return place / "log"


def logged(box: Box, log: Path, *arguments: Any, **options: Any) -> tuple[Result, dict[str, Any]]:
    """Run a failing command with a JSON log: its result and the one object of the log, as podman parses it."""
    box.runtime.extra = ["--log", str(log), "--log-format", "json"]
    try:
        result = box.runtime(*arguments, check=False, **options)
    finally:
        box.runtime.extra = []
    return result, json.loads(log.read_text())


def failing_create(box: Box, log: Path) -> tuple[Result, dict[str, Any]]:
    box.write()
    return logged(box, log, "create", "--bundle", box.path, box.id)


def test_json_log_is_one_object(box: Box, log: Path) -> None:
    """podman parses the whole file as one object; containerd takes the last whose level is error."""
    box.args("/nonexistent")
    result, entry = failing_create(box, log)
    assert result.rc == 1
    assert entry["level"] == "error"
    assert entry["msg"]
    assert datetime.fromisoformat(entry["time"]).tzinfo is not None
    assert log.read_text().count("\n") == 1


def test_error_is_on_stderr_too(box: Box, log: Path) -> None:
    """conmon takes what the runtime writes on stderr."""
    box.args("/nonexistent")
    result, entry = failing_create(box, log)
    assert "nonexistent" in result.err
    if box.runtime.name == "ocirt":
        assert entry["msg"] in result.err
        assert result.out == ""


def test_log_is_appended_to(box: Box, log: Path) -> None:
    log.write_text('{"level":"info","msg":"before"}\n')
    box.args("/nonexistent")
    box.runtime.extra = ["--log", str(log), "--log-format", "json"]
    box.create(check=False)
    box.runtime.extra = []
    lines = log.read_text().splitlines()
    assert json.loads(lines[0])["msg"] == "before"
    assert [json.loads(line)["level"] for line in lines[1:]] == ["error"]


def test_text_log(box: Box, log: Path) -> None:
    box.args("/nonexistent")
    box.runtime.extra = ["--log", str(log)]
    box.create(check=False)
    box.runtime.extra = []
    if box.runtime.name == "crun":
        assert "nonexistent" in log.read_text()
    else:
        assert re.search(r'^time="[^"]+" level=error msg=".*nonexistent.*"$', log.read_text(), re.MULTILINE)


def test_success_leaves_an_empty_log_and_says_nothing(box: Box, log: Path) -> None:
    box.args("/bin/true")
    for format in ("json", "text"):
        box.runtime.extra = ["--log", str(log), "--log-format", format]
        result = box.run()
        box.runtime.extra = []
        assert (result.out, result.err) == ("", "")
        assert not log.exists() or log.read_text() == ""


def test_a_warning_does_not_spoil_the_json_log(box: Box, log: Path) -> None:
    """One object even if there was something to warn of before the error."""
    box.capabilities("CAP_BOGUS")
    box.args("/nonexistent")
    if box.runtime.name == "runc":
        pytest.xfail("runc writes its warnings as objects of their own, which podman can't parse")
    _, entry = failing_create(box, log)
    assert entry["level"] == "error"


def test_debug_log(box: Box, log: Path) -> None:
    box.args("/bin/true")
    box.runtime.extra = ["--debug", "--log", str(log), "--log-format", "json"]
    box.run()
    box.runtime.extra = []
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    if box.runtime.name != "crun":
        assert entries
    assert all({"level", "msg", "time"} <= set(entry) for entry in entries)


def test_error_text_of_odd_bytes_is_json_all_the_same(box: Box, log: Path) -> None:
    (box.rootfs / "odd").mkdir()
    box.args('/odd/"quoted"\n\t\x01ü')
    result, entry = failing_create(box, log)
    assert result.rc == 1
    assert "quoted" in entry["msg"]


def program(box: Box, name: str, content: str = "#!/bin/sh\n", mode: int = 0o755) -> None:
    path = box.rootfs / name.lstrip("/")
    path.write_text(content)
    path.chmod(mode)


#: podman takes exit status 127 from the first, 126 from the second; Docker from its own, all case-insensitive.
PODMAN_127 = r"executable file not found in|no such file or directory|open executable"
PODMAN_126 = r"permission denied|operation not permitted"
DOCKER_127 = r"executable file not found|no such file or directory|system cannot find the file specified"
DOCKER_126 = r"permission denied|is a directory"


@pytest.mark.parametrize(
    ("args", "podman", "docker"),
    [
        pytest.param(["/nonexistent"], PODMAN_127, DOCKER_127, id="absolute"),
        pytest.param(["nonexistent"], PODMAN_127, DOCKER_127, id="in PATH"),
        pytest.param(["./nonexistent"], PODMAN_127, DOCKER_127, id="relative"),
        pytest.param(["/bin"], PODMAN_126, DOCKER_126, id="a directory"),
        pytest.param(["/not-executable"], PODMAN_126, DOCKER_126, id="no x bit"),
        pytest.param(["not-executable"], PODMAN_126, DOCKER_126, id="no x bit in PATH",
                     marks=peer_fails("runc", "says that it is not found")),
        pytest.param([""], PODMAN_127, DOCKER_127, id="empty", marks=peer_fails("crun", "calls it a directory")),
    ],
)  # fmt: skip
def test_words_of_a_program_that_can_not_run(box: Box, log: Path, args: list[str], podman: str, docker: str) -> None:
    program(box, "/not-executable", mode=0o644)
    if args == ["not-executable"]:
        program(box, "/bin/not-executable", mode=0o644)
    box.args(*args)
    result, entry = failing_create(box, log)
    assert result.rc == 1
    for pattern in (podman, docker):
        if box.runtime.name == "crun" and pattern is DOCKER_126:
            continue  # dockerd gives 125 with crun here
        assert re.search(pattern, entry["msg"], re.IGNORECASE), entry["msg"]
        wrong = {PODMAN_127: PODMAN_126, DOCKER_127: DOCKER_126}.get(pattern)
        if wrong:
            assert not re.search(wrong, entry["msg"], re.IGNORECASE), entry["msg"]


@pytest.mark.parametrize(
    ("content", "word"),
    [("no interpreter line", "exec format error"), ("#!/nonexistent/interpreter\n", "no such file or directory")],
)
def test_a_program_that_exec_refuses(box: Box, content: str, word: str) -> None:
    """Known only when it is executed: `start` or `run` tells it."""
    program(box, "/refused", content)
    box.args("/refused")
    result = box.run(check=False)
    assert result.rc != 0
    assert word in result.err.lower()


def test_start_tells_of_a_program_that_exec_refuses(box: Box) -> None:
    program(box, "/refused", "no interpreter line")
    box.args("/refused")
    if box.create(check=False).rc != 0:
        return  # it may be known earlier
    result = box.start(check=False)
    text = result.err + box.err
    assert "exec format error" in text.lower()


def test_unknown_container(box: Box, log: Path) -> None:
    """go-runc and podman match `does not exist`."""
    for command in ("state", "start", "kill", "delete"):
        log.unlink(missing_ok=True)
        result, entry = logged(box, log, command, box.id)
        assert result.rc == 1
        if box.runtime.name != "crun":
            assert "does not exist" in entry["msg"]
            assert "does not exist" in result.err
    assert box.runtime("delete", "--force", box.id).text == ""


def test_kill_of_the_dead(box: Box, log: Path) -> None:
    """containerd matches `os: process already finished`, `container not running` and `no such process`."""
    box.create_and_start("exit 0")
    box.wait_for("stopped")
    if box.runtime.name == "crun":
        pytest.xfail("1.8.1 says success")
    _, entry = logged(box, log, "kill", box.id, "9")
    assert re.search("container not running|no such process|process already finished", entry["msg"], re.IGNORECASE)


def test_existing_id(box: Box, log: Path) -> None:
    box.create()
    _, entry = failing_create(box, log)
    assert "already exists" in entry["msg"] or "given ID already exists" in entry["msg"]


def test_states_are_named(box: Box, log: Path) -> None:
    box.create_and_start("sleep 1000")
    _, entry = logged(box, log, "start", box.id)
    if box.runtime.name != "crun":
        assert "cannot start an already running container" in entry["msg"]
    log.unlink()
    _, entry = logged(box, log, "delete", box.id)
    if box.runtime.name == "crun":
        assert "is not in `created` or `stopped` state" in entry["msg"]
    else:
        assert "not stopped" in entry["msg"]
    box.kill(str(int(signal.SIGKILL)))
    box.wait_for("stopped")
    log.unlink()
    _, entry = logged(box, log, "start", box.id)
    if box.runtime.name != "crun":
        assert "cannot start a container that has stopped" in entry["msg"]


def test_bad_arguments_are_told(runtime: Runtime) -> None:
    for arguments in (["create", "--bogus", "x"], ["create"], ["state"], ["state", "a", "b"], ["frobnicate"]):
        result = runtime(*arguments, check=False)
        assert result.rc != 0, arguments
        assert result.text.strip(), arguments


def test_no_traceback_and_no_path_of_ours_in_a_users_error(box: Box) -> None:
    for edit in (
        lambda: box.args("/nonexistent"),
        lambda: box.bind("/nonexistent", "/mnt"),
        lambda: box.namespace("network", "/nonexistent"),
    ):
        edit()
        result = box.create(check=False)
        assert "Traceback" not in result.err
        assert "bug in" not in result.err
        assert ".py" not in result.err


def test_a_log_that_can_not_be_opened_is_an_error(box: Box, place: Path) -> None:
    box.args("/bin/true")
    box.runtime.extra = ["--log", str(place / "missing" / "log")]
    result = box.run(check=False)
    box.runtime.extra = []
    assert result.rc == 1
    assert "no such file or directory" in result.err.lower()


def test_memory_limit_too_small_to_start(box: Box) -> None:
    """A container that its own limit kills during set-up says so; later it is the program that was killed."""
    box.linux["resources"]["memory"] = {"limit": 64 << 10}
    result = box.run("true", check=False)
    assert result.rc != 0
    assert result.rc == 128 + signal.SIGKILL or re.search(r"memory|OOM", result.err)

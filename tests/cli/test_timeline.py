"""The timeline: `--debug`, and `run --profile` for the trace viewers of browsers."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ocirt.process import init, steps
from tests.harness.box import Box
from tests.harness.peers import lacks

pytestmark = lacks("runc", "crun", what="a timeline")

#: Steps that come after init has given up the log: its descriptors belong to the program
_UNSEEN = steps.CREATE.index(steps.tell_ready)
_STEPS = [init.phrase(step) for step in steps.CREATE[:_UNSEEN]]


def profile(box: Box, file: Path, *flags: str, **options: Any) -> list[dict[str, Any]]:
    """What `run --profile` writes."""
    box.run(None, "--profile", file, *flags, **options)
    events: list[dict[str, Any]] = json.loads(file.read_text())
    return events


def bars(events: list[dict[str, Any]], who: str) -> list[dict[str, Any]]:
    """The steps of the runtime or of init, in the order in which they began."""
    threads = {e["args"]["name"]: e["tid"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {"runtime", "init"} == set(threads)
    mine = [event for event in events if event["ph"] == "X" and event["tid"] == threads[who]]
    return sorted(mine, key=lambda event: float(event["ts"]))


def test_profile(box: Box, place: Path) -> None:
    box.args("/bin/true")
    began = time.monotonic()
    events = profile(box, place / "trace.json")
    took = (time.monotonic() - began) * 1e6
    assert {event["ph"] for event in events} == {"M", "X"}
    assert len({event["pid"] for event in events}) == 1, "one process for viewers, with two threads"
    inside, outside = bars(events, "init"), bars(events, "runtime")
    assert [event["name"] for event in inside] == _STEPS
    names = [event["name"] for event in outside]
    assert names[0] == "start the interpreter"
    assert (
        names.index("make the cgroup") < names.index("clone the container's process") < names.index("wait for execve")
    )
    assert names[-1] == "delete the container"
    for one in (inside, outside):
        for event, following in itertools.pairwise(one):
            assert following["ts"] == pytest.approx(event["ts"] + event["dur"], abs=0.01), "steps follow on each other"
    assert sum(event["dur"] for event in outside) <= took
    assert outside[0]["ts"] == 0 < outside[0]["dur"], "zero is the interpreter's start"


def test_init_is_on_the_runtimes_clock(box: Box, place: Path) -> None:
    """In a time namespace, too, whose clocks are others."""
    box.args("/bin/true")
    box.config["linux"]["namespaces"].append({"type": "time"})
    box.config["linux"]["timeOffsets"] = {"monotonic": {"secs": 86400}, "boottime": {"secs": 86400}}
    events = profile(box, place / "trace.json")
    inside = bars(events, "init")
    outside = {event["name"]: event for event in bars(events, "runtime")}
    clone, execve = outside["clone the container's process"], outside["wait for execve"]
    assert clone["ts"] <= inside[0]["ts"]
    assert inside[-1]["ts"] + inside[-1]["dur"] <= execve["ts"] + execve["dur"]


def test_profile_of_a_failure(box: Box, place: Path) -> None:
    """It ends where the command does, and is still one that viewers read."""
    box.args("/nonexistent")
    file = place / "trace.json"
    assert box.run(None, "--profile", file, check=False).rc == 1
    inside = bars(json.loads(file.read_text()), "init")
    assert inside[-1]["name"] == "find the program"


def test_profile_replaces_what_was_there(box: Box, place: Path) -> None:
    box.args("/bin/true")
    file = place / "trace.json"
    file.write_text("x" * 100_000)
    profile(box, file)
    assert file.stat().st_size < 50_000


def test_profile_that_cannot_be_written(box: Box, place: Path) -> None:
    box.args("/bin/true")
    result = box.run(None, "--profile", place / "missing/trace.json", check=False)
    assert result.rc == 1
    assert "write the profile" in result.err
    assert "no such file or directory" in result.err
    assert box.runtime("state", box.id, check=False).rc == 1, "nothing was made"


def test_the_program_does_not_get_the_profile(box: Box, place: Path) -> None:
    """Nor does an init that waits: the file is the host's."""
    box.args("/bin/ls", "-l", "/proc/self/fd")
    profile(box, place / "trace.json")
    assert "trace.json" not in box.out


def test_debug_tells_microseconds(box: Box, place: Path) -> None:
    box.args("/bin/true")
    log = place / "log"
    box.runtime.extra = ["--debug", "--log", str(log)]
    box.run()
    box.runtime.extra = []
    lines = re.findall(r'level=debug msg="\s*(\d+) \S+  (runtime|init): ([^"]+)"', log.read_text())
    assert [text for _, who, text in lines if who == "init"] == _STEPS
    outside = [text for _, who, text in lines if who == "runtime"]
    assert outside[0] == "read the command line"
    assert outside[-1] == "end"
    for who in ("runtime", "init"):
        times = [int(number) for number, one, _ in lines if one == who]
        assert times == sorted(times)
        assert times[-1] > times[0] > 1000, "zero is the interpreter's start"


def test_debug_of_exec(box: Box, place: Path) -> None:
    box.create_and_start("sleep 1000")
    log = place / "log"
    box.runtime.extra = ["--debug", "--log", str(log)]
    box.exec("/bin/true")
    box.runtime.extra = []
    text = log.read_text()
    assert "runtime: clone the container's process" in text
    assert "init: join the namespaces that have a path" in text


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("pause", "freeze the processes"),
        ("update --pids-limit 50", "change the limits"),
        ("kill", "send the signal"),
        ("delete --force", "delete the container"),
    ],
)
def test_debug_of_other_commands(box: Box, command: str, step: str) -> None:
    box.create_and_start("sleep 1000")
    box.runtime.extra = ["--debug"]
    told = box.runtime(*command.split(), box.id).err
    box.runtime.extra = []
    assert re.search(rf"(?m)^debug: +\d+ \S+  runtime: {step}$", told)
    assert told.endswith("runtime: end\n")


def test_commands_with_steps_are_documented(box: Box, place: Path) -> None:
    """docs/cli.md has them, and no others tell any."""
    text = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    (line,) = re.findall(r"(?m)^With `--debug` these commands tell their steps: (.*)\.$", text)
    documented = re.findall("`([a-z]+)`", line)
    mounts = place / "mounts.json"
    mounts.write_text('[{"destination": "/tmp/m", "type": "tmpfs", "source": "tmpfs"}]')
    box.write()
    commands = f"""create --bundle {box.path} ID; start ID; exec ID true; state ID; list; ps ID; events --stats ID
        pause ID; resume ID; update --pids-limit 50 ID; mounts add ID {mounts}; features; version; validate {box.path}
        kill ID KILL; delete --force ID"""
    box.sh("sleep 1000")
    box.write()
    box.runtime.extra = ["--debug", "--log", str(place / "log")]
    told: dict[str, bool] = {}
    for command in re.split(r"[;\n]\s*", commands.replace("ID", box.id)):
        (place / "log").unlink(missing_ok=True)
        box.runtime(*command.split(), out=place / "out", err=place / "err")
        told[command.split()[0]] = "runtime: " in (place / "log").read_text()
    box.runtime.extra = []
    assert {name for name, steps in told.items() if steps} == set(documented) - {"run", "checkpoint", "restore"}


def test_no_timeline_unless_asked(box: Box, place: Path) -> None:
    box.args("/bin/true")
    log = place / "log"
    box.runtime.extra = ["--log", str(log)]
    box.run()
    box.runtime.extra = []
    assert log.read_text() == ""

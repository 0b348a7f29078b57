"""What the specification says of the state and of the operations' arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.harness.box import Box
from tests.harness.runtime import Runtime

SCHEMAS = Path(__file__).resolve().parent.parent.parent / "schemas"


def fits(name: str, document: Any) -> None:
    """Does a document fit one of schemas/? (conformance/schemas compares those with the official ones.)"""

    def retrieve(uri: str) -> Resource[Any]:
        return Resource(contents=json.loads((SCHEMAS / uri.rpartition("/")[2]).read_text()), specification=DRAFT202012)

    base = f"file:///{name}"
    registry: Registry[Any] = Registry(retrieve=retrieve)  # type: ignore[call-arg]
    Draft202012Validator({"$ref": base}, registry=registry).validate(document)


def test_state_of_each_status_fits_the_schema(box: Box) -> None:
    """runtime.md, State: created and running have a pid, and every status the rest."""
    box.config["annotations"] = {"org.example.key": "value"}
    box.sh("sleep 1000")
    box.create()
    seen = [box.state()]
    pid = box.pid
    box.start()
    seen.append(box.state())
    box.kill("KILL")
    box.exit_status(pid)
    box.wait_for("stopped")
    seen.append(box.state())
    assert [state["status"] for state in seen] == ["created", "running", "stopped"]
    for state in seen:
        fits("state.json", {"pid": 0, **state})
        assert state["id"] == box.id
        assert state["bundle"] == str(box.path)
        assert state["annotations"] == {"org.example.key": "value"}
        if state["status"] != "stopped":
            assert state["pid"] == pid


def test_paused_is_a_status_of_its_own(box: Box) -> None:
    """runtime.md, State: additional values stand for states that aren't defined there."""
    box.create_and_start("sleep 1000")
    box.runtime("pause", box.id)
    assert box.status == "paused"
    box.runtime("resume", box.id)
    assert box.status == "running"


@pytest.mark.parametrize("annotations", [None, {}])
def test_without_annotations_the_property_is_absent_or_empty(box: Box, annotations: dict[str, str] | None) -> None:
    if annotations is not None:
        box.config["annotations"] = annotations
    box.create()
    assert not box.state().get("annotations")


def test_annotations_come_back(box: Box) -> None:
    """config.md, Annotations: any key that isn't empty, any value; unknown ones of org.opencontainers are no error."""
    annotations = {
        "com.example.key": "value",
        "no-domain": "x",
        "empty": "",
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.of.tomorrow": "x",
        "text": '{"structured": [1]}\n and ünïcode',
    }
    box.config["annotations"] = annotations
    box.create()
    assert box.state()["annotations"] == annotations


@pytest.mark.parametrize("command", ["state", "create", "start", "kill", "delete"])
def test_an_operation_without_an_id_is_an_error(runtime: Runtime, command: str) -> None:
    result = runtime(command, check=False)
    assert result.rc != 0
    assert result.err

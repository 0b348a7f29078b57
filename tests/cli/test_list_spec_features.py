"""list, spec, features, --version."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import MakeBox
from tests.harness.box import Box
from tests.harness.peers import lacks, peer_fails
from tests.harness.runtime import Runtime


def test_list_of_nothing(runtime: Runtime) -> None:
    assert runtime("list", "--quiet").out == ""
    assert json.loads(runtime("list", "--format", "json").out) in (None, [])


def test_list(box: Box, make_box: MakeBox) -> None:
    box.config["annotations"] = {"k": "v"}
    box.create()
    other = make_box()
    other.create_and_start("sleep 1000")
    assert sorted(box.runtime("list", "-q").out.split()) == sorted([box.id, other.id])
    entries = {entry["id"]: entry for entry in json.loads(box.runtime("list", "--format=json").out)}
    assert set(entries) == {box.id, other.id}
    entry = entries[box.id]
    assert entry["status"] == "created"
    assert entry["pid"] == box.pid
    assert entry["bundle"] == str(box.path)
    assert datetime.fromisoformat(entry["created"]).tzinfo is not None
    assert entry["owner"] == "root"
    assert entries[other.id]["status"] == "running"
    table = box.runtime("list").out.splitlines()
    assert re.match(r"(ID|NAME)\s+PID\s+STATUS\s+BUNDLE", table[0])
    assert any(re.match(rf"{box.id}\s+{box.pid}\s+created\s+{box.path}\s", f"{line} ") for line in table[1:])


@peer_fails("crun", "lists neither rootfs nor annotations")
def test_list_has_what_go_clients_read(box: Box) -> None:
    box.config["annotations"] = {"k": "v"}
    box.create()
    (entry,) = json.loads(box.runtime("list", "--format=json").out)
    assert entry["rootfs"] == str(box.rootfs)
    assert entry["annotations"] == {"k": "v"}


def test_list_passes_over_what_is_no_container(box: Box) -> None:
    box.create()
    (box.runtime.root / "empty").mkdir()
    try:
        result = box.runtime("list", "--quiet", check=False)
        assert box.id in result.out.split()
    finally:
        (box.runtime.root / "empty").rmdir()


def test_state_has_created_and_owner(box: Box) -> None:
    box.create()
    state = box.state()
    assert datetime.fromisoformat(state["created"]).tzinfo is not None
    assert "owner" in state
    assert "rootfs" in state


def test_spec_makes_a_config_that_runs(runtime: Runtime, box: Box) -> None:
    runtime("spec", "--bundle", box.path)
    config = json.loads((box.path / "config.json").read_text())
    assert config["process"]["args"] == ["sh"]
    assert config["root"]["path"] == "rootfs"
    config["process"]["terminal"] = False
    (box.path / "config.json").write_text(json.dumps(config))
    assert runtime("run", "--bundle", box.path, box.id, stdin="echo from sh\n").out == "from sh\n"


def test_spec_does_not_overwrite(runtime: Runtime, box: Box) -> None:
    (box.path / "config.json").write_text("mine")
    result = runtime("spec", cwd=box.path, check=False)
    assert result.rc == 1
    assert re.search("config.json`? (already )?exists", result.err)
    assert (box.path / "config.json").read_text() == "mine"


@peer_fails("crun", "maps ids by itself and writes no mappings")
def test_spec_rootless(runtime: Runtime, place: Path) -> None:
    runtime("spec", "--rootless", cwd=place)
    config = json.loads((place / "config.json").read_text())
    kinds = {n["type"] for n in config["linux"]["namespaces"]}
    assert "user" in kinds
    assert config["linux"]["uidMappings"] == [{"containerID": 0, "hostID": os.getuid(), "size": 1}]


@lacks("crun", what="features before 1.8.6")
def test_features(runtime: Runtime) -> None:
    features = json.loads(runtime("features").out)
    assert features["ociVersionMin"] == "1.0.0"
    assert re.match(r"1\.\d+\.\d+", features["ociVersionMax"])
    assert features["hooks"] == [
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
    ]  # fmt: skip
    assert {"ro", "rw", "bind", "rbind", "rro", "rshared", "nosuid"} <= set(features["mountOptions"])
    linux = features["linux"]
    assert {"pid", "network", "mount", "ipc", "uts", "user", "cgroup"} <= set(linux["namespaces"])
    assert {"CAP_CHOWN", "CAP_BPF"} <= set(linux["capabilities"])


@lacks("crun", what="features before 1.8.6")
@peer_fails("runc", "1.1.5 knows neither time namespaces nor idmapped mounts")
def test_features_of_today(runtime: Runtime) -> None:
    features = json.loads(runtime("features").out)
    assert {"time"} <= set(features["linux"]["namespaces"])
    assert features["linux"]["mountExtensions"]["idmap"]["enabled"] is True
    assert {"idmap", "ridmap", "tmpcopyup", "lazytime", "iversion", "silent", "nosymfollow"} <= set(
        features["mountOptions"]
    )
    assert isinstance(features["potentiallyUnsafeConfigAnnotations"], list)


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_version(runtime: Runtime, flag: str) -> None:
    lines = runtime(argv=[runtime.path, flag]).out.splitlines()
    assert re.fullmatch(rf"{runtime.name} version \S+", lines[0])
    assert any(line.startswith("spec: ") for line in lines)
    assert any(line.startswith("commit: ") for line in lines)

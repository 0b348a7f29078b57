"""The commands' own work: signals, JSON and tables, features, spec, validate, where state is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocirt import commands
from ocirt.__main__ import main
from ocirt.commands import columns, features, indented
from ocirt.commands.kill import signal_number
from ocirt.errors import Error
from ocirt.validation import problems

TOP = Path(__file__).resolve().parents[2]


def test_every_signal_by_name_and_number() -> None:
    for known in signal.Signals:
        for name in (known.name, known.name[3:], known.name.lower(), str(int(known))):
            assert signal_number(name) == known
    assert signal_number("RTMIN+2") == signal.SIGRTMIN + 2
    assert signal_number("SIGRTMAX-1") == signal.SIGRTMAX - 1
    assert signal_number("0") == 0


@pytest.mark.parametrize(
    "text",
    ["", "BOGUS", "SIG", "_DFL", "SIG_DFL", "SIG_BLOCK", "65", "-9", "+9", "9 ", "٩", "1_0", "9" * 20, "RTMIN-1",
     "RTMIN+31", "RTMIN+", "RTMAX+1", "KILL+1", "RTMIN+x", "RTMIN+1+1", "SIGSIGKILL"],
)  # fmt: skip
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(Error, match="unknown signal"):
        signal_number(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_indented_is_what_json_writes(value: Any) -> None:
    assert indented(value) == json.dumps(value, indent=2, ensure_ascii=False)


def test_indented_of_a_path_that_is_not_utf8() -> None:
    assert json.loads(indented({"p": os.fsdecode(b"/\xff/x")})) == {"p": "/�/x"}


def test_columns() -> None:
    assert columns([("ID", "PID"), ("c" * 12, "1")]) == "ID             PID\ncccccccccccc   1\n"
    assert columns([("ID", "PID", "X")]) == "ID          PID         X\n"


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may depend on nothing that engines don't give to every call."""
    for rootless, euid, variable, wanted in (
        (False, 0, b"/run/user/0", "/run/ocirt"),
        (False, 0, b"", "/run/ocirt"),
        (True, 1000, b"/run/user/1000", "/run/user/1000/ocirt"),
        (True, 0, b"/run/user/1000", "/run/user/1000/ocirt"),
        (True, 0, b"", "/run/ocirt"),
        (True, 1000, b"", None),
    ):
        monkeypatch.setattr(commands, "is_rootless", lambda rootless=rootless: rootless)
        monkeypatch.setattr(commands.posix, "geteuid", lambda euid=euid: euid)
        monkeypatch.setitem(commands.posix.environ, b"XDG_RUNTIME_DIR", variable)
        if wanted is None:
            with pytest.raises(Error, match="XDG_RUNTIME_DIR is not set"):
                commands.default_root()
        else:
            assert commands.default_root() == wanted


def test_root_of_a_user_namespace_is_rootless() -> None:
    code = "from ocirt.commands import is_rootless; print(is_rootless())"
    inside = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", code],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    assert inside.stdout == "True\n"
    assert commands.is_rootless() == (os.geteuid() != 0)


# --- features -----------------------------------------------------------------------------------------------


def test_features_fit_the_specification() -> None:
    from jsonschema import Draft7Validator

    found = json.loads(indented(features.features()))
    for value in (found["hooks"], found["mountOptions"], *(v for v in found["linux"].values() if isinstance(v, list))):
        assert value
        assert len(value) == len(set(value))
    assert set(found["linux"]) == {
        "namespaces", "capabilities", "cgroup", "seccomp", "apparmor", "selinux", "intelRdt", "memoryPolicy",
        "mountExtensions", "netDevices",
    }  # fmt: skip
    assert len(found["linux"]["namespaces"]) == 8
    Draft7Validator({"type": "object", "required": ["ociVersionMin", "ociVersionMax"]}).validate(found)


def test_what_engines_read_of_features() -> None:
    """containerd's CRI plugin: recursive read-only mounts and user namespaces; dockerd: both versions."""
    found = features.features()
    assert "rro" in found["mountOptions"]
    assert "user" in found["linux"]["namespaces"]
    assert found["linux"]["mountExtensions"]["idmap"]["enabled"] is True
    assert found["ociVersionMin"] == "1.0.0"
    assert found["ociVersionMax"] == "1.3.0"


def test_every_mount_option_of_the_specification_is_a_feature() -> None:
    """features.md's example lists them; acl and noacl go to the file system as data."""
    wanted = (
        "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev "
        "nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private "
        "ratime rbind rdev rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime "
        "rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid "
        "rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable"
    )
    assert set(wanted.split()) <= set(features.features()["mountOptions"])


def test_annotations_that_change_what_we_do_are_listed() -> None:
    known = features.features()["potentiallyUnsafeConfigAnnotations"]
    text = "".join(path.read_text() for path in (TOP / "ocirt").rglob("*.py") if path.name != "features.py")
    used = set(re.findall(r'"((?:run\.oci|org\.systemd\.property|org\.criu|org\.ocirt)\.[A-Za-z_.]*)"', text))
    assert used
    for name in used:
        assert any(name == k or (k.endswith(".") and name.startswith(k)) for k in known), name


# --- spec and validate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--rootless"]])
def test_spec_is_valid(tmp_path: Path, flags: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "--bundle", str(tmp_path), *flags]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert problems(config) == []
    assert main(["spec", "--bundle", str(tmp_path), *flags]) == 1
    assert "File config.json exists. Remove it first" in capfd.readouterr().err
    assert main(["validate", str(tmp_path)]) == 1  # no rootfs yet
    (tmp_path / "rootfs").mkdir()
    assert main(["validate", str(tmp_path)]) == 0


def test_validate_reports_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["spec", "--bundle", str(tmp_path)])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["process"]["cwd"] = "relative"
    config["linux"]["namespaces"].append({"type": "pid"})
    config["process"]["rlimitz"] = config["process"].pop("rlimits")
    path.write_text(json.dumps(config))
    capfd.readouterr()
    assert main(["validate", "--format", "json", str(tmp_path)]) == 1
    report = json.loads(capfd.readouterr().out)
    paths = {problem["path"] for problem in report["problems"] if problem["severity"] == "error"}
    assert {"process.cwd", "root.path"} <= paths
    assert any(p.startswith("linux.namespaces") for p in paths)
    assert any("rlimitz" in p["path"] and p["severity"] == "warning" for p in report["problems"])
    assert main(["validate", str(tmp_path)]) == 1
    out = capfd.readouterr().out
    assert all(path in out for path in paths)


def test_validate_of_what_is_no_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for directory, text in ((tmp_path / "none", "no such file"), (tmp_path, "config.json")):
        assert main(["validate", str(directory)]) == 1
        assert text in capfd.readouterr().out
    (tmp_path / "config.json").write_text('{"ociVersion": ')
    assert main(["validate", str(tmp_path)]) == 1
    captured = capfd.readouterr()
    assert "bug" not in captured.out + captured.err

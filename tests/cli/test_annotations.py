"""Annotations by which engines and administrators ask for what config.json has no field for."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.peers import lacks, peer_fails

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
SYSTEMD = os.path.isdir("/run/systemd/system")
GROUPS = [4321, 4322]


@peer_fails("runc", "has no such annotation")
def test_keep_original_groups(box: Box) -> None:
    """What `podman run --group-add keep-groups` asks for."""
    box.config["annotations"] = {"run.oci.keep_original_groups": "1"}
    box.args("/bin/cat", "/proc/self/status")
    found = re.search(r"^Groups:(.*)$", box.run(extra_groups=GROUPS).out, re.MULTILINE)
    assert found
    assert sorted(map(int, found.group(1).split())) == GROUPS


def test_groups_of_the_caller_are_dropped_otherwise(box: Box) -> None:
    for value in (None, "0"):
        box.config["annotations"] = {"run.oci.keep_original_groups": value} if value else {}
        box.args("/bin/cat", "/proc/self/status")
        if value is None or box.runtime.name == "ocirt":
            found = re.search(r"^Groups:(.*)$", box.run(extra_groups=GROUPS).out, re.MULTILINE)
            assert found
            assert found.group(1).split() == []


@lacks("runc", what="run.oci.pidfd_receiver")
def test_pidfd_receiver(box: Box, place: Path) -> None:
    box.config["annotations"] = {"run.oci.pidfd_receiver": str(place / "receiver")}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "receiver"))
        listener.listen(1)
        listener.settimeout(20)
        box.sh("sleep 1000")
        box.create()
        connection, _ = listener.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 100, 4)
    info = Path(f"/proc/self/fdinfo/{descriptors[0]}").read_text()
    os.close(descriptors[0])
    assert f"Pid:\t{box.pid}\n" in info


def printing(*kinds: str) -> dict[str, list[dict[str, object]]]:
    """Hooks that print their kind on both streams, and on stderr more than an error would quote."""
    much = "n=0; while [ $n -lt 300 ]; do echo ................................; n=$((n+1)); done >&2"
    return {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind}; echo {kind}-e >&2; {much}"]}] for kind in kinds
    }


@lacks("runc", what="run.oci.hooks.stdout")
def test_output_of_hooks(box: Box, place: Path) -> None:
    """Every kind's, inside and outside the container; what was in a file stays."""
    out, err = place / "out", place / "err"
    out.write_text("before\n")
    box.config["hooks"] = printing(*KINDS)
    box.config["annotations"] = {"run.oci.hooks.stdout": str(out), "run.oci.hooks.stderr": str(err)}
    box.create_and_start("exit 0")
    box.wait_for("stopped")
    box.delete()
    assert out.read_text().split() == ["before", *KINDS]
    assert re.findall(r"^\w+-e$", err.read_text(), re.MULTILINE) == [f"{kind}-e" for kind in KINDS]
    assert err.stat().st_size > 9000 * len(KINDS)


@lacks("runc", "crun", what="the text in the error as well")
def test_output_of_a_hook_that_fails(box: Box, place: Path) -> None:
    """It is in the file and in the error; a path is relative to the bundle."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo why-it-failed >&2; exit 3"]}
    box.config["hooks"] = {"createContainer": [hook]}
    box.config["annotations"] = {"run.oci.hooks.stderr": "err"}
    told = box.create(check=False).err
    assert "exit status 3, stdout: , stderr: " in told
    assert "why-it-failed" in told
    assert (box.path / "err").read_text().endswith("why-it-failed\n")


@lacks("runc", "crun", what="the annotation's name in the error")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_file_for_hooks_that_cannot_be_opened(box: Box, place: Path, stream: str) -> None:
    box.config["hooks"] = printing(*KINDS)
    os.mkfifo(place / "unread")
    for path, why in ((place / "none" / "file", "no such file or directory"), (place / "unread", "no such device")):
        box.config["annotations"] = {f"run.oci.hooks.{stream}": str(path)}
        result = box.create(check=False)
        assert result.rc == 1
        assert f"open the file of the annotation run.oci.hooks.{stream}: {path}: {why}" in result.err
        assert box.runtime("state", box.id, check=False).rc == 1


@lacks("runc", "crun", what="a word on it")
def test_a_file_for_hooks_that_is_gone_later(box: Box, place: Path) -> None:
    """The hooks after start: the container is stopped for poststart's, as for a hook that fails; poststop's run."""
    (place / "there").mkdir()
    box.config["annotations"] = {"run.oci.hooks.stdout": str(place / "there" / "file")}
    for kind in ("poststart", "poststop"):
        hooks = printing(kind)
        hooks[kind][0]["args"] = ["sh", "-c", f"echo ran > {place}/{kind}"]
        box.config["hooks"] = hooks
        box.sh("sleep 1000")
        box.create()
        (place / "there").rename(place / "elsewhere")
        started = box.start(check=False)
        result = started if kind == "poststart" else box.delete("--force")
        assert "open the file of the annotation run.oci.hooks.stdout" in result.err
        assert result.rc == (1 if kind == "poststart" else 0)
        assert (place / kind).exists() == (kind == "poststop")
        assert box.runtime("state", box.id, check=False).rc == 1
        (place / "elsewhere").rename(place / "there")


def place_of(pid: int | str) -> Path:
    """The directory of the cgroup2 that a process is in."""
    return Path("/sys/fs/cgroup" + Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::"))


@pytest.mark.skipif(not UNIFIED, reason="needs cgroup v2 alone")
@lacks("runc", "crun", what="these owners and limits")
@pytest.mark.parametrize("where", ["new", "there"])
def test_delegate_cgroup(box: Box, place: Path, test_id: str, where: str) -> None:
    """The processes are in it and own it; the limits are those of the cgroup above, which they don't see."""
    box.config["annotations"] = {"run.oci.delegate-cgroup": "payload/x"}
    box.config["linux"]["resources"] = {"pids": {"limit": 40}}
    box.config["linux"]["cgroupsPath"] = f"/{test_id}"
    above = Path("/sys/fs/cgroup", test_id)
    if where == "there":
        above.mkdir()
    box.add_user_namespace()
    box.namespace("cgroup")
    box.sh("cat /proc/self/cgroup; sleep 1000")
    box.create_and_start()
    box.wait_for_output("0::/\n")
    pid = box.pid
    inside = place_of(pid)
    assert inside == above / "payload/x"
    assert (above / "pids.max").read_text() == "40\n"
    assert (inside / "pids.max").read_text() == "max\n"
    assert [path.stat().st_uid == 0 for path in (above, above / "payload", inside, inside / "cgroup.procs")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert "0::/\n" in box.exec("/bin/cat", "/proc/self/cgroup").out
    box.runtime("pause", box.id)
    assert box.status == "paused"
    box.runtime("resume", box.id)
    box.runtime("update", "--pids-limit", "50", box.id)
    assert (above / "pids.max").read_text() == "50\n"
    assert str(pid) in box.runtime("ps", "-f", "json", box.id).out
    box.delete("--force")
    assert above.exists() == (where == "there")
    if where == "there":
        assert not (above / "payload").exists()
        above.rmdir()


@pytest.mark.skipif(UNIFIED, reason="this host has cgroup v2 alone")
@lacks("runc", what="run.oci.delegate-cgroup")
def test_delegate_cgroup_of_cgroup_v1(box: Box) -> None:
    box.config["annotations"] = {"run.oci.delegate-cgroup": "payload"}
    assert "delegat" in box.create(check=False).err
    assert box.runtime("state", box.id, check=False).rc == 1


@lacks("runc", "crun", what="the annotation's name in the error")
def test_a_cgroup_below_that_is_not_below(box: Box) -> None:
    box.config["annotations"] = {"run.oci.delegate-cgroup": "../other"}
    result = box.create(check=False)
    assert "run.oci.delegate-cgroup" in result.err
    assert ("contains '..'" in result.err) == UNIFIED


@pytest.mark.skipif(not (UNIFIED and SYSTEMD), reason="needs systemd and cgroup v2")
@lacks("runc", "crun", what="the limits on the scope")
@pytest.mark.parametrize(
    ("subgroup", "delegated", "below"),
    [("sub", "", "/sub"), ("", "", ""), ("", "payload", "/payload"), ("sub", "payload", "/sub/payload")],
)
def test_systemd_subgroup(box: Box, test_id: str, subgroup: str, delegated: str, below: str) -> None:
    annotations = {"run.oci.systemd.subgroup": subgroup, "run.oci.delegate-cgroup": delegated}
    box.config["annotations"] = annotations
    box.config["linux"]["resources"] = {"pids": {"limit": 40}}
    box.config["linux"]["cgroupsPath"] = f"system.slice:t:{test_id}"
    box.namespace("cgroup")
    box.sh("cat /proc/self/cgroup; sleep 1000")
    box.runtime.extra = ["--systemd-cgroup"]
    box.create_and_start()
    box.wait_for_output("0::/\n")
    pid = box.pid
    scope = Path("/sys/fs/cgroup/system.slice", f"t-{test_id}.scope")
    assert place_of(pid) == Path(f"{scope}{below}")
    assert (scope / "pids.max").read_text() == "40\n"
    assert "0::/\n" in box.exec("/bin/cat", "/proc/self/cgroup").out
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert place_of(pid) == Path(f"{scope}{below}")
    box.runtime("pause", box.id)
    box.runtime("resume", box.id)
    box.delete("--force")
    assert not scope.exists()


def test_systemd_subgroup_of_cgroupfs(box: Box) -> None:
    """It has no effect there, and none is asked for."""
    box.config["annotations"] = {"run.oci.systemd.subgroup": "sub"}
    assert "/sub\n" not in box.run("cat /proc/self/cgroup").out


@lacks("runc", "crun", what="such a warning")
def test_annotations_without_effect(box: Box, place: Path) -> None:
    """Those that crun has and others of its prefix are a warning; the container runs."""
    box.config["annotations"] = {
        "run.oci.handler": "wasm",
        "run.oci.hook.stdout": "/x",
        "run.oci.keep_original_groups": "1",
        "com.example": "",
    }
    result = box.run("echo runs")
    assert result.out == "runs\n"
    assert len(result.err.splitlines()) == 2
    assert 'annotations["run.oci.handler"]: is not supported and has no effect' in result.err
    assert "run.oci.hook.stdout" in result.err
    assert "did you mean run.oci.hooks.stdout?" in result.err
    validated = box.runtime("validate", box.path)
    assert "run.oci.handler" in validated.text

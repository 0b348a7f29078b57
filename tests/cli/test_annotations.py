"""Annotations by which engines and administrators ask for what config.json has no field for."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.peers import lacks, peer_fails

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
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

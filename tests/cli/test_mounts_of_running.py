"""`mounts add` and `mounts remove` on a container that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.peers import lacks

pytestmark = lacks("runc", "crun", what="the command mounts")


@pytest.fixture
def running(box: Box) -> Box:
    box.create_and_start("sleep 1000")
    return box


def change(box: Box, action: str, place: Path, *mounts: dict[str, Any], **options: Any) -> Any:
    file = place / "mounts.json"
    file.write_text(json.dumps(list(mounts)))
    return box.runtime("mounts", action, box.id, file, **options)


def sh(box: Box, script: str) -> str:
    return box.exec("/bin/sh", "-c", script).out


@pytest.fixture
def outside(place: Path) -> dict[str, Any]:
    """A bind mount of a directory of the host."""
    (place / "outside").mkdir()
    (place / "outside/file").write_text("from the host\n")
    return {"destination": "/data", "type": "none", "source": str(place / "outside"), "options": ["rbind", "ro"]}


def test_bind(running: Box, place: Path, outside: dict[str, Any]) -> None:
    change(running, "add", place, outside)
    assert sh(running, "cat /data/file; touch /data/x 2>/dev/null || echo read-only") == "from the host\nread-only\n"
    change(running, "remove", place, outside)
    assert sh(running, "ls /data; grep -c ' /data ' /proc/self/mountinfo || true") == "0\n"


def test_what_is_mounted_below_stays_inside(box: Box, place: Path, outside: dict[str, Any]) -> None:
    """The test's mounts are shared; what is added must not be a peer of them."""
    box.capabilities("CAP_SYS_ADMIN")
    box.create_and_start("sleep 1000")
    (place / "outside/below").mkdir()
    change(box, "add", place, {**outside, "options": ["rbind"]})
    assert "shared:" not in sh(box, "grep ' /data ' /proc/self/mountinfo")
    sh(box, "mount -t tmpfs tmpfs /data/below && touch /data/below/inside")
    assert not (place / "outside/below/inside").exists()


def test_bind_in_a_user_namespace(box: Box, place: Path, outside: dict[str, Any]) -> None:
    box.add_user_namespace()
    box.create_and_start("sleep 1000")
    change(box, "add", place, outside)
    assert sh(box, "cat /data/file") == "from the host\n"
    change(box, "remove", place, outside)


def test_tmpfs(running: Box, place: Path) -> None:
    entry = {
        "destination": "/scratch",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "size=64k", "mode=700"],
    }
    change(running, "add", place, entry)
    line = sh(running, "grep ' /scratch ' /proc/self/mountinfo")
    assert "nosuid" in line
    assert "size=64k" in line


def test_order(running: Box, place: Path, outside: dict[str, Any]) -> None:
    """Added from the first to the last and removed in reverse: one may lie in another."""
    outer = {"destination": "/outer", "type": "tmpfs", "source": "tmpfs"}
    inner = {**outside, "destination": "/outer/inner"}
    change(running, "add", place, outer, inner)
    assert sh(running, "cat /outer/inner/file") == "from the host\n"
    change(running, "remove", place, outer, inner)
    assert sh(running, "ls /outer") == ""


def test_links_of_the_image_stay_inside(running: Box, place: Path, outside: dict[str, Any]) -> None:
    target = place / "target"
    target.mkdir()
    (running.rootfs / "link").symlink_to(target)
    change(running, "add", place, {**outside, "destination": "/link/sub"})
    assert list(target.iterdir()) == []
    assert (running.rootfs / str(target / "sub").lstrip("/")).is_dir()


def test_nothing_over_proc(running: Box, place: Path, outside: dict[str, Any]) -> None:
    for destination in ("/proc", "/proc/self/attr"):
        result = change(running, "add", place, {**outside, "destination": destination}, check=False)
        assert result.rc == 1
        assert "/proc" in result.err


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"destination": "/x", "type": "none", "source": "/nonexistent", "options": ["bind"]}, "no such file"),
        ({"destination": "/x", "type": "cgroup", "source": "cgroup"}, "can't be added"),
        ({"destination": 5}, "destination"),
        ({"type": "tmpfs"}, "destination"),
    ],
)
def test_what_cannot_be_added(running: Box, place: Path, entry: dict[str, Any], text: str) -> None:
    result = change(running, "add", place, entry, check=False)
    assert result.rc == 1
    assert text in result.err


def test_what_is_no_mount_cannot_be_removed(running: Box, place: Path) -> None:
    result = change(running, "remove", place, {"destination": "/bin", "type": "tmpfs"}, check=False)
    assert result.rc == 1
    assert '"/bin" is not a mount point' in result.err


def test_messages_are_about_the_file(running: Box, place: Path) -> None:
    entry = {"destination": "data", "type": "tmpfs"}
    assert "list of mounts: mounts[0].destination" in change(running, "add", place, entry).err
    result = change(running, "add", place, {"destination": 5}, check=False)
    assert result.rc == 1
    assert "invalid list of mounts: mounts[0].destination" in result.err


def test_wrong_states_and_files(box: Box, place: Path, outside: dict[str, Any]) -> None:
    assert "does not exist" in change(box, "add", place, outside, check=False).err
    box.create_and_start("sleep 1000")
    assert "add or remove" in change(box, "move", place, outside, check=False).err
    file = place / "mounts.json"
    file.write_text("{}")
    assert "a list of mounts" in box.runtime("mounts", "add", box.id, file, check=False).err
    for empty in ("[]", '{"mounts": []}'):
        file.write_text(empty)
        for action in ("add", "remove"):
            result = box.runtime("mounts", action, box.id, file, check=False)
            assert result.rc == 1
            assert f"{file}: the list of mounts is empty" in result.err

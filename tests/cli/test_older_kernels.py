"""The core once more where chosen system calls answer ENOSYS, as on older kernels and in sandboxes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, MakeBox
from tests.harness.box import Box
from tests.harness.terminal import ConsoleSocket
from tests.kernel import enosys

PIDFD = ("pidfd_open", "pidfd_send_signal", "pidfd_getfd")
EVERYTHING = ("openat2", "clone3", "close_range", *enosys.MOUNTING, *PIDFD)


@pytest.fixture(
    params=[("openat2",), ("clone3",), ("close_range",), ("mount_setattr",), ("fsopen",), ("open_tree",),
            ("move_mount",), enosys.MOUNTING, PIDFD, EVERYTHING],
    ids=["openat2", "clone3", "close_range", "mount_setattr", "fsopen", "open_tree", "move_mount", "mounting", "pidfd",
         "everything"],
)  # fmt: skip
def old(box: Box, request: pytest.FixtureRequest) -> Box:
    """A box whose runtime lacks some calls."""
    if box.runtime.name != "ocirt":
        pytest.skip("which calls a peer can do without is its own affair")
    script = ROOT / "tests" / "kernel" / "enosys.py"
    box.runtime.prefix = [sys.executable, str(script), ",".join(request.param)]
    return box


def fill(box: Box) -> None:
    """A config that uses much of what has a fallback."""
    (box.path / "data").mkdir()
    (box.path / "data/file").write_text("bound")
    (box.rootfs / "secret").write_text("secret")
    box.bind("data", "/data", "ro", "nosuid", "nodev")
    box.bind("data/file", "/made/for/file", "bind", "ro")
    box.mount("/copy", "tmpfs", options=["tmpcopyup", "size=1m"])
    box.namespace("cgroup")
    box.mount("/sys/fs/cgroup", "cgroup", options=["ro", "nosuid", "noexec", "nodev"])
    box.linux["maskedPaths"].append("/secret")
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    box.linux["devices"] = [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5}]
    box.linux["rootfsPropagation"] = "rslave"
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]
    box.process["cwd"] = "/made/cwd"


SCRIPT = """
cat /data/file /made/for/file; echo
touch /data/x 2>/dev/null || echo ro
cat /secret
cat /proc/sys/net/ipv4/ip_forward
test -c /dev/mine && echo device
ls -d /proc/sys/kernel/hostname
echo x > /proc/sys/kernel/domainname 2>/dev/null || echo sealed
pwd
ls /proc/self/fd | wc -l
"""


def test_run(old: Box) -> None:
    fill(old)
    assert old.run(SCRIPT).out.splitlines() == [
        "boundbound", "ro", "1", "device", "/proc/sys/kernel/hostname", "sealed", "/made/cwd", "4",
    ]  # fmt: skip


def test_life(old: Box) -> None:
    old.sh("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    old.create("--pid-file", old.pid_file)
    pid = int(old.pid_file.read_text())
    assert old.status == "created"
    old.start()
    old.wait_for_output("up")
    old.kill("TERM")
    assert old.exit_status(pid) == 7
    assert old.status == "stopped"
    old.delete()


def test_delete_force(old: Box) -> None:
    old.create_and_start("sleep 1000")
    old.delete("--force")


def test_errors_are_the_same(old: Box) -> None:
    old.bind("/nonexistent/source", "/mnt")
    result = old.create(check=False)
    assert result.rc == 1
    assert "/nonexistent/source" in result.err
    assert "no such file or directory" in result.err
    assert "not implemented" not in result.err


def test_escapes_are_refused_all_the_same(old: Box) -> None:
    outside = old.directory / "outside"
    outside.mkdir()
    (old.rootfs / "link").symlink_to("../../../../../../../../../" + str(outside))
    old.mount("/link/made", "tmpfs")
    old.run("true", check=False)
    assert list(outside.iterdir()) == []


def test_user_namespace(old: Box) -> None:
    old.add_user_namespace()
    assert old.run("id -u; test -c /dev/null && echo null").out.split() == ["0", "null"]


def test_joined_namespaces(old: Box, make_box: MakeBox) -> None:
    other = make_box()
    other.create()
    for type, name in (("network", "net"), ("ipc", "ipc"), ("pid", "pid")):
        old.namespace(type, f"/proc/{other.pid}/ns/{name}")
    result = old.run("readlink /proc/self/ns/net")
    assert result.out.strip() == Path(f"/proc/{other.pid}/ns/net").readlink().name


def test_terminal(old: Box, place: Path) -> None:
    old.process["terminal"] = True
    old.sh("tty; echo up; read line")
    with ConsoleSocket(place / "console") as console:
        old.create("--console-socket", console.path)
        console.receive()
        old.start()
        assert b"/dev/" in console.read_until(b"up")
        console.write(b"\n")
        old.wait_for("stopped")


def test_hooks(old: Box) -> None:
    marker = old.directory / "marker"
    old.bind(old.directory, str(old.directory), "bind", "rw")
    old.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >> {marker}"], "timeout": 20}]
        for kind in ("createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    }
    old.run("sleep 0.2")
    assert set(marker.read_text().split()) == set(old.config["hooks"])

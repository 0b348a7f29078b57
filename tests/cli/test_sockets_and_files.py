"""--pid-file, --pidfd-socket, --config, NOTIFY_SOCKET: what create and run give to their caller besides."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.helpers import Helpers
from tests.harness.peers import lacks, peer_fails


def test_pid_file(box: Box) -> None:
    """Go reads it with Atoi: digits and nothing else."""
    box.create("--pid-file", box.pid_file)
    assert box.pid_file.read_bytes() == str(box.pid).encode()
    assert not [p for p in box.directory.iterdir() if p.name.startswith((".pid", "pid.")) or p.name.endswith(".tmp")]


def test_pid_file_of_a_failed_create_is_not_written(box: Box) -> None:
    box.args("/nonexistent")
    assert box.create("--pid-file", box.pid_file, check=False).rc == 1
    assert not box.pid_file.exists()


@peer_fails("crun", "writes through a link that was there")
def test_pid_file_replaces_what_was_there(box: Box) -> None:
    victim = box.directory / "victim"
    victim.write_text("kept")
    box.pid_file.symlink_to(victim)
    box.create("--pid-file", box.pid_file)
    assert victim.read_text() == "kept"
    assert box.pid_file.read_text() == str(box.pid)


def test_pid_file_relative_to_the_caller(box: Box) -> None:
    """Of crun and ocirt the caller's directory counts; the engines give absolute paths."""
    box.write()
    box.runtime("create", "--bundle", box.path, "--pid-file", "here", box.id, cwd=box.directory, out=box.out_file)
    found = [p for p in (box.directory / "here", box.path / "here") if p.exists()]
    assert len(found) == 1
    assert found[0].read_text() == str(box.pid)


def test_pid_file_that_can_not_be_written_is_an_error_and_leaves_nothing(box: Box) -> None:
    result = box.create("--pid-file", box.directory / "missing/pid", check=False)
    assert result.rc != 0
    assert box.runtime("state", box.id, check=False).rc != 0


@lacks("runc", "crun", what="--pidfd-socket in this version")
def test_pidfd_socket(box: Box, place: Path) -> None:
    box.sh("sleep 1000")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "pidfd"))
        listener.listen(1)
        listener.settimeout(20)
        box.create("--pidfd-socket", place / "pidfd")
        connection, _ = listener.accept()
        with connection:
            _, (pidfd,), _, _ = socket.recv_fds(connection, 4096, 4)
    try:
        info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        assert f"Pid:\t{box.pid}\n" in info
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)


@lacks("runc", "crun", what="the name of the file in its messages")
@pytest.mark.parametrize("text", ["{", "[]", '{"process": {"args": 5}}', None])
def test_messages_name_the_file_of_config(box: Box, place: Path, text: str | None) -> None:
    box.write()
    file = place / "other.json"
    if text is not None:
        file.write_text(text)
    result = box.runtime("create", "--bundle", box.path, "--config", file, box.id, check=False)
    assert result.rc == 1
    assert str(file) in result.err
    assert "config.json" not in result.err


@peer_fails("runc", "has no --config")
def test_config_elsewhere(box: Box, place: Path) -> None:
    box.sh("echo from elsewhere")
    box.write(place / "other.json")
    result = box.runtime("run", "--bundle", box.path, "--config", place / "other.json", box.id)
    assert result.out == "from elsewhere\n"


@peer_fails("runc", "has no --config")
def test_a_relative_config_is_the_callers(box: Box, place: Path) -> None:
    box.sh("echo from the caller")
    box.write(place / "other.json")
    result = box.runtime("run", "--bundle", box.path, "--config", "other.json", box.id, cwd=place)
    assert result.out == "from the caller\n"


@pytest.fixture
def notify(place: Path) -> socket.socket:
    """The service manager's side of sd_notify(3)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(place / "notify"))
    sock.settimeout(15)
    yield sock
    sock.close()


@peer_fails("crun", "1.8.1 hangs here in run --detach")
def test_notify_socket(box: Box, notify: socket.socket, place: Path, helpers: Helpers) -> None:
    """READY=1 of the container's process arrives at the manager, with MAINPID as the manager sees it."""
    box.bind(helpers("notify"), "/notify", "bind", "ro")
    box.sh("/notify READY=1; sleep 1000")
    environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
    box.write()
    box.runtime("run", "--detach", "--bundle", box.path, box.id, env=environment, out=box.out_file, err=box.err_file)
    text = b""
    while b"READY=1" not in text or b"MAINPID" not in text:
        text += notify.recv(4096) + b"\n"
    assert f"MAINPID={box.pid}" in text.decode().split()


def test_notify_socket_of_the_host_is_not_in_the_environment(box: Box, notify: socket.socket, place: Path) -> None:
    """The container sees a socket of its own, not the host's path."""
    box.args("/bin/env")
    box.write()
    environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
    box.runtime("create", "--bundle", box.path, box.id, env=environment, out=box.out_file, err=box.err_file)
    process = box.runtime.popen("start", box.id, env=environment)
    box.wait_for_output("PATH=")
    variables = dict(line.split("=", 1) for line in box.out.splitlines() if "=" in line)
    assert variables.get("NOTIFY_SOCKET") != str(place / "notify")
    process.kill()
    process.wait()

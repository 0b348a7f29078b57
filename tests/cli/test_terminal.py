"""Terminals: the console socket of engines, and the runtime's own terminal in the foreground."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.peers import peer_fails
from tests.harness.terminal import ConsoleSocket, Foreground, set_size


@pytest.fixture
def term(box: Box) -> Box:
    """A box that wants a terminal."""
    box.process["terminal"] = True
    return box


def test_console_socket(term: Box, place: Path) -> None:
    term.sh("tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2; read line; echo got $line")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        term.start()
        shown = console.read_until(b"err")
        assert b"/dev/" in shown
        assert b"all" in shown
        console.write(b"typed\n")
        assert b"got typed" in console.read_until(b"got typed")
        term.wait_for("stopped")


def test_terminal_is_the_controlling_one(term: Box, place: Path) -> None:
    """Control-C reaches the process group in the foreground."""
    term.sh("trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.05; done")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        pid = term.pid
        term.start()
        console.read_until(b"up")
        console.write(b"\x03")
        console.read_until(b"interrupted")
        assert term.exit_status(pid) == 9


def test_hang_up_when_the_engine_goes(term: Box, place: Path) -> None:
    term.sh("trap 'exit 8' HUP; echo up; while :; do sleep 0.05; done")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        master = console.receive()
        pid = term.pid
        term.start()
        console.read_until(b"up")
        os.close(master)
        console.master = -1
        assert term.exit_status(pid) == 8


def test_console_size(term: Box, place: Path) -> None:
    term.process["consoleSize"] = {"height": 41, "width": 101}
    term.sh("stty size")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        term.start()
        assert b"41 101" in console.read_until(b"41 101")


def test_resize_by_the_owner(term: Box, place: Path) -> None:
    term.sh("trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        master = console.receive()
        term.start()
        console.read_until(b"up")
        set_size(master, 12, 34)
        assert b"12 34" in console.read_until(b"12 34")


def test_the_pty_is_the_containers(term: Box, place: Path) -> None:
    """/dev/console and the streams are one device of the container's own devpts; no host pty is left inside."""
    term.sh("ls /dev/pts; cat /dev/null > /dev/console && echo console; sleep 1000")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        term.start()
        shown = console.read_until(b"console")
        assert b"0" in shown
        root = Path(f"/proc/{term.pid}/root")
        stream = os.stat(f"/proc/{term.pid}/fd/0")
        assert os.stat(root / "dev/pts/0").st_rdev == stream.st_rdev
        assert os.stat(root / "dev/console").st_rdev == stream.st_rdev
        assert os.stat(f"/proc/{term.pid}/fd/0").st_dev == os.stat(root / "dev/pts").st_dev


def test_the_pty_belongs_to_the_user(term: Box, place: Path) -> None:
    term.process["user"] = {"uid": 1000, "gid": 1000}
    term.sh("stat -c %u $(tty); echo x > $(tty); echo up; sleep 1000")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        term.start()
        assert b"1000" in console.read_until(b"up")


def test_terminal_in_a_user_namespace(term: Box, place: Path) -> None:
    term.add_user_namespace()
    term.sh("tty; stat -c %u $(tty); echo up; sleep 1000")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        term.start()
        assert b"0" in console.read_until(b"up")


def test_console_without_a_dev_mount(term: Box, place: Path) -> None:
    term.config["mounts"] = [m for m in term.mounts if m["destination"] in ("/proc", "/dev/pts")]
    (term.rootfs / "dev/pts").mkdir()
    term.sh("tty; echo up; sleep 1000")
    with ConsoleSocket(place / "console") as console:
        term.create("--console-socket", console.path)
        console.receive()
        term.start()
        assert b"/dev/" in console.read_until(b"up")


def test_terminal_and_console_socket_go_together(box: Box, place: Path) -> None:
    """create with a terminal needs the socket; without one the socket is a mistake."""
    box.process["terminal"] = True
    result = box.create(check=False)
    assert result.rc == 1
    assert "console" in result.err
    box.process["terminal"] = False
    if box.runtime.name == "crun":
        return  # 1.8.1 accepts it
    with ConsoleSocket(place / "console") as console:
        assert box.create("--console-socket", console.path, check=False).rc == 1


def test_console_socket_that_nobody_serves(term: Box, place: Path) -> None:
    result = term.create("--console-socket", place / "nobody", check=False)
    assert result.rc == 1
    assert "no such file or directory" in result.err.lower()


def test_foreground_terminal(term: Box) -> None:
    term.sh("tty; read line; echo got $line; exit 5")
    with Foreground(term) as front:
        front.read_until(b"/dev/")
        os.write(front.master, b"typed\n")
        front.read_until(b"got typed")
        assert front.finish() == 5


@peer_fails("runc", "sets the size some time after the process has started", always=False)
@peer_fails("crun", "sets the size some time after the process has started", always=False)
def test_foreground_terminal_has_the_callers_size_and_follows_it(term: Box) -> None:
    term.sh("stty size; trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done")
    with Foreground(term, rows=33, columns=91) as front:
        assert b"33 91" in front.read_until(b"up")
        set_size(front.master, 44, 55)
        front.read_until(b"44 55")
    term.delete("--force", check=False)


def test_foreground_terminal_is_raw_and_is_given_back(term: Box) -> None:
    """Control-C is a byte for the container; after the end the caller's terminal is as it was."""
    import termios

    term.sh("trap 'echo inside; exit 6' INT; echo up; while :; do sleep 0.05; done")
    with Foreground(term) as front:
        before = termios.tcgetattr(front.master)
        front.read_until(b"up")
        assert not termios.tcgetattr(front.master)[3] & termios.ECHO
        os.write(front.master, b"\x03")
        front.read_until(b"inside")
        assert front.finish() == 6
        assert termios.tcgetattr(front.master) == before


def test_foreground_terminal_is_given_back_after_a_failure(term: Box) -> None:
    import termios

    term.args("/nonexistent")
    with Foreground(term) as front:
        before = termios.tcgetattr(front.master)
        assert front.finish() != 0
        assert termios.tcgetattr(front.master) == before


@peer_fails("crun", "does not pass on the size of the terminal in exec", always=False)
def test_exec_on_a_foreground_terminal(box: Box) -> None:
    """Size, resizing, raw mode, exit status: as with `run`."""
    import termios

    box.create_and_start("sleep 1000")
    script = "trap 'stty size' WINCH; trap 'echo inside; exit 6' INT; tty; echo up; while :; do sleep 0.05; done"
    with Foreground(box, command=["exec", "--tty", box.id, "sh", "-c", script]) as front:
        before = termios.tcgetattr(front.master)
        assert b"/dev/pts/" in front.read_until(b"up")
        assert not termios.tcgetattr(front.master)[3] & termios.ECHO
        set_size(front.master, 44, 55)
        front.read_until(b"44 55")
        os.write(front.master, b"\x03")
        front.read_until(b"inside")
        assert front.finish() == 6
        assert termios.tcgetattr(front.master) == before


def test_detached_terminal_needs_a_socket(term: Box) -> None:
    term.sh("sleep 1000")
    term.write()
    result = term.runtime("run", "--detach", "--bundle", term.path, term.id, check=False, out=term.out_file)
    assert result.rc == 1


def test_the_runtime_gives_a_stopped_terminal_no_signal_of_its_own(term: Box, place: Path) -> None:
    """SIGHUP to the runtime's session must not end a detached container."""
    term.sh("echo up; sleep 1000")
    with ConsoleSocket(place / "console") as console:
        term.write()
        process = term.runtime.popen(
            "run", "--detach", "--bundle", term.path, "--console-socket", console.path, term.id
        )
        console.receive()
        assert process.wait(20) == 0
        console.read_until(b"up")
        assert term.status == "running"
        term.kill(str(int(signal.SIGKILL)))
        term.wait_for("stopped")

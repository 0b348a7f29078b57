"""Input and output: fifos, terminals, files, logging programs and nothing at all."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.engines.containerd.engine import Engine, Task
from tests.engines.containerd.streams import Input, Output
from tests.harness.leftovers import alive

MUCH = 20_000_000


def connected(engine: Engine, script: str, *, paused: bool = False) -> tuple[Task, Input, Output]:
    """A created task with all three fifos."""
    stdin, out, err = engine.input(), engine.output(paused=paused), engine.output("err")
    task = engine.task(script)
    task.create(stdin=str(stdin.path), stdout=str(out.path), stderr=str(err.path))
    task.out, task.err = out, err
    return task, stdin, out


def gone(task: Task) -> None:
    """Delete and the rest."""
    task.delete()
    task.leave()


def test_much_output(engine: Engine) -> None:
    """20 MB arrive complete and unchanged, and the end of file comes without Delete."""
    task, _, out = connected(engine, f"head -c {MUCH} /dev/zero | tr '\\0' 'x'")
    task.start()
    assert task.wait() == 0
    expected = hashlib.md5(b"x" * MUCH, usedforsecurity=False).hexdigest()
    assert hashlib.md5(out.all(40), usedforsecurity=False).hexdigest() == expected
    gone(task)


def test_both_streams_apart(engine: Engine) -> None:
    task, _, out = connected(engine, "for n in 1 2 3; do echo out $n; echo err $n >&2; done")
    task.start()
    task.wait()
    assert task.err
    assert (out.all(), task.err.all()) == (b"out 1\nout 2\nout 3\n", b"err 1\nerr 2\nerr 3\n")
    gone(task)


def test_input(engine: Engine) -> None:
    """What is written arrives; CloseIO is the end of file once the client has closed, too."""
    task, stdin, out = connected(engine, "cat; echo end")
    task.start()
    stdin.write(b"word\n")
    out.until(b"word\n")
    stdin.close()
    time.sleep(0.3)
    assert task.status == 2, "the shim holds stdin open until CloseIO"
    task("CloseIO", stdin=True)
    assert task.wait() == 0
    assert out.all() == b"word\nend\n"
    gone(task)


def test_much_input(engine: Engine) -> None:
    data = os.urandom(1 << 20) * 5
    task, stdin, out = connected(engine, "md5sum")
    task.start()
    stdin.write(data)
    stdin.close()
    task("CloseIO", stdin=True)
    assert task.wait() == 0
    assert out.all().split()[0].decode() == hashlib.md5(data, usedforsecurity=False).hexdigest()
    gone(task)


def test_input_before_start(engine: Engine) -> None:
    """containerd's client closes as soon as it has written: nothing is lost before Start."""
    task, stdin, out = connected(engine, "cat")
    stdin.write(b"early\n")
    stdin.close()
    task("CloseIO", stdin=True)
    task.start()
    assert task.wait() == 0
    assert out.all() == b"early\n"
    gone(task)


def test_close_without_stdin(engine: Engine) -> None:
    """CloseIO of a process that has no stdin, or twice, is no error."""
    task = engine.running()
    task("CloseIO", stdin=True)
    task("CloseIO", stdin=True)
    task.end()


def test_slow_reader(engine: Engine) -> None:
    """Nobody reads: the container waits, nothing is lost, the shim serves on and doesn't hoard."""
    task, _, out = connected(engine, f"head -c {MUCH} /dev/zero; echo done >&2", paused=True)
    task.start()
    time.sleep(1)
    assert task.status == 2
    status = Path(f"/proc/{task.shim_pid}/status").read_text()
    memory = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert memory < 60 << 10, f"{memory} KiB"
    assert task.err
    assert b"done" not in task.err.data
    out.resume()
    assert task.wait() == 0
    assert len(out.all(40)) == MUCH
    gone(task)


def test_killed_with_a_slow_reader(engine: Engine) -> None:
    """What was written before the end can be read after it; Delete waits for it, but not for ever."""
    task, _, out = connected(engine, "echo last words; sleep 1000", paused=True)
    task.start()
    time.sleep(0.3)
    task.kill()
    assert task.wait() == 137
    out.resume()
    task.delete()
    assert out.all() == b"last words\n"
    task.leave()


def test_reader_that_goes_away(engine: Engine) -> None:
    """containerd restarts: its end closes and another opens. Neither shim nor container is harmed meanwhile."""
    task, _, out = connected(engine, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")
    task.start()
    out.until(b"3\n")
    out.leave()
    time.sleep(0.5)
    assert task.status == 2
    fd = os.open(out.path, os.O_RDONLY | os.O_NONBLOCK)
    end = time.monotonic() + 10
    data = b""
    while b"\n" not in data:
        assert time.monotonic() < end
        time.sleep(0.05)
        try:
            data += os.read(fd, 4096)
        except BlockingIOError:
            continue
    os.close(fd)
    task.end()


def test_nothing(engine: Engine) -> None:
    """Without paths: /dev/null."""
    task = engine.task("cat; sleep 1000")
    task.create(io=False)
    task.start()
    links = [os.readlink(f"/proc/{task.pid}/fd/{number}") for number in (0, 1, 2)]
    assert links == ["/dev/null"] * 3
    task.end()


@pytest.mark.shim_fails("runc", "wants both or none")
def test_only_one_stream(engine: Engine) -> None:
    """stdout alone: stderr goes nowhere."""
    out = engine.output()
    task = engine.task("echo out; echo err >&2")
    task.create(stdout=str(out.path))
    task.start()
    task.wait()
    assert out.all() == b"out\n"
    gone(task)


@pytest.mark.shim_fails("runc", "1.6 has no check; it opens the path", always=False)
def test_unknown_scheme(engine: Engine) -> None:
    task = engine.task()
    error = task.shim.fails("Create", **task.request(stdout="gopher:///x", stderr="gopher:///x"))
    assert "gopher" in error.text
    task.leave()


@pytest.mark.shim_fails("runc", "opens fifo:// as a file of this name")
def test_fifo_scheme(engine: Engine) -> None:
    out, err = engine.output(), engine.output("err")
    task = engine.task("echo out")
    task.create(stdout=f"fifo://{out.path}", stderr=f"fifo://{err.path}")
    task.start()
    task.wait()
    assert out.all() == b"out\n"
    gone(task)


def test_file(engine: Engine) -> None:
    """Both streams are appended; directories are made."""
    file = engine.place / "logs/deep/file"
    for _ in range(2):
        task = engine.task("echo out; echo err >&2")
        task.create(stdout=f"file://{file}", stderr=f"file://{file}")
        task.start()
        task.wait()
        gone(task)
    assert sorted(file.read_text().split()) == ["err", "err", "out", "out"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


LOGGER = f"""#!{sys.executable}
import os, sys, time
out = open({{directory!r}} + "/logged", "a")
out.write(repr(sys.argv[1:]) + repr(sorted(os.environ.items())) + "\\n")
out.flush()
ready = os.fdopen(5, "wb")
{{before}}
if {{tell}}:
    ready.write(b"\\0")
ready.close()
import threading
def copy(fd, name):
    with os.fdopen(fd, "rb") as source:
        for line in source:
            out.write(name + ": " + line.decode())
            out.flush()
threads = [threading.Thread(target=copy, args=pair) for pair in ((3, "stdout"), (4, "stderr"))]
[t.start() for t in threads]
[t.join() for t in threads]
out.write("end\\n")
out.flush()
"""


def logger(engine: Engine, *, tell: bool = False, before: str = "") -> Path:
    """A logging program as containerd's runtime/v2/logging makes them."""
    program = engine.place / "logger"
    program.write_text(LOGGER.format(directory=str(engine.place), tell=tell, before=before))
    program.chmod(0o755)
    return program


def logged(engine: Engine, text: str, timeout: float = 15) -> str:
    """What the program has written, once `text` is in it."""
    end = time.monotonic() + timeout
    while text not in (told := (engine.place / "logged").read_text() if (engine.place / "logged").exists() else ""):
        assert time.monotonic() < end, told
        time.sleep(0.02)
    return told


@pytest.mark.parametrize(
    "scheme",
    ["binary", pytest.param("binary-v2", marks=pytest.mark.shim_fails("runc", "2.2 brought it", run=False))],
)
def test_logging_program(engine: Engine, scheme: str) -> None:
    """It gets its arguments, two variables, both streams, and says when it is ready."""
    program = logger(engine, tell=scheme == "binary-v2")
    uri = f"{scheme}://{program}?first={quote('a b')}&second=c"
    task = engine.task("echo out; echo err >&2; sleep 0.2")
    task.create(stdout=uri, stderr=uri)
    assert logged(engine, "\n")
    task.start()
    task.wait()
    task.delete()
    logged(engine, "stdout: out\n")
    text = logged(engine, "stderr: err\n")
    head = text.splitlines()[0]
    assert "['first', 'a b', 'second', 'c']" in head or "['second', 'c', 'first', 'a b']" in head
    assert f"('CONTAINER_ID', '{task.id}'), ('CONTAINER_NAMESPACE', '{engine.namespace}')" in head
    assert "PATH" not in head
    assert "SECRET" not in head
    task.leave()


def test_create_waits_for_the_logging_program(engine: Engine) -> None:
    program = logger(engine, before="time.sleep(0.7)")
    task = engine.task()
    begin = time.monotonic()
    task.create(stdout=f"binary://{program}", stderr=f"binary://{program}")
    assert time.monotonic() - begin >= 0.6
    task.start()
    task.end()


@pytest.mark.shim_fails("runc", "2.2 brought it", run=False)
def test_logging_program_that_isn_t_ready(engine: Engine) -> None:
    """binary-v2: the end of file without a byte is an error."""
    program = logger(engine, tell=False)
    task = engine.task()
    uri = f"binary-v2://{program}"
    task.shim.fails("Create", **task.request(stdout=uri, stderr=uri))
    task.leave()


def test_logging_program_that_is_not_there(engine: Engine) -> None:
    task = engine.task()
    uri = f"binary://{engine.place}/nowhere"
    error = task.shim.fails("Create", **task.request(stdout=uri, stderr=uri))
    assert "no such file" in error.text
    task.leave()


def test_logging_program_ends_with_the_task(engine: Engine) -> None:
    """It is told to end, and no process of it is left."""
    program = logger(engine)
    task = engine.task("echo out; sleep 1000")
    task.create(stdout=f"binary://{program}", stderr=f"binary://{program}")
    task.start()
    logged(engine, "stdout: out")
    task.end()


# terminals


def in_terminal(engine: Engine, script: str, **fields: Any) -> tuple[Task, Input, Output]:
    bundle = engine.bundle(script)
    bundle.process["terminal"] = True
    stdin, out = engine.input(), engine.output()
    task = engine.task(bundle=bundle)
    task.create(stdin=str(stdin.path), stdout=str(out.path), terminal=True, **fields)
    task.out = out
    return task, stdin, out


def test_terminal(engine: Engine) -> None:
    """A tty, its echo, and its end."""
    task, stdin, out = in_terminal(engine, "tty; read line; echo got $line; exit 3")
    task.start()
    out.until(b"/dev/")
    stdin.write(b"word\n")
    out.until(b"got word")
    assert task.wait() == 3
    text = out.all()
    assert b"\r\nword\r\n" in text.replace(b"\n\r\n", b"\n"), text
    assert task.delete().exit_status == 3
    task.leave()


def test_logging_program_of_a_terminal(engine: Engine) -> None:
    """`nerdctl run -d -t`: what the terminal says goes to the program."""
    bundle = engine.bundle("tty; read line; echo got $line; exit 3")
    bundle.process["terminal"] = True
    stdin = engine.input()
    task = engine.task(bundle=bundle)
    task.create(stdin=str(stdin.path), stdout=f"binary://{logger(engine)}?a=b", terminal=True)
    task.start()
    logged(engine, "stdout: /dev/")
    stdin.write(b"word\n")
    assert task.wait() == 3
    text = logged(engine, "stdout: got word")
    assert "['a', 'b']" in text
    assert task.delete().exit_status == 3
    task.leave()


@pytest.mark.shim_fails("runc", "it takes the URI for a fifo's path", run=False)
def test_terminal_to_a_file(engine: Engine) -> None:
    bundle = engine.bundle("tty")
    bundle.process["terminal"] = True
    task = engine.task(bundle=bundle)
    task.create(stdout=f"file://{engine.place}/log", terminal=True)
    task.start()
    assert task.wait() == 0
    task.delete()
    assert (engine.place / "log").read_text().startswith("/dev/")
    task.leave()


def test_resize(engine: Engine) -> None:
    task, stdin, out = in_terminal(engine, "while read line; do stty size; done")
    task("ResizePty", width=91, height=33)
    task.start()
    stdin.write(b"\n")
    out.until(b"33 91")
    task("ResizePty", width=120, height=40)
    stdin.write(b"\n")
    out.until(b"40 120")
    task.end()


def test_resize_without_a_terminal(engine: Engine) -> None:
    task = engine.running()
    task("ResizePty", width=1, height=1)
    task.end()


def test_control_characters(engine: Engine) -> None:
    """^C reaches the foreground process, ^D ends the input."""
    task, stdin, out = in_terminal(engine, "trap 'echo interrupted' INT; echo ready; cat; echo end; exit 4")
    task.start()
    out.until(b"ready")
    time.sleep(0.3)
    stdin.write(b"\x03")
    out.until(b"interrupted")
    assert task.wait() == 4
    assert b"end" in out.all()
    gone(task)


@pytest.mark.shim_fails("runc", "1.6 hangs up, later ones don't")
def test_terminal_outlives_its_input(engine: Engine) -> None:
    """The end of stdin doesn't hang up the terminal."""
    task, stdin, out = in_terminal(engine, "echo ready; sleep 1; echo still here")
    task.start()
    out.until(b"ready")
    stdin.close()
    task("CloseIO", stdin=True)
    out.until(b"still here")
    assert task.wait() == 0
    gone(task)


def test_much_output_by_a_terminal(engine: Engine) -> None:
    """Everything that was written before the end is read, not what the pty happened to hold."""
    task, _, out = in_terminal(engine, "seq 1 200000")
    task.start()
    assert task.wait() == 0
    text = out.all(40)
    assert text == b"".join(b"%d\r\n" % number for number in range(1, 200001))
    gone(task)


def test_exec_in_a_terminal(engine: Engine) -> None:
    task = engine.running()
    stdin, out = engine.input(), engine.output()
    id = task.exec(
        "/bin/sh", "-c", "tty; read a; stty size; exit 5", terminal=True, stdin=str(stdin.path), stdout=str(out.path)
    )
    task.start(id)
    out.until(b"/dev/")
    task("ResizePty", exec_id=id, width=77, height=22)
    stdin.write(b"\n")
    out.until(b"22 77")
    assert task.wait(id) == 5
    assert task.state(id).terminal
    task.delete(id)
    task.end()


def test_input_of_an_exec(engine: Engine) -> None:
    task = engine.running()
    stdin, out, err = engine.input(), engine.output(), engine.output("err")
    id = task.exec("/bin/cat", stdin=str(stdin.path), stdout=str(out.path), stderr=str(err.path))
    task.start(id)
    stdin.write(b"word\n")
    out.until(b"word\n")
    stdin.close()
    task("CloseIO", exec_id=id, stdin=True)
    assert task.wait(id) == 0
    assert out.all() == b"word\n"
    task.delete(id)
    task.end()


def test_output_of_a_grandchild(engine: Engine) -> None:
    """A process that outlives the exec holds its output open: Delete of the exec waits a little, not for ever."""
    task = engine.running()
    out, err = engine.output(), engine.output("err")
    id = task.exec("/bin/sh", "-c", "sleep 1000 & echo $!", stdout=str(out.path), stderr=str(err.path))
    task.start(id)
    assert task.wait(id) == 0
    begin = time.monotonic()
    task.delete(id)
    assert time.monotonic() - begin < 15
    out.until(b"\n")
    task.end()


def test_owner_of_streams(engine: Engine) -> None:
    """io_uid and io_gid: a process of that user may open its own /dev/stdout again."""
    bundle = engine.bundle("echo one > /dev/stdout && echo two > /proc/self/fd/2; echo $?")
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    task = engine.task(bundle=bundle)
    task.create(options=engine.options(io_uid=1000, io_gid=1000))
    task.start()
    task.wait()
    assert task.out
    assert task.err
    assert (task.out.all(), task.err.all()) == (b"one\n0\n", b"two\n")
    gone(task)


def test_state_names_the_streams(engine: Engine) -> None:
    task, stdin, out = connected(engine, "sleep 1000")
    state = task.state()
    assert (state.stdin, state.stdout, state.terminal) == (str(stdin.path), str(out.path), False)
    task.start()
    task.end()


def test_streams_do_not_keep_the_shim(engine: Engine) -> None:
    """A client that never reads doesn't keep a shim from ending: Delete drains for ten seconds at most."""
    task, _, _ = connected(engine, f"head -c {MUCH} /dev/zero", paused=True)
    task.start()
    time.sleep(0.3)
    pid = task.shim_pid
    task.kill()
    assert task.wait() == 137
    begin = time.monotonic()
    task("Delete", within=25)
    assert time.monotonic() - begin < 15
    task.leave()
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)

"""`delete` of a container that the shim has deleted: a shell answers, unless something is left all the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.engines.containerd import schema
from tests.engines.containerd.engine import KILLED, Engine, Task
from tests.engines.containerd.test_bootstrap import GROUP
from tests.engines.containerd.test_spare import engine, installed, pytest_generate_tests  # noqa: F401
from tests.harness.leftovers import alive
from tests.harness.waiting import eventually

NOTE = "ocirt-deleted"


def ended(engine: Engine, script: str, **annotations: str) -> Task:  # noqa: F811
    """A container that has run and has been deleted; containerd hasn't called `delete` yet."""
    task = engine.running(bundle=engine.bundle(script, **annotations))
    task.wait()
    task.delete()
    return task


def delete(task: Task) -> tuple[int, bool]:
    """(exit status that `delete` tells, has a shell been enough)"""
    caller = task.engine.caller
    trace = task.engine.place / "trace"
    argv = [str(caller.kind.binary), *caller.flags(task.id, "1.6"), "-bundle", str(task.bundle.path), "delete"]
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=execve", "-o", str(trace), *argv],
        cwd=task.bundle.path, env=caller.environment("1.6"), capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    programs = [line for line in trace.read_text().splitlines() if "execve(" in line and line.endswith(" = 0")]
    return schema.parse("containerd.task.DeleteResponse", done.stdout).exit_status, len(programs) == 1


def test_alone(engine: Engine) -> None:  # noqa: F811
    """Its shim has gone, and has taken its socket along."""
    task = ended(engine, "exit 10")  # a byte that ends lines
    task.shutdown()
    assert task.shim.closed()
    assert eventually(lambda: not Path(task.answer.address.removeprefix("unix://")).exists())
    assert delete(task) == (10, True)


def test_in_a_group(engine: Engine) -> None:  # noqa: F811
    """The shim serves the others still."""
    other = engine.running(bundle=engine.bundle("sleep 1000", **{GROUP: "pod"}))
    task = ended(engine, "exit 0", **{GROUP: "pod"})
    assert delete(task) == (0, True)
    task.leave()
    assert other.status
    other.end()


def abandoned(engine: Engine) -> tuple[Task, Path, int]:  # noqa: F811
    """A container that has been deleted by a shim that was killed then: (it, the shim's socket, the shim's pid)."""
    task = ended(engine, "exit 3")
    pid = task.shim_pid
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not alive(pid))
    socket = Path(task.answer.address.removeprefix("unix://"))
    assert socket.exists()
    return task, socket, pid


def test_shim_killed_after_it(engine: Engine) -> None:  # noqa: F811
    """Its socket is there, and nobody serves it: that is left."""
    task, socket, _ = abandoned(engine)
    assert delete(task) == (3, False)
    assert not socket.exists()


def test_pid_of_another(engine: Engine) -> None:  # noqa: F811
    """The shim was killed, and its pid is another process's: its socket is left."""
    task, socket, pid = abandoned(engine)
    note = task.bundle.path / NOTE
    note.write_text(note.read_text().replace(f"\n{pid}\n", f"\n{os.getpid()}\n"))
    assert delete(task) == (3, False)
    assert not socket.exists()


def test_created_again(engine: Engine) -> None:  # noqa: F811
    """What was noted of the first one isn't true of the second."""
    task = ended(engine, "exit 3", **{GROUP: "pod"})
    assert (task.bundle.path / NOTE).exists()
    again = engine.adopt(task.bundle, task.answer)
    again.create()
    assert not (task.bundle.path / NOTE).exists()
    os.kill(again.shim_pid, signal.SIGKILL)
    assert delete(again) == (KILLED, False)
    assert not alive(again.pid)
    assert not again.rootfs_mounted()


@pytest.mark.parametrize("text", ["", "\\020\\211\\001\n", "\\020\\211\\001\n1\n", "1\n/nowhere\n"])
def test_torn_note(engine: Engine, text: str) -> None:  # noqa: F811
    """Is none."""
    task = ended(engine, "exit 3")
    (task.bundle.path / NOTE).write_text(text)
    task.shutdown()
    assert delete(task) == (KILLED, False)


def test_other_calls(engine: Engine) -> None:  # noqa: F811
    """Flags as Go's package takes them, `start`, -v: everything else is the program's."""
    task = ended(engine, "exit 3")
    binary = engine.caller.kind.binary
    done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=30, check=True)
    assert "containerd-shim-ocirt-v1" in done.stdout
    words = [str(binary), *engine.caller.flags(task.id, "1.6"), "delete"]
    words = [word.replace("-id", f"--id={task.id}") for word in words if word != task.id]
    done2 = subprocess.run(
        words, cwd=task.bundle.path, env=engine.caller.environment("1.6"), capture_output=True, timeout=30, check=True
    )
    assert schema.parse("containerd.task.DeleteResponse", done2.stdout).exit_status == 3
    task.leave()


def test_other_shells(engine: Engine) -> None:  # noqa: F811
    """Where /bin/sh is another one."""
    task = ended(engine, "exit 3")
    shells = [shell for shell in ("bash", "busybox") if shutil.which(shell)]
    assert shells
    for shell in shells:
        argv = [shell, *(["sh"] if shell == "busybox" else ["--posix"]), str(engine.caller.kind.binary)]
        done = subprocess.run(
            [*argv, *engine.caller.flags(task.id, "1.6"), "delete"],
            cwd=task.bundle.path, env=engine.caller.environment("1.6"), capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        assert schema.parse("containerd.task.DeleteResponse", done.stdout).exit_status == 3
    task.leave()

"""One container of a test: its bundle, its id, the commands on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.harness.bundle import Bundle
from tests.harness.runtime import Result, Runtime

POLL = 0.01


class Box(Bundle):
    """A bundle and the container that is made of it.

    Commands that must succeed raise CommandFailed unless `check=False`. The
    container's output goes to `out_file`/`err_file`, because it outlives the
    commands. The test process is a child subreaper, as conmon and the shims are:
    init becomes its child and `exit_status` gets what waitpid(2) says.
    """

    def __init__(self, directory: Path, id: str, runtime: Runtime) -> None:
        super().__init__(directory / "bundle", id)
        self.id = id
        self.directory = directory
        self.runtime = runtime
        self.out_file = directory / "out"
        self.err_file = directory / "err"
        self.pid_file = directory / "pid"

    # what the container's process wrote

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace") if self.out_file.exists() else ""

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace") if self.err_file.exists() else ""

    # the commands

    def create(self, *flags: str | Path, **options: Any) -> Result:
        """`create`; config.json is written first."""
        self.write()
        options = {"out": self.out_file, "err": self.err_file, **options}
        return self.runtime("create", "--bundle", self.path, *flags, self.id, **options)

    def run(self, script: str | None = None, *flags: str | Path, **options: Any) -> Result:
        """`run` in the foreground; the result holds the output and exit status of the container's process."""
        if script is not None:
            self.sh(script)
        self.write()
        return self.runtime("run", "--bundle", self.path, *flags, self.id, **options)

    def start(self, **options: Any) -> Result:
        return self.runtime("start", self.id, **options)

    def create_and_start(self, script: str | None = None, *flags: str | Path) -> None:
        """From nothing to running."""
        if script is not None:
            self.sh(script)
        self.create(*flags)
        self.start()

    def state(self, **options: Any) -> dict[str, Any]:
        """What `state` prints, parsed."""
        state: dict[str, Any] = json.loads(self.runtime("state", self.id, **options).out)
        return state

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    @property
    def pid(self) -> int:
        """Pid of init in the runtime's pid namespace."""
        return int(self.state()["pid"])

    def kill(self, signal: str | None = None, *flags: str, **options: Any) -> Result:
        """`kill`; without a signal the runtime chooses (TERM)."""
        return self.runtime("kill", *flags, self.id, *([] if signal is None else [signal]), **options)

    def delete(self, *flags: str, **options: Any) -> Result:
        return self.runtime("delete", *flags, self.id, **options)

    def exec(self, *arguments: str, flags: tuple[str, ...] = (), **options: Any) -> Result:
        return self.runtime("exec", *flags, self.id, *arguments, **options)

    # waiting

    def wait_for(self, status: str, seconds: float = 10) -> None:
        """Poll `state` until it says `status`."""
        end = time.monotonic() + seconds
        while (seen := self.status) != status:
            assert time.monotonic() < end, f"status is still {seen!r} after {seconds} s, not {status!r}"
            time.sleep(POLL)

    def wait_for_output(self, text: str, seconds: float = 10) -> None:
        """Wait until the container's process has written `text`."""
        end = time.monotonic() + seconds
        while text not in self.out:
            assert time.monotonic() < end, f"no {text!r} after {seconds} s in {self.out!r}; stderr: {self.err!r}"
            time.sleep(POLL)

    def exit_status(self, pid: int, seconds: float = 10) -> int:
        """Reap init: its exit code, or minus the signal that ended it."""
        end = time.monotonic() + seconds
        while True:
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, f"process {pid} still lives after {seconds} s"
            time.sleep(POLL)

    def finish(self) -> None:
        """End the container whatever its state, through the runtime; for the end of a test."""
        with contextlib.suppress(AssertionError):
            self.runtime("delete", "--force", self.id, check=False, timeout=20)


def alive(pid: int) -> bool:
    """Does the process run? A zombie doesn't."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(b")") + 2 :][:1] not in (b"Z", b"X")


def wait_dead(pid: int, seconds: float = 10) -> None:
    """Wait until a process has ended."""
    end = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} still lives after {seconds} s"
        time.sleep(POLL)


def end_process(pid: int) -> None:
    """Kill and reap a process that is ours."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)

"""A runtime as its users see it: a program with arguments, an exit status and two streams."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT = 30.0


@dataclass
class Result:
    """One finished command: `out` and `err` are what it and the container wrote."""

    argv: list[str]
    rc: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    def __str__(self) -> str:
        return f"$ {' '.join(self.argv)}\nexit status {self.rc}\nstdout: {self.out}\nstderr: {self.err}"


class CommandFailed(AssertionError):
    """A command that had to succeed did not."""


class CommandHangs(AssertionError):
    """A command did not end in time; its process group was killed."""


@dataclass
class Runtime:
    """The program under test.

    path   absolute path of the program
    name   ocirt, runc or crun: which peer expectations hold
    root   the --root of the test
    extra  global arguments put before the command
    prefix what stands before the program, e.g. a wrapper that filters system calls
    """

    path: str
    name: str
    root: Path
    extra: list[str] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    def argv(self, arguments: Sequence[str | os.PathLike[str]]) -> list[str]:
        return [*self.prefix, self.path, "--root", str(self.root), *self.extra, *map(os.fspath, arguments)]

    def __call__(
        self,
        *arguments: str | os.PathLike[str],
        check: bool = True,
        timeout: float = TIMEOUT,
        stdin: int | str = subprocess.DEVNULL,
        out: Path | None = None,
        err: Path | None = None,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        argv: Sequence[str] | None = None,
        **popen: object,
    ) -> Result:
        """Run one command to its end.

        Output goes to files, not pipes: a container that lives on and holds
        them must not make the command look as if it hung. `out` and `err` name
        the files where the test wants to read on. The current directory is the
        test's own, so that nothing falls into the checkout.
        """
        __tracebackhide__ = True
        full = list(argv) if argv is not None else self.argv(arguments)
        with tempfile.TemporaryFile() as own_out, tempfile.TemporaryFile() as own_err, tempfile.TemporaryFile() as text:
            if isinstance(stdin, str):
                text.write(stdin.encode())
                text.seek(0)
                stdin = text.fileno()
            stdout = out.open("ab+") if out else own_out
            stderr = err.open("ab+") if err else own_err
            start_out, start_err = stdout.seek(0, os.SEEK_END), stderr.seek(0, os.SEEK_END)
            try:
                process = subprocess.Popen(
                    full,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=cwd or self.root.parent,
                    env=dict(env) if env is not None else None,
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                    **popen,  # type: ignore[call-overload]
                )
                rc = wait(process, full, timeout)
                stdout.seek(start_out)
                stderr.seek(start_err)
                result = Result(
                    full, rc, stdout.read().decode(errors="replace"), stderr.read().decode(errors="replace")
                )
            finally:
                if out:
                    stdout.close()
                if err:
                    stderr.close()
        if check and result.rc:
            raise CommandFailed(str(result))
        return result

    def popen(self, *arguments: str | os.PathLike[str], **popen: object) -> subprocess.Popen[bytes]:
        """Start a command and don't wait; what still runs at the end of the test is killed."""
        options: dict[str, object] = {"stdin": subprocess.DEVNULL, "start_new_session": True, **popen}
        process = subprocess.Popen(self.argv(arguments), **options)  # type: ignore[call-overload]
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill what `popen` started and close its pipes."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream and not stream.closed:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self.started.clear()


def wait(process: subprocess.Popen[bytes], argv: list[str], timeout: float) -> int:
    """The exit status (negative: a signal); kills the process group when time is up."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise CommandHangs(f"not finished after {timeout} s: {' '.join(argv)}") from None

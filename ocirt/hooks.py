"""Running hooks: config.md, POSIX-platform Hooks.

A hook gets exactly its own environment (never the runtime's or the container's:
CVE-2024-0132 and its kin), the bundle as working directory, the state of the
container on stdin, no other descriptor. What it prints goes into the error, and
to the files that annotations name.
"""

from __future__ import annotations

import _signal
import posix as os
import select
import time

from ocirt.errors import Error, HookFailed, doing
from ocirt.linux import fds, signals
from ocirt.linux.oslike import join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    from ocirt.spec import Hook

#: The names of the kinds, in the order in which they run.
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

#: Annotations: the file that gets what hooks print.
STDOUT, STDERR = "run.oci.hooks.stdout", "run.oci.hooks.stderr"

_OUTPUT_LIMIT = 8192
#: How long the pipes of a hook that has exited may stay open in the hands of its children.
_LINGER = 0.2


class Output:
    """The files that get what hooks print, opened: what runs inside a container opens nothing by a name of it.

    The hooks have pipes all the same: through a descriptor of the file, one that is a program of the container could
    open it to read what others wrote.
    """

    __slots__ = ("stderr", "stdout")

    def __init__(self, annotations: Mapping[str, str] | None = None, bundle: str = "") -> None:
        """Open what the annotations name, relative to the bundle; raises Error."""
        self.stdout = self.stderr = -1
        try:
            self.stdout = _open(annotations or {}, STDOUT, bundle)
            self.stderr = _open(annotations or {}, STDERR, bundle)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """For the hooks of a container that has been made."""
        return cls(record.get("annotations"), record.get("bundle") or "")

    def descriptors(self) -> list[int]:
        """What is open."""
        return [fd for fd in (self.stdout, self.stderr) if fd >= 0]

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)
        self.stdout = self.stderr = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(annotations: Mapping[str, str], name: str, bundle: str) -> int:
    path = annotations.get(name)
    if not path:
        return -1
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    with doing(f"open the file of the annotation {name}"):
        # a pipe that nobody reads is an error rather than a wait
        fd = os.open(join(bundle, path), flags | os.O_NONBLOCK, 0o600)
    os.set_blocking(fd, True)
    return fd


def run(kind: str, hooks: Sequence[Hook], state: bytes, cwd: str | None, output: Output) -> None:
    """Run hooks in order; the first that fails raises Error.

    state   the state JSON for stdin
    cwd     working directory (the bundle), None to stay
    output  where else than into the error goes what they print
    """
    for index, hook in enumerate(hooks):
        _run_one(f"hooks.{kind}[{index}]", hook, state, cwd, output)


def run_poststop(hooks: Sequence[Hook], state: bytes, record: Mapping[str, Any]) -> list[Error]:
    """Run every poststop hook whatever the others do; the failures."""
    failures: list[Error] = []
    try:
        output = Output.of_record(record)
    except Error as error:
        failures.append(error)
        output = Output()
    with output:
        for index, hook in enumerate(hooks):
            try:
                _run_one(f"hooks.poststop[{index}]", hook, state, record.get("bundle"), output)
            except Error as error:
                failures.append(error)
    return failures


def _run_one(name: str, hook: Hook, state: bytes, cwd: str | None, output: Output) -> None:
    path = hook["path"]
    arguments = list(hook.get("args") or [path])
    environment: dict[str, str] = {}
    for entry in hook.get("env") or ():
        variable, _, value = entry.partition("=")
        environment[variable] = value
    timeout = hook.get("timeout")
    pid, stdin, stdout, stderr = _spawn(path, arguments, environment, cwd)
    outputs = {stdout: _Printed(output.stdout), stderr: _Printed(output.stderr)}
    deadline = time.monotonic() + timeout if timeout else None
    try:
        status = _attend(pid, stdin, state, outputs, deadline)
    finally:
        for fd in (stdout, stderr):
            os.close(fd)
    if status is None:
        what = f"timed out after {timeout} s"
    elif status == 0:
        return
    elif os.WIFSIGNALED(status):
        what = f"killed by signal {os.WTERMSIG(status)}"
    else:
        what = f"exit status {os.WEXITSTATUS(status)}"
    raise HookFailed(
        f'run hook {name} "{path}": {what}, {_quoted("stdout", outputs[stdout].kept)}, '
        f"{_quoted('stderr', outputs[stderr].kept)}"
    )


class _Printed:
    """What a hook prints to one of its streams: the first part is kept, all of it goes to the file."""

    __slots__ = ("file", "kept")

    def __init__(self, file: int) -> None:
        self.kept = bytearray()
        self.file = file

    def add(self, data: bytes) -> None:
        if len(self.kept) < _OUTPUT_LIMIT:
            self.kept += data[: _OUTPUT_LIMIT - len(self.kept)]
        rest = memoryview(data if self.file >= 0 else b"")
        try:
            while rest:
                rest = rest[os.write(self.file, rest) :]
        except OSError:
            self.file = -1  # a full disk is no reason to stop a container


def _quoted(name: str, output: bytearray) -> str:
    text = output.decode("utf-8", "replace").strip().replace("\n", "\\n")
    return f"{name}: {text}"


def _spawn(path: str, arguments: list[str], environment: dict[str, str], cwd: str | None) -> tuple[int, int, int, int]:
    """Start the hook in a session of its own: (pid, write end of stdin, read ends of stdout and stderr)."""
    stdin, our_stdin = os.pipe2(os.O_CLOEXEC)
    our_stdout, stdout = os.pipe2(os.O_CLOEXEC)
    our_stderr, stderr = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for fd, source in enumerate((stdin, stdout, stderr)):
                os.dup2(source, fd)
            fds.cloexec_from(3)
            signals.reset()
            if cwd is not None:
                os.chdir(cwd)
            os.execve(path, arguments, environment)
        except OSError as error:
            text = error.strerror or str(error.errno)
            os.write(2, f"exec: {text[:1].lower()}{text[1:]}".encode())
        finally:
            os._exit(127)
    for fd in (stdin, stdout, stderr):
        os.close(fd)
    return pid, our_stdin, our_stdout, our_stderr


def _attend(pid: int, stdin: int, state: bytes, outputs: dict[int, _Printed], deadline: float | None) -> int | None:
    """Feed and read the hook until it has ended; its wait status, or None on a timeout.

    A hook may leave children behind that hold its pipes: they are waited for
    only for a moment, and on a timeout they are killed with it.
    """
    poll = select.poll()
    os.set_blocking(stdin, False)
    poll.register(stdin, select.POLLOUT)
    for fd in outputs:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    pidfd = _pidfd(pid)
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    open_fds = {stdin, *outputs}
    rest = memoryview(state)
    status: int | None = None
    try:
        while open_fds or status is None:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                break
            wait = None if deadline is None else deadline - now
            if pidfd < 0:
                wait = 0.01 if wait is None else min(wait, 0.01)
            for fd, _ in poll.poll(None if wait is None else wait * 1000):
                if fd == stdin:
                    rest = _feed(stdin, rest)
                    if not rest:
                        poll.unregister(stdin)
                        open_fds.discard(stdin)
                        os.close(stdin)
                elif fd in outputs and not _drain(fd, outputs[fd]):
                    poll.unregister(fd)
                    open_fds.discard(fd)
            if status is None:
                done, waited = os.waitpid(pid, os.WNOHANG)
                if done:
                    status = waited
                    if pidfd >= 0:
                        poll.unregister(pidfd)
                    linger = time.monotonic() + _LINGER
                    deadline = linger if deadline is None else min(deadline, linger)
    finally:
        if stdin in open_fds:
            os.close(stdin)
        if pidfd >= 0:
            os.close(pidfd)
        if status is None:
            _kill_session(pid)
            os.waitpid(pid, 0)
    return status


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _feed(fd: int, rest: memoryview) -> memoryview:
    """Write what the pipe takes; nothing left also when the hook doesn't read it."""
    try:
        return rest[os.write(fd, rest) :]
    except BlockingIOError:
        return rest
    except OSError:
        return rest[:0]


def _drain(fd: int, output: _Printed) -> bool:
    """Read what there is; False at end of file."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return True
    except OSError:
        return False
    output.add(data)
    return bool(data)


def _kill_session(pid: int) -> None:
    """Kill the hook and what it started: it leads a process group of its own."""
    try:
        os.killpg(pid, _signal.SIGKILL)
    except OSError:
        os.kill(pid, _signal.SIGKILL)

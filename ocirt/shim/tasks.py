"""What a shim knows of its containers: tasks and their processes, as containerd sees them.

Nothing here is needed to clean up: state.json has what must survive the shim.
"""

from __future__ import annotations

from ocirt import cgroups
from ocirt.container import Container
from ocirt.errors import AlreadyExists, Error, InvalidConfig, NotFound, WrongState
from ocirt.shim import ttrpc
from ocirt.shim.messages import CREATED, EXITED, RUNNING, STOPPED, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ocirt.cgroups.base import Cgroup
    from ocirt.cgroups.oom import Notice
    from ocirt.shim.stdio import Streams
    from ocirt.shim.ttrpc import Call


class Process:
    """A process of a task: its init, or one that was added by Exec.

    id        "" for init, the exec id otherwise
    given     stdin, stdout, stderr, terminal: as the request had them
    spec      config.json's `process`, for one that was added
    starting  a worker is starting it: what ends meanwhile is held back until containerd knows that it has started
    held      (exit status, when) of a process that ended then
    """

    __slots__ = (
        "exit_status", "exited_at", "given", "held", "id", "pid", "spec", "starting", "status", "streams", "waiting",
    )  # fmt: skip

    def __init__(self, id: str, request: dict[str, Any], spec: dict[str, Any] | None = None) -> None:
        self.id = id
        self.given: dict[str, Any] = {
            **{name: request.get(name, "") for name in ("stdin", "stdout", "stderr")},
            "terminal": request.get("terminal", False),
        }
        self.spec = spec
        self.pid = 0
        self.status = CREATED
        self.exit_status = 0
        self.exited_at = 0.0
        self.starting = False
        self.held: tuple[int, float] | None = None
        self.streams: Streams | None = None
        self.waiting: list[Call] = []

    @property
    def live(self) -> bool:
        """Does it run, or is it just being started?"""
        return self.starting or self.status == RUNNING

    def end(self, code: int, when: float) -> None:
        """It has ended: tell those who wait for it."""
        self.status = STOPPED
        self.exit_status = code
        self.exited_at = when
        if self.streams:
            self.streams.exited()
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call.reply(EXITED, self.exit())

    def exit(self) -> dict[str, Any]:
        """How and when it ended, as several answers have it."""
        if self.status != STOPPED:
            return {}
        return {"exit_status": self.exit_status, "exited_at": timestamp(self.exited_at)}

    def close(self) -> None:
        """Forget its streams."""
        if self.streams:
            self.streams.close()
            self.streams = None


class Task:
    """A container and its processes.

    ready        Create has been answered
    root         the directory of the runtime's state for the container's namespace
    systemd      the caller wants the cgroup from systemd
    owner        uid and gid that pipes are given to
    pausing      a worker is pausing it
    deleting     it is being deleted, and nothing else is to be done with it
    last         init has ended and other processes haven't: its exit is told last
    checkpoint   directory of the images that it is started from, "" if it isn't
    """

    __slots__ = (
        "_container", "bundle", "checkpoint", "deleting", "execs", "id", "init", "last", "notice", "options", "owner",
        "pausing", "ready", "root", "work",
    )  # fmt: skip

    def __init__(self, request: dict[str, Any], root: str, options: dict[str, Any]) -> None:
        self.id: str = request.get("id", "")
        self.bundle: str = request.get("bundle", "")
        self.checkpoint: str = request.get("checkpoint", "")
        self.work: str = options.get("criu_work_path") or f"{self.bundle}/work"
        self.root = root
        self.options = options
        self.owner: tuple[int, int] = (options.get("io_uid", 0), options.get("io_gid", 0))
        self.init = Process("", request)
        self.execs: dict[str, Process] = {}
        self.ready = False
        self.pausing = False
        self.last = False
        self.deleting = False
        self.notice: Notice | None = None
        self._container: Container | None = None

    def operation(self, name: str, **more: Any) -> dict[str, Any]:
        """An operation for a worker (see work)."""
        return {
            "operation": name,
            "id": self.id,
            "bundle": self.bundle,
            "root": self.root,
            "systemd": self.options.get("systemd_cgroup", False),
            **more,
        }

    @property
    def container(self) -> Container:
        """The runtime's own view of it; raises NotFound when it is gone."""
        if self._container is None:
            self._container = Container.load(self.root, self.id)
        return self._container

    def cgroup(self) -> Cgroup:
        """Its cgroup."""
        return cgroups.load(self.container.record.get("cgroup") or {"manager": "disabled"})

    @property
    def private_pids(self) -> bool:
        """Has it a pid namespace of its own, which ends with its init?"""
        try:
            return bool(self.container.record.get("pidNamespace", False))
        except NotFound:
            return True  # deleted by somebody else, with all that it had

    def paused(self) -> bool:
        """Does the kernel say that it stands still?"""
        try:
            return self.init.status == RUNNING and self.container.frozen()
        except NotFound:
            return False

    def processes(self) -> Iterator[Process]:
        """All of them, init first."""
        yield self.init
        yield from self.execs.values()

    def process(self, id: str) -> Process:
        """The process of an exec id, init for ""; raises Failure."""
        if not id:
            return self.init
        process = self.execs.get(id)
        if process is None:
            raise ttrpc.Failure(ttrpc.NOT_FOUND, f"process does not exist {id}: not found")
        return process

    def others_live(self) -> bool:
        """Does a process besides init run?"""
        return any(process.live for process in self.execs.values())

    def close(self) -> None:
        """Forget the streams of all its processes."""
        for process in self.processes():
            process.close()


#: The google.rpc.Code of errors of the runtime.
CODES: dict[type[Error], int] = {
    NotFound: ttrpc.NOT_FOUND,
    AlreadyExists: ttrpc.ALREADY_EXISTS,
    InvalidConfig: ttrpc.INVALID_ARGUMENT,
    WrongState: ttrpc.FAILED_PRECONDITION,
}

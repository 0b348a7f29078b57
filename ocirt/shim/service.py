"""The task service: containerd.task.v2.Task and containerd.task.v3.Task, whose messages are the same.

A method gets the request (a dict, see messages) and the call, which it answers now or later. What may wait is done by
a worker; what is answered from here neither waits nor starts anything.
"""

from __future__ import annotations

import os

from ocirt import log, operations
from ocirt.errors import Error, WrongState
from ocirt.jsontext import parse_json
from ocirt.shim import messages as m
from ocirt.shim import metrics, options, ttrpc, wire
from ocirt.shim.tasks import CODES, Process, Task
from ocirt.shim.ttrpc import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.shim.supervisor import Supervisor
    from ocirt.shim.ttrpc import Call, Method
    from ocirt.shim.wire import Table

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
_SIGKILL = 9


class Service:
    """The methods. `supervisor` does what changes a task; this class knows the messages."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def services(self) -> dict[str, dict[str, tuple[Table, Method]]]:
        """What ttrpc.Server serves."""
        methods: dict[str, tuple[Table, Method]] = {
            "Create": (m.CREATE, self.create),
            "Start": (m.PROCESS, self.start),
            "Delete": (m.PROCESS, self.delete),
            "Exec": (m.EXEC, self.execute),
            "State": (m.PROCESS, self.state),
            "Pids": (m.CONTAINER, self.pids),
            "Pause": (m.CONTAINER, self.pause),
            "Resume": (m.CONTAINER, self.resume),
            "Checkpoint": (m.CHECKPOINT, self.checkpoint),
            "Kill": (m.KILL, self.kill),
            "ResizePty": (m.RESIZE, self.resize),
            "CloseIO": (m.CLOSE_IO, self.close_io),
            "Update": (m.UPDATE, self.update),
            "Wait": (m.PROCESS, self.wait),
            "Stats": (m.CONTAINER, self.stats),
            "Connect": (m.CONTAINER, self.connect),
            "Shutdown": (m.SHUTDOWN, self.shutdown),
        }
        return dict.fromkeys(SERVICES, methods)

    def _task(self, request: dict[str, Any]) -> Task:
        task = self._supervisor.tasks.get(request.get("id", ""))
        if task is None or not task.ready:
            raise Failure(ttrpc.NOT_FOUND, "container not created: not found")
        return task

    def _process(self, request: dict[str, Any]) -> tuple[Task, Process]:
        task = self._task(request)
        return task, task.process(request.get("exec_id", ""))

    def create(self, request: dict[str, Any], call: Call) -> None:
        """Create a container; its program waits for Start."""
        id, bundle = request.get("id", ""), request.get("bundle", "")
        if not id or not bundle.startswith("/"):
            raise Failure(ttrpc.INVALID_ARGUMENT, "Create: an id and the absolute path of a bundle are wanted")
        if id in self._supervisor.tasks:
            raise Failure(ttrpc.ALREADY_EXISTS, f"container {id}: already exists")
        try:
            given = options.read(request.get("options", {}))
        except Error as error:
            raise Failure(ttrpc.INVALID_ARGUMENT, str(error)) from None
        self._supervisor.create(request, given, lambda error: self._created(request, call, error))

    def _created(self, request: dict[str, Any], call: Call, error: Error | None) -> None:
        if error:
            call.fail(_code(error), f"OCI runtime create failed: {error}")
        else:
            call.reply(m.PID, {"pid": self._supervisor.tasks[request["id"]].init.pid})

    def start(self, request: dict[str, Any], call: Call) -> None:
        """Run the program of a container, or a process that Exec has added."""
        task, process = self._process(request)
        if process.status != m.CREATED or process.starting:
            what = "paused" if task.paused() else _STATUS[process.status]
            raise Failure(ttrpc.UNKNOWN, f"cannot start a {what} process")
        _not_deleting(task)
        if process.id and task.init.status == m.STOPPED:
            raise Failure(ttrpc.FAILED_PRECONDITION, f"container {task.id} init process is not running")

        def started(error: Error | None) -> None:
            if error:
                verb = "exec" if process.id else "start"
                call.fail(_code(error), f"OCI runtime {verb} failed: {error}")
            else:
                call.reply(m.PID, {"pid": process.pid})

        self._supervisor.start(task, process, started)

    def delete(self, request: dict[str, Any], call: Call) -> None:
        """Forget a process that has ended; with init, take the container away."""
        task, process = self._process(request)
        if process.live:
            what = "paused" if task.paused() else "running"
            raise Failure(ttrpc.UNKNOWN, f"cannot delete a {what} process")
        _not_deleting(task)

        def deleted(error: Error | None) -> None:
            if error:
                call.fail(_code(error), f"OCI runtime delete failed: {error}")
            else:
                call.reply(m.DELETED, {"pid": process.pid, **process.exit()})

        self._supervisor.delete(task, process, deleted)

    def execute(self, request: dict[str, Any], call: Call) -> None:
        """Add a process; Start runs it."""
        task = self._task(request)
        id = request.get("exec_id", "")
        if not id:
            raise Failure(ttrpc.INVALID_ARGUMENT, "Exec: an exec id is wanted")
        if id in task.execs:
            raise Failure(ttrpc.ALREADY_EXISTS, f"id {id}: already exists")
        if task.init.status == m.STOPPED or task.paused():
            what = "stopped" if task.init.status == m.STOPPED else "paused"
            raise Failure(ttrpc.UNKNOWN, f"cannot exec in a {what} state")
        _not_deleting(task)
        spec = _json(request.get("spec", {}), "the process")
        spec["terminal"] = request.get("terminal", False)
        task.execs[id] = Process(id, request, spec)
        self._supervisor.publisher.publish("exec-added", {"container_id": task.id, "exec_id": id})
        call.reply(m.EMPTY, {})

    def state(self, request: dict[str, Any], call: Call) -> None:
        """How a process is; that of an added one follows the container's pause."""
        task, process = self._process(request)
        status = process.status
        if status == m.RUNNING:
            status = m.PAUSING if task.pausing else m.PAUSED if task.paused() else m.RUNNING
        call.reply(
            m.STATE,
            {
                "id": process.id or task.id,
                "bundle": task.bundle,
                "pid": process.pid,
                "status": status,
                **process.given,
                **process.exit(),
                "exec_id": process.id,
            },
        )

    def pids(self, request: dict[str, Any], call: Call) -> None:
        """Every process in the container's cgroup; those that were added with their exec id."""
        task = self._task(request)
        added = {process.pid: process.id for process in task.execs.values() if process.pid}
        found: list[dict[str, Any]] = []
        for pid in operations.pids(self._supervisor.runtime(task), task.id):
            entry: dict[str, Any] = {"pid": pid}
            if pid in added:
                details = wire.encode(m.PROCESS_DETAILS, {"exec_id": added[pid]})
                entry["info"] = {"type_url": "containerd.runc.v1.ProcessDetails", "value": details}
            found.append(entry)
        call.reply(m.PIDS, {"processes": found})

    def pause(self, request: dict[str, Any], call: Call) -> None:
        """Freeze the container."""
        task = self._running(request, "pause")
        if task.paused():
            raise Failure(ttrpc.UNKNOWN, "cannot pause a paused container")
        task.pausing = True

        def paused(error: Error | None) -> None:
            task.pausing = False
            if error is None:
                self._supervisor.publisher.publish("paused", {"container_id": task.id})
            _answer(call, error)

        self._supervisor.work(task, "pause", paused)

    def resume(self, request: dict[str, Any], call: Call) -> None:
        """Thaw the container."""
        task = self._running(request, "resume")
        if not task.paused():
            raise Failure(ttrpc.UNKNOWN, "cannot resume a running process")

        def resumed(error: Error | None) -> None:
            if error is None:
                self._supervisor.publisher.publish("resumed", {"container_id": task.id})
            _answer(call, error)

        self._supervisor.work(task, "resume", resumed)

    def _running(self, request: dict[str, Any], verb: str) -> Task:
        task = self._task(request)
        if task.init.status != m.RUNNING:
            raise Failure(ttrpc.UNKNOWN, f"cannot {verb} a {_STATUS[task.init.status]} container")
        return task

    def checkpoint(self, request: dict[str, Any], call: Call) -> None:
        """Save the container's processes by CRIU."""
        task = self._running(request, "checkpoint")
        try:
            given = options.images(task.bundle, request.get("path", ""), request.get("options", {}))
        except Error as error:
            raise Failure(ttrpc.INVALID_ARGUMENT, str(error)) from None

        def saved(error: Error | None) -> None:
            if error is None:
                message = {"container_id": task.id, "checkpoint": given["image_path"]}
                self._supervisor.publisher.publish("checkpointed", message)
            _answer(call, error, "OCI runtime checkpoint failed: ")

        self._supervisor.work(task, "checkpoint", saved, given=given)

    def kill(self, request: dict[str, Any], call: Call) -> None:
        """Send a signal to a process, or to all of the container."""
        task, process = self._process(request)
        signal = request.get("signal", 0)
        if not 0 < signal <= 64:
            raise Failure(ttrpc.INVALID_ARGUMENT, f"signal {signal}: 1 to 64 are known")
        everybody = request.get("all", False) and not process.id
        if (process.status == m.STOPPED or process.held) and not everybody:
            raise Failure(ttrpc.NOT_FOUND, "process already finished: not found")
        if not process.pid:
            raise Failure(ttrpc.FAILED_PRECONDITION, "process not created: failed precondition")
        if everybody or (not process.id and signal == _SIGKILL and (task.paused() or not task.private_pids)):

            def killed(error: Error | None) -> None:
                if isinstance(error, WrongState):
                    call.fail(ttrpc.NOT_FOUND, "process already finished: not found")
                else:
                    _answer(call, error)

            self._supervisor.work(task, "kill", killed, signal=signal, all=everybody)
            return
        # a child of ours that isn't reaped: the pid can't be another's
        os.kill(process.pid, signal)
        call.reply(m.EMPTY, {})

    def resize(self, request: dict[str, Any], call: Call) -> None:
        """Set the size of a process's terminal; without one there is nothing to do."""
        _, process = self._process(request)
        if process.streams:
            process.streams.resize(request.get("width", 0), request.get("height", 0))
        call.reply(m.EMPTY, {})

    def close_io(self, request: dict[str, Any], call: Call) -> None:
        """Let a process's stdin end when the client's end of it does."""
        _, process = self._process(request)
        if request.get("stdin") and process.streams:
            process.streams.close_stdin()
        call.reply(m.EMPTY, {})

    def update(self, request: dict[str, Any], call: Call) -> None:
        """Change limits."""
        task = self._task(request)
        if task.init.status == m.STOPPED:
            raise Failure(ttrpc.UNKNOWN, "cannot update a stopped container")
        resources = _json(request.get("resources", {}), "the resources")
        self._supervisor.work(task, "update", lambda error: _answer(call, error), resources=resources)

    def wait(self, request: dict[str, Any], call: Call) -> None:
        """Answer when the process has ended."""
        _, process = self._process(request)
        if process.status == m.STOPPED:
            call.reply(m.EXITED, process.exit())
        else:
            if len(process.waiting) % 64 == 63:  # clients that are gone, or were told that their time is over
                process.waiting = [call for call in process.waiting if not call.needless]
            process.waiting.append(call)

    def stats(self, request: dict[str, Any], call: Call) -> None:
        """What the container uses."""
        task = self._task(request)
        cgroup = task.cgroup()
        if cgroup.record()["manager"] == "disabled":
            raise Failure(ttrpc.NOT_FOUND, "the container has no cgroup: not found")
        call.reply(m.STATS, {"stats": metrics.of(cgroup)})

    def connect(self, request: dict[str, Any], call: Call) -> None:
        """Who serves the container; never fails, as it is containerd's way of asking whether anybody is there."""
        task = self._supervisor.tasks.get(request.get("id", ""))
        call.reply(m.CONNECT, {"shim_pid": os.getpid(), "task_pid": task.init.pid if task else 0})

    def shutdown(self, request: dict[str, Any], call: Call) -> None:
        """End, if no container is left: it is asked for each of a group's containers."""
        call.reply(m.EMPTY, {})
        if not self._supervisor.tasks:
            log.debug(f"shutdown, asked by {request.get('id', '')}")
            self._supervisor.end()


#: A status in the words of errors.
_STATUS = {m.CREATED: "created", m.RUNNING: "running", m.STOPPED: "stopped", m.PAUSED: "paused"}


def _not_deleting(task: Task) -> None:
    if task.deleting:
        raise Failure(ttrpc.FAILED_PRECONDITION, f"container {task.id} is being deleted")


def _code(error: Error) -> int:
    return CODES.get(type(error), ttrpc.UNKNOWN)


def _answer(call: Call, error: Error | None, prefix: str = "") -> None:
    if error is None:
        call.reply(m.EMPTY, {})
    else:
        call.fail(_code(error), f"{prefix}{error}")


def _json(any: dict[str, Any], what: str) -> dict[str, Any]:
    """The JSON object in a google.protobuf.Any; raises Failure."""
    try:
        value: Any = parse_json(any.get("value", b""), what)
    except Error as error:
        raise Failure(ttrpc.INVALID_ARGUMENT, str(error)) from None
    if not isinstance(value, dict):
        raise Failure(ttrpc.INVALID_ARGUMENT, f"{what}: a JSON object is wanted")
    members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    return members

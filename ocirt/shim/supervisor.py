"""What changes tasks: creating, starting and deleting, and what follows when a process ends.

Events go out in the order containerd relies on: create before start before exit before delete, an added process's
exit before its container's.
"""

from __future__ import annotations

import _socket
import os
import time

from ocirt import log
from ocirt.errors import Error, WrongState, doing, from_oserror
from ocirt.lifecycle import Runtime
from ocirt.linux import fds
from ocirt.shim import bundles, wire
from ocirt.shim.loggers import Logger, is_logger
from ocirt.shim.messages import DELETED, RUNNING
from ocirt.shim.stdio import Streams
from ocirt.shim.tasks import Process, Task
from ocirt.shim.worker import Killed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ocirt.shim.events import Publisher
    from ocirt.shim.loop import Loop
    from ocirt.shim.reaper import Reaper
    from ocirt.shim.worker import Workers

    #: Is called with None, or with why it couldn't be done.
    Done = Callable[[Error | None], object]

#: Seconds that Delete waits for output to be passed on.
_DRAIN = 10.0


class Supervisor:
    """The tasks of this shim.

    tasks      by id
    publisher  tells containerd of events
    address    of this shim
    end        called when the shim is to end
    """

    def __init__(
        self,
        loop: Loop,
        workers: Workers,
        reaper: Reaper,
        publisher: Publisher,
        namespace: str,
        address: str,
        end: Callable[[], object],
    ) -> None:
        self.tasks: dict[str, Task] = {}
        self.publisher = publisher
        self.end = end
        self._loop = loop
        self._workers = workers
        self._reaper = reaper
        self._namespace = namespace
        self._address = address

    def runtime(self, task: Task) -> Runtime:
        """For what is only looked up."""
        return Runtime(task.root)

    def work(self, task: Task, name: str, done: Done, **more: Any) -> None:
        """Have a worker do an operation on a task."""
        self._workers.start(task.operation(name, **more), lambda _, error: done(error))

    # -- create ----------------------------------------------------------------------------------------------------

    def create(self, request: dict[str, Any], given: dict[str, Any], done: Done) -> None:
        """Create a container: messages.CREATE and the options that came with it. Raises Error, OSError."""
        root = bundles.state_root(given, self._namespace)
        task = Task(request, root, given)
        bundles.note(task.bundle, root)
        self.tasks[task.id] = task
        operation = task.operation(
            "create",
            mounts=request.get("rootfs", []),
            checkpoint=task.checkpoint,
            no_pivot=given.get("no_pivot_root", False),
            no_new_keyring=given.get("no_new_keyring", False),
        )

        def created(result: dict[str, Any], error: Error | None) -> None:
            if isinstance(error, Killed):
                killed = Error(str(error))
                self._workers.start(task.operation("delete", force=True), lambda _, failure: cleaned(killed, failure))
                return
            if error is None and not task.checkpoint:
                self._follow(task, result["pid"])
            task.init.starting = False
            if error:
                self._forget(task)
            else:
                task.ready = True
                self.publisher.publish(
                    "create",
                    {
                        "container_id": task.id,
                        "bundle": task.bundle,
                        "rootfs": request.get("rootfs", []),
                        "io": task.init.given,
                        "checkpoint": task.checkpoint,
                        "pid": task.init.pid,
                    },
                )
            done(error)
            if task.init.held:
                self._init_ended(task, *task.init.held)

        def cleaned(killed: Error, failure: Error | None) -> None:
            if failure:
                log.warning(f"{task.id}: what a worker that was killed has left: {failure}")
            created({}, killed)

        task.init.starting = True
        if task.checkpoint:
            self._workers.start(operation, created)  # its process comes with Start
        else:
            self._spawn(task, task.init, operation, created)

    def _follow(self, task: Task, pid: int) -> None:
        """A container has been created: wait for its end, and for the OOM killer."""
        task.init.pid = pid
        self._reaper.expect(pid, lambda code, when: self._init_ended(task, code, when))
        try:
            self._watch_memory(task)
        except (Error, OSError) as error:
            # it may be gone already; nothing depends on the notice
            log.warning(f"{task.id}: no notice of the OOM killer: {error}")

    def _forget(self, task: Task) -> None:
        task.close()
        self._stop_watching_memory(task)
        del self.tasks[task.id]

    def _spawn(
        self,
        task: Task,
        process: Process,
        operation: dict[str, Any],
        done: Callable[[dict[str, Any], Error | None], object],
    ) -> None:
        """Have a worker start a process with its streams or its terminal."""
        streams = process.streams = Streams(self._loop)
        given = process.given

        def start_in_terminal(error: Error | None) -> None:
            if error:
                done({}, error)
                return
            try:
                ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            except OSError as failure:
                done({}, from_oserror(failure, "make a socket for the terminal"))
                return

            def with_terminal(result: dict[str, Any], error: Error | None) -> None:
                error = error or _take_terminal(ours, process)
                ours.close()
                done(result, error)

            self._workers.start(operation, with_terminal, console=theirs.fileno())
            theirs.close()

        def start_with_pipes(error: Error | None) -> None:
            if error is None:
                try:
                    with doing("open the streams"):
                        streams.open_pipes(given, task.owner)
                except Error as failure:
                    error = failure
            if error:
                done({}, error)
            else:
                self._workers.start(operation, done, streams=tuple(streams.child))
            streams.started()

        start = start_in_terminal if given["terminal"] else start_with_pipes
        if is_logger(given["stdout"]):
            try:
                with doing("start the logging program"):
                    logger = streams.logger = Logger(self._loop, given["stdout"], task.id, self._namespace, start)
            except Error as failure:
                done({}, failure)
                return
            self._reaper.expect(logger.pid, lambda _code, _when: logger.ended())
        else:
            start(None)

    # -- start -----------------------------------------------------------------------------------------------------

    def start(self, task: Task, process: Process, done: Done) -> None:
        """Run the program of a created container, or an added process."""
        process.starting = True

        def started(result: dict[str, Any], error: Error | None) -> None:
            process.starting = False
            if error is None:
                if result.get("pid"):
                    process.pid = result["pid"]
                process.status = RUNNING
                if process.id:
                    message = {"container_id": task.id, "exec_id": process.id, "pid": process.pid}
                    self.publisher.publish("exec-started", message)
                else:
                    self.publisher.publish("start", {"container_id": task.id, "pid": process.pid})
            else:
                process.close()
                if process.id:
                    process.end(255, time.time())
            done(error)
            self._after_start(task, process, error)

        if process.id:
            self._spawn(task, process, task.operation("execute", process=process.spec), started)
        elif task.checkpoint:
            self._spawn(task, process, task.operation("restore", checkpoint=task.checkpoint, work=task.work), started)
        else:
            self._workers.start(task.operation("start"), started)

    def _after_start(self, task: Task, process: Process, error: Error | None) -> None:
        """What may have happened before containerd could know that the process had started."""
        if not process.id:
            if task.checkpoint and error is None:
                self._follow(task, process.pid)
            if process.held:
                self._init_ended(task, *process.held)
        elif error is None:
            self._reaper.expect(process.pid, lambda code, when: self._added_ended(task, process, code, when))
        elif task.last:
            self._tell_last(task)

    # -- the end of processes --------------------------------------------------------------------------------------

    def _init_ended(self, task: Task, code: int, when: float) -> None:
        init = task.init
        if init.starting:
            init.held = (code, when)
            return
        init.held = None
        self._look_at_memory(task)
        init.end(code, when)
        task.last = True
        if not task.deleting and not task.private_pids:
            # what it leaves in the host's pid namespace doesn't end with it
            self.work(task, "kill", lambda error: self._killed(task, error), signal=9, all=True)
        elif not task.others_live():
            self._tell_last(task)

    def _killed(self, task: Task, error: Error | None) -> None:
        if error and not isinstance(error, WrongState):
            log.warning(f"{task.id}: what init has left: {error}")
        if not task.others_live():
            self._tell_last(task)

    def _added_ended(self, task: Task, process: Process, code: int, when: float) -> None:
        process.end(code, when)
        self._tell_exit(task, process)
        if task.last and not task.others_live():
            self._tell_last(task)

    def _tell_last(self, task: Task) -> None:
        if task.last:
            task.last = False
            self._tell_exit(task, task.init)

    def _tell_exit(self, task: Task, process: Process) -> None:
        self.publisher.publish(
            "exit",
            {"container_id": task.id, "id": process.id or task.id, "pid": process.pid, **process.exit()},
        )

    # -- delete ----------------------------------------------------------------------------------------------------

    def delete(self, task: Task, process: Process, done: Done) -> None:
        """Forget a process that doesn't run; with init, take the container away."""
        if process.id:
            self._drain(process, lambda: self._forget_added(task, process, done))
            return
        task.deleting = True

        def deleted(error: Error | None) -> None:
            self._reaper.reap()  # the end of one that was only created
            if error:
                task.deleting = False
                done(error)
                return
            self._tell_last(task)
            self._drain(process, lambda: self._deleted(task, done))

        self.work(task, "delete", deleted)

    def _drain(self, process: Process, then: Callable[[], object]) -> None:
        if process.streams:
            process.streams.when_finished(_DRAIN, then)
        else:
            then()

    def _forget_added(self, task: Task, process: Process, done: Done) -> None:
        process.close()
        if task.execs.get(process.id) is process:  # not deleted twice at once, and added again
            del task.execs[process.id]
        done(None)

    def _deleted(self, task: Task, done: Done) -> None:
        init = task.init
        self._forget(task)
        self.publisher.publish("delete", {"container_id": task.id, "pid": init.pid, **init.exit()})
        if init.exit():
            try:
                bundles.note_deleted(task.bundle, wire.encode(DELETED, {"pid": init.pid, **init.exit()}), self._address)
            except OSError:
                pass  # `delete` finds out by itself
        done(None)

    # -- memory ----------------------------------------------------------------------------------------------------

    def _watch_memory(self, task: Task) -> None:
        from ocirt.cgroups.oom import Notice

        notice = Notice(task.cgroup())
        if notice.fd < 0:
            return
        task.notice = notice
        self._loop.watch(notice.fd, notice.events, lambda _: self._look_at_memory(task))

    def _look_at_memory(self, task: Task) -> None:
        """Has the OOM killer been there?"""
        if task.notice is None:
            return
        try:
            if task.notice.happened():
                self.publisher.publish("oom", {"container_id": task.id})
        except OSError:
            self._stop_watching_memory(task)  # the cgroup is gone

    def _stop_watching_memory(self, task: Task) -> None:
        if task.notice:
            self._loop.forget(task.notice.fd)  # its number is soon another descriptor's
            task.notice.close()
            task.notice = None


def _take_terminal(socket: _socket.socket, process: Process) -> Error | None:
    """The master that init has sent by now."""
    socket.setblocking(False)
    try:
        _, received = fds.receive(socket, 4096)
        if not received:
            return Error("the container has sent no terminal")
        if process.streams is None:
            os.close(received[0])
            return Error("the container has been deleted")
        process.streams.open_terminal(received[0], process.given)
    except Error as error:
        return error
    except OSError as error:
        return Error(f"take the terminal: {error.strerror}", error.errno or 0)
    return None

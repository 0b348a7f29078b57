"""What containerd is to a shim: bundles with their log fifo, connections, tasks, and the cleaning up afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engines.containerd import schema, ttrpc
from tests.engines.containerd.calling import Answer, Caller, CallFailed, Kind
from tests.engines.containerd.events import EventServer
from tests.engines.containerd.streams import Input, Output
from tests.harness.bundle import Bundle, default_config
from tests.harness.leftovers import alive, detach, mounts

SOCKETS = Path("/run/containerd/s")
CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
#: The exit status of what SIGKILL has ended, or of what nobody knows how it ended.
KILLED = 128 + signal.SIGKILL
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
RUNC_OPTIONS = "containerd.runc.v1.Options"


def json_any(url: str, value: Any) -> Any:
    """An Any whose value is JSON, as typeurl makes it."""
    return schema.message("google.protobuf.Any", type_url=url, value=json.dumps(value).encode())


def mount(type: str, source: str | Path, *options: str, target: str = "") -> Any:
    """A mount of a root file system."""
    return schema.message("containerd.types.Mount", type=type, source=str(source), options=list(options), target=target)


class ShimBundle(Bundle):
    """A bundle as containerd lays it out; its root file system is mounted by the shim."""

    def __init__(self, path: Path, id: str) -> None:
        self.path = path
        self.id = id
        self.rootfs = path / "rootfs"
        self.config = default_config(id)
        path.mkdir(mode=0o711, parents=True)
        self.rootfs.mkdir(mode=0o711)
        os.mkfifo(path / "log", 0o700)
        self.log = os.open(path / "log", os.O_RDWR | os.O_NONBLOCK)

    def logged(self) -> str:
        """What the shim has written to its log."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.log, 1 << 16):
                data += more
        return data.decode(errors="replace")

    def close(self) -> None:
        os.close(self.log)


class Engine:
    """One containerd, its shims and tasks."""

    def __init__(self, kind: Kind, place: Path, id: str, image: Path) -> None:
        self.kind = kind
        self.place = place
        self.name = id
        self.image = image
        self.namespace = f"{id}-ns"
        self.events = EventServer(place / "ttrpc.sock")
        self.caller = Caller(kind, place / "containerd.sock", place / "ttrpc.sock", self.namespace)
        self.bundles: list[ShimBundle] = []
        self.tasks: list[Task] = []
        self.connections: list[ttrpc.Connection] = []
        self.addresses: set[str] = set()
        self.shims: set[int] = set()
        self._programs: list[Output | Input] = []

    # parts

    def bundle(self, script: str = "", **annotations: str) -> ShimBundle:
        """A bundle in which `script` runs; annotations with `__` for `/` and `_` for `.`."""
        id = f"{self.name}n{len(self.bundles) + 1}"
        bundle = ShimBundle(self.place / "task" / self.namespace / id, id)
        if script:
            bundle.sh(script)
        if annotations:
            bundle.config["annotations"] = dict(annotations)
        self.bundles.append(bundle)
        return bundle

    def start(self, bundle: ShimBundle, options: Any = None, **how: Any) -> Answer:
        """`start` for a bundle, whose config.json is written."""
        bundle.write()
        answer = self.caller.start(bundle.id, bundle.path, options, **how)
        self.addresses.add(answer.address)
        return answer

    def connect(self, answer: Answer) -> ttrpc.Connection:
        """A connection to a shim."""
        connection = ttrpc.Connection(answer.address, answer.version, self.namespace)
        self.connections.append(connection)
        self.shims.add(connection.call("Connect", id="").shim_pid)
        return connection

    def task(self, script: str = "sleep 1000", bundle: ShimBundle | None = None, **how: Any) -> Task:
        """A bundle, its shim and a connection; nothing created yet."""
        bundle = bundle or self.bundle(script)
        answer = self.start(bundle, **how)
        return self.adopt(bundle, answer)

    def adopt(self, bundle: ShimBundle, answer: Answer) -> Task:
        """The task of a bundle in a shim that has answered."""
        task = Task(self, bundle, answer, self.connect(answer))
        self.tasks.append(task)
        return task

    def running(self, script: str = "sleep 1000", bundle: ShimBundle | None = None, **create: Any) -> Task:
        """A task that has been started."""
        task = self.task(script, bundle)
        task.create(**create)
        task.start()
        return task

    def options(self, **fields: Any) -> Any:
        """containerd.runc.v1.Options with what this kind of shim always gets."""
        return schema.any_of(RUNC_OPTIONS, **{**self.kind.options, **fields})

    def output(self, name: str = "out", *, paused: bool = False) -> Output:
        """A fifo that is read."""
        made = Output(self.place / f"{name}-{len(self._programs)}", paused=paused)
        self._programs.append(made)
        return made

    def input(self) -> Input:
        """A fifo that is written."""
        made = Input(self.place / f"in-{len(self._programs)}")
        self._programs.append(made)
        return made

    def socket_of(self, group: str) -> str:
        """The address that a group's shim must have."""
        text = "/".join((str(self.caller.grpc), self.namespace, group))
        return f"unix://{SOCKETS}/{hashlib.sha256(text.encode()).hexdigest()}"

    # the end

    def close(self) -> None:
        """End what a test has left alive; what a shim has to remove is left to be found."""
        for task in reversed(self.tasks):
            task.finish()
        for connection in self.connections:
            connection.close()
        end = time.monotonic() + 5
        while any(alive(pid) for pid in self.shims) and time.monotonic() < end:
            time.sleep(0.02)
        for stream in self._programs:
            stream.close()
        self.events.close()
        for bundle in self.bundles:
            bundle.close()

    def left(self) -> list[str]:
        """What is left of the shims: sockets, mounts of root file systems, state."""
        left = [f"socket {address}" for address in self.addresses if ttrpc.exists(address)]
        left += [f"mount {point}" for point in mounts().values() if point.startswith(f"{self.place}/task/")]
        for top, directories, files in os.walk("/run/containerd"):
            left += [f"state {top}/{name}" for name in (*directories, *files) if f"{self.name}n" in name]
        return left

    def clean(self) -> None:
        """Take away by force what is left."""
        for address in self.addresses:
            Path(address.removeprefix("unix://")).unlink(missing_ok=True)
        for point in sorted((p for p in mounts().values() if p.startswith(f"{self.place}/")), key=len, reverse=True):
            detach(point)
        for root in ("runc", "ocirt"):
            shutil.rmtree(f"/run/containerd/{root}/{self.namespace}", ignore_errors=True)


class Task:
    """A container in a shim, and the calls about it."""

    def __init__(self, engine: Engine, bundle: ShimBundle, answer: Answer, connection: ttrpc.Connection) -> None:
        self.engine = engine
        self.bundle = bundle
        self.id = bundle.id
        self.answer = answer
        self.shim = connection
        self.pid = 0
        self.out: Output | None = None
        self.err: Output | None = None
        self._done = False
        self._execs = 0
        self.exit_status = KILLED

    @property
    def shim_pid(self) -> int:
        return int(self("Connect").shim_pid)

    def __call__(self, method: str, **fields: Any) -> Any:
        """A call with the container's id."""
        return self.shim.call(method, id=self.id, **fields)

    def fails(self, method: str, **fields: Any) -> ttrpc.RpcError:
        """The error of a call that must fail."""
        __tracebackhide__ = True
        return self.shim.fails(method, id=self.id, **fields)

    def rootfs(self) -> list[Any]:
        return [mount("bind", self.engine.image, "rbind", "rw")]

    def request(self, *, io: bool = True, **fields: Any) -> dict[str, Any]:
        """Create's request: fifos for stdout and stderr, the image as root file system."""
        if io and not {"stdin", "stdout", "stderr"} & set(fields):
            self.out, self.err = self.engine.output("out"), self.engine.output("err")
            fields |= {"stdout": str(self.out.path), "stderr": str(self.err.path)}
        fields.setdefault("rootfs", self.rootfs())
        fields.setdefault("options", self.engine.options() if self.engine.kind.options else None)
        return {"id": self.id, "bundle": str(self.bundle.path), **fields}

    def create(self, **fields: Any) -> int:
        """Create; the pid."""
        __tracebackhide__ = True
        self.pid = self.shim.call("Create", **self.request(**fields)).pid
        return self.pid

    def start(self, exec_id: str = "") -> int:
        return int(self("Start", exec_id=exec_id).pid)

    def state(self, exec_id: str = "") -> Any:
        return self("State", exec_id=exec_id)

    @property
    def status(self) -> int:
        return int(self.state().status)

    def kill(self, number: int = signal.SIGKILL, exec_id: str = "", *, all: bool = False) -> None:
        self("Kill", signal=int(number), exec_id=exec_id, all=all)

    def wait(self, exec_id: str = "", within: float = ttrpc.TIMEOUT) -> int:
        """Wait; the exit status."""
        return int(self("Wait", exec_id=exec_id, within=within).exit_status)

    def delete(self, exec_id: str = "") -> Any:
        """Delete; DeleteResponse."""
        response = self("Delete", exec_id=exec_id)
        if response.HasField("exited_at") and not exec_id:
            self.exit_status = response.exit_status
        return response

    def shutdown(self) -> None:
        """Shutdown, which may be answered by the end of the connection."""
        with contextlib.suppress(ttrpc.Closed):
            self("Shutdown")

    def exec(self, *args: str, id: str = "", spec: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """Exec of a program with the environment of init's; the exec's id."""
        self._execs += 1
        id = id or f"x{self._execs}"
        process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin:/usr/bin"], "user": {"uid": 0, "gid": 0}}
        self("Exec", exec_id=id, spec=json_any(PROCESS, {**process, **(spec or {})}), **fields)
        return id

    def run(self, *args: str, **fields: Any) -> tuple[int, bytes]:
        """A whole exec: (exit status, stdout)."""
        out, err = self.engine.output("exec"), self.engine.output("exec-err")  # the Go shim wants both
        id = self.exec(*args, stdout=str(out.path), stderr=str(err.path), **fields)
        self.start(id)
        status = self.wait(id)
        self.delete(id)
        return status, out.all()

    def rootfs_mounted(self) -> bool:
        """Whether something is mounted on the bundle's root file system, as seen from here."""
        return str(self.bundle.rootfs) in mounts().values()

    def pids(self) -> list[int]:
        return [process.pid for process in self("Pids").processes]

    def finish(self) -> None:
        """As containerd ends a task: kill, wait, Delete, Shutdown, then the binary's `delete`. Nothing is expected."""
        if self._done:
            return
        self._done = True
        with contextlib.suppress(ttrpc.RpcError, ttrpc.Closed, ttrpc.Late, OSError):
            with contextlib.suppress(ttrpc.RpcError):
                self("Resume", within=5)
            with contextlib.suppress(ttrpc.RpcError):
                self("Kill", signal=9, all=True, within=5)
                self("Wait", within=5)
            with contextlib.suppress(ttrpc.RpcError):
                self("Delete", within=5)
            self("Shutdown", within=5)
        with contextlib.suppress(Exception):
            self.engine.caller.delete(self.id, self.bundle.path)

    def end(self) -> Any:
        """The ordinary end, every step of which must succeed: Kill, Wait, Delete, Shutdown, `delete`."""
        self.kill()
        self.wait()
        response = self.delete()
        self.leave()
        return response

    def leave(self) -> None:
        """What containerd does after Delete: `delete` says how a container ended that our shim has deleted."""
        self.shutdown()
        self._done = True
        try:
            response, text = self.engine.caller.delete(self.id, self.bundle.path)
        except CallFailed:
            assert self.engine.kind.name != "ocirt"
            assert not (self.bundle.path / "runtime").exists(), "the Go shim can't delete what it hasn't created"
            return
        if self.engine.kind.name == "ocirt":  # the Go shim has its say, and warns when it has lost a race
            assert text == b"", f"`delete` isn't quiet: {text!r}"
        assert response.exit_status == (self.exit_status if self.engine.kind.name == "ocirt" else KILLED)

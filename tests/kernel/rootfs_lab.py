"""A process in new namespaces that runs the steps of ocirt.rootfs on a busybox tree.

lab.run({"mounts": […]}, probe)   runs MOUNTS, ENTER_ROOT and SEAL and then probe(plan) inside;
                                  its result (JSON) is returned, an Error of a step is raised
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocirt import rootfs
from ocirt.errors import Error
from ocirt.linux import libc
from ocirt.process.plan import Plan
from tests.kernel import enosys

CLONE = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "mount": 0x20000,
    "network": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}

Probe = Callable[[Plan], Any]

DEFAULT_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    },
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]


class Failed(Exception):
    """A step raised Error; its text."""


class Lab:
    """A bundle directory with a root filesystem, and ways to run the steps on it."""

    def __init__(self, directory: Path) -> None:
        self.bundle = directory
        self.rootfs = directory / "rootfs"
        for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "mnt", "var"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", self.rootfs / "bin" / "busybox")
        for name in ("sh", "ls", "cat", "mount", "umount", "stat", "touch"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        #: System calls that shall answer ENOSYS inside.
        self.without: tuple[str, ...] = ()

    def run(
        self,
        config: dict[str, Any],
        probe: Probe | None = None,
        *,
        new: tuple[str, ...] = ("mount", "pid", "network", "ipc"),
        mappings: tuple[int, int] | None = None,
        setup: Callable[[], Any] | None = None,
        prepare: Callable[[Plan], Any] | None = None,
        plan: dict[str, Any] | None = None,
        user: int = 0,
        steps: tuple[Any, ...] = (*rootfs.MOUNTS, *rootfs.ENTER_ROOT, *rootfs.SEAL),
    ) -> Any:
        """Run the steps in new namespaces, then `probe`; gives what it returns.

        mappings  (first host id, size) of a user namespace
        setup     called in the new namespaces before the steps
        prepare   called with the plan before the namespaces are made (the runtime's side)
        plan      fields of the plan
        user      the id of an ordinary user who does all of this
        """
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            try:
                enosys.install(*self.without)
                if user:
                    os.setgroups([])
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                    libc.call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self belongs to the user again
                self._outer(config, probe, new, mappings, setup, prepare, plan or {}, steps, write)
            except BaseException:
                os.write(write, json.dumps({"bug": traceback.format_exc()}).encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        if not answer:
            raise AssertionError("the child died")
        reply = json.loads(answer)
        if "failed" in reply:
            raise Failed(reply["failed"])
        if "bug" in reply:
            raise AssertionError(reply["bug"])
        return reply["result"]

    def _outer(
        self,
        config: dict[str, Any],
        probe: Probe | None,
        new: tuple[str, ...],
        mappings: tuple[int, int] | None,
        setup: Callable[[], Any] | None,
        prepare: Callable[[Plan], Any] | None,
        fields: dict[str, Any],
        steps: tuple[Any, ...],
        write: int,
    ) -> None:
        plan = Plan("test", str(self.bundle), str(self.rootfs), {"ociVersion": "1.3.0", **config})  # type: ignore[arg-type]
        plan.new = frozenset(new)
        if mappings:
            plan.new |= {"user"}
            plan.userns = True
            mapping = [{"containerID": 0, "hostID": mappings[0], "size": mappings[1]}]
            plan.linux = {**plan.linux, "uidMappings": mapping, "gidMappings": mapping}  # type: ignore[typeddict-item]
        for name, value in fields.items():
            setattr(plan, name, value)
        try:
            if prepare:
                prepare(plan)
        except Error as error:
            os.write(write, json.dumps({"failed": str(error)}).encode())
            return
        if mappings:
            self._new_user_namespace(mappings)
        flags = 0
        for name in new:
            flags |= CLONE[name]
        libc.call("unshare", flags)
        inner = os.fork()
        if inner == 0:
            try:
                result = self._inner(plan, probe, setup, steps)
            except Error as error:
                reply = {"failed": str(error)}
            except BaseException:
                reply = {"bug": traceback.format_exc()}
            else:
                reply = {"result": result}
            os.write(write, json.dumps(reply).encode())
            os._exit(0)
        os.waitpid(inner, 0)

    def _new_user_namespace(self, mappings: tuple[int, int]) -> None:
        ready, go = os.pipe(), os.pipe()
        parent = os.getpid()
        mapper = os.fork()
        if mapper == 0:
            os.read(ready[0], 1)
            if os.getuid():
                with open(f"/proc/{parent}/setgroups", "w") as file:
                    file.write("deny")
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{parent}/{name}", "w") as file:
                    file.write(f"0 {mappings[0]} {mappings[1]}\n")
            os.write(go[1], b"x")
            os._exit(0)
        libc.call("unshare", CLONE["user"])
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os.waitpid(mapper, 0)
        os.setgid(0)
        os.setuid(0)

    def unshare(self, *names: str) -> None:
        """Make new namespaces for the calling process."""
        libc.call("unshare", sum(CLONE[name] for name in names))

    def _inner(self, plan: Plan, probe: Probe | None, setup: Callable[[], Any] | None, steps: tuple[Any, ...]) -> Any:
        if setup:
            setup()
        before = _descriptors()
        prepared = {*plan.trees.values(), *plan.device_trees.values()}
        for step in steps:
            step(plan)
        left = _descriptors() - before - {plan.root, plan.proc, *(fd for _, fd in plan.late_readonly)}
        assert not left, f"the steps left descriptors open: {left}"
        assert not prepared & _descriptors(), "prepared descriptors were left open"
        return probe(plan) if probe else None


# --- what probes look at, inside


def mountinfo(path: str = "/proc/self/mountinfo") -> list[dict[str, Any]]:
    """The mounts: id, parent, root, point, options (set), optional (list), type, source, super (set)."""
    mounts: list[dict[str, Any]] = []
    with open(path) as file:
        for line in file:
            fields = line.split()
            dash = fields.index("-")
            mounts.append(
                {
                    "id": int(fields[0]),
                    "parent": int(fields[1]),
                    "root": fields[3],
                    "point": fields[4],
                    "options": fields[5].split(","),
                    "optional": fields[6:dash],
                    "type": fields[dash + 1],
                    "source": fields[dash + 2],
                    "super": fields[dash + 3].split(","),
                }
            )
    return mounts


def mounts_by_point(_: Plan | None = None) -> dict[str, dict[str, Any]]:
    """The topmost mount of each mount point."""
    return {m["point"]: m for m in mountinfo()}


def sh(command: str) -> tuple[int, str]:
    """(exit status, output) of a shell command in the container."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        try:
            os.execve("/bin/sh", ["sh", "-c", command], {"PATH": "/bin"})
        finally:
            os._exit(127)
    os.close(write)
    with open(read, "rb") as pipe:
        output = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()


def _descriptors() -> set[int]:
    found: set[int] = set()
    for fd in range(256):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.add(fd)
    return found


def mounts_on_host(*command: str) -> None:
    """Run mount(8) or another program of the host, before the steps."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    assert os.waitpid(pid, 0)[1] == 0, command

"""Cgroups on a host with v1 hierarchies; a hybrid host's cgroup2 tree is one hierarchy more.

A hierarchy is (controllers, mountpoint, path, kept): `kept` is how many
components of the path were there before the container and stay after it.
"""

from __future__ import annotations

import posix

from ocirt.cgroups import files
from ocirt.cgroups.base import SIGKILL, Cgroup
from ocirt.cgroups.entrances import Entrances
from ocirt.errors import Error, Unsupported, WrongState, doing, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class V1(Cgroup):
    """One directory of the same name in every hierarchy."""

    __slots__ = ("cgroups", "enabled", "optional")

    def __init__(self, cgroups: list[tuple[str, str, str, int]], *, optional: bool = False) -> None:
        self.cgroups = cgroups
        #: rootless: a hierarchy that may not be written is left out, and only a limit that needs it is an error
        self.optional = optional
        #: controllers that were enabled on a hybrid host's cgroup2 tree for this container
        self.enabled: list[str] = []

    # -- where

    def _directories(self) -> list[str]:
        return [mountpoint + path for _, mountpoint, path, _ in self.cgroups]

    def path(self, controller: str = "") -> str:
        for controllers, mountpoint, path, _ in self.cgroups:
            if controllers == controller or (controller and controller in controllers.split(",")):
                return mountpoint + path
        return ""

    def _main(self) -> str:
        """The hierarchy whose list of processes counts: one that a container doesn't get to write."""
        return self.path("freezer") or self.path("pids") or self.path() or next(iter(self._directories()), "")

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"manager": "v1", "cgroups": [list(c) for c in self.cgroups]}
        if self.enabled:
            record["enabled"] = self.enabled
        return record

    def mounts(self) -> list[tuple[str, str, str]]:
        return [(controllers, mountpoint, path) for controllers, mountpoint, path, _ in self.cgroups]

    # -- create

    def foresee(self) -> None:
        from ocirt.cgroups.making import existing

        self.cgroups = [(controllers, root, path, existing(root, path)) for controllers, root, path, _ in self.cgroups]

    def prepare(self) -> int:
        from ocirt.cgroups.making import make

        made: list[tuple[str, str, str, int]] = []
        for controllers, mountpoint, path, _ in self.cgroups:
            directory = mountpoint + path
            try:
                kept = make(mountpoint, path)
            except OSError as error:
                if self.optional and error.errno in (files.EACCES, files.EPERM, files.EROFS):
                    continue
                self.cgroups = made
                self.remove()
                raise from_oserror(error, f"mkdir {directory}") from error
            made.append((controllers, mountpoint, path, kept))
            if controllers == "cpuset" or "cpuset" in controllers.split(","):
                inherit_cpuset(mountpoint, path)
        self.cgroups = made
        try:
            self._check()
            return _opened(self.path())
        except (Error, OSError):
            self.remove()
            raise

    def _check(self) -> None:
        """Refuse a cgroup that isn't fit for a container (config-linux.md, Control groups)."""
        for _, mountpoint, path, kept in self.cgroups:
            if kept == path.count("/"):  # it was there before us
                refuse_processes(mountpoint + path)
        freezer = self.path("freezer")
        if freezer and files.read_or(freezer + "/freezer.state", "THAWED") != "THAWED":
            raise WrongState(f"cgroup {freezer} is frozen: a container in it could never start")

    def join(self, pid: int, *, memory: bool = True) -> None:
        later = "" if memory else self.path("memory")
        for directory in self._directories():
            if directory != later:
                _join(directory, pid)

    def charge(self, pid: int) -> None:
        directory = self.path("memory")
        if directory:
            _join(directory, pid)

    def entrances(self, *, memory: bool = True) -> Entrances:
        return self._entrances(self.mounts(), "" if memory else self.path("memory"))

    def _entrances(self, places: list[tuple[str, str, str]], late: str = "") -> Entrances:
        unified = next(((mountpoint, path) for controllers, mountpoint, path in places if not controllers), ("", ""))
        directories = [mountpoint + path for controllers, mountpoint, path in places if controllers]
        return Entrances(directories, hint=_join_hint, late=late, unified=unified)

    def complete(self, pid: int) -> None:
        """systemd manages only some controllers of v1."""
        from ocirt.cgroups.making import make

        with doing("join the hierarchies that systemd doesn't manage"):
            for index, (controllers, mountpoint, path, _) in enumerate(self.cgroups):
                self.cgroups[index] = (controllers, mountpoint, path, make(mountpoint, path))
                if "cpuset" in controllers.split(","):
                    inherit_cpuset(mountpoint, path)
            self.join(pid)

    def apply(self, resources: Mapping[str, Any]) -> None:
        from ocirt.cgroups import resources_v1

        resources_v1.apply(self, resources)

    def update(self, resources: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        from ocirt.cgroups import resources_v1

        resources_v1.apply(self, resources, current)

    def chown(self, uid: int, gid: int = -1) -> None:
        """Nothing: delegation isn't secure with cgroup v1 (config-linux.md, Cgroup ownership)."""

    # -- freeze

    def freeze(self) -> None:
        directory = self.path("freezer")
        if directory:
            with doing("freeze the cgroup"):
                _freeze_v1(directory)
            return
        if not self.path():
            lacks = "no cgroup hierarchy has the freezer controller" if self.cgroups else "the container has no cgroup"
            raise Unsupported(f"can't freeze: {lacks}")
        from ocirt.cgroups import v2

        v2.freeze(self.path())

    def thaw(self) -> None:
        directory = self.path("freezer")
        try:
            if directory:
                files.write(directory + "/freezer.state", "THAWED")
            elif self.path():
                files.write(self.path() + "/cgroup.freeze", "0")
        except Error as error:
            if error.errno not in (files.ENOENT, files.ENODEV):
                raise

    def frozen(self) -> bool:
        directory = self.path("freezer")
        if directory:
            return files.read_or(directory + "/freezer.state", "THAWED") != "THAWED"
        return bool(self.path()) and files.read_or(self.path() + "/cgroup.freeze") == "1"

    # -- processes

    def pids(self, recursive: bool = True) -> list[int]:
        return files.processes(self._main(), recursive=recursive)

    def kill(self) -> None:
        """cgroup.kill of the hybrid tree takes everyone at once; else freeze, signal, thaw."""
        unified = self.path()
        if not unified:
            self._signal_all(SIGKILL)
            return
        try:
            files.put(unified + "/cgroup.kill", "1")
        except OSError as error:
            if error.errno != files.ENODEV and posix.access(unified, posix.F_OK):
                self._signal_all(SIGKILL)  # before Linux 5.14
                return
        self.thaw()
        # one that was moved out of the hybrid tree's cgroup, but not out of this one
        if set(self.pids()).difference(files.processes(unified)):
            self._signal_all(SIGKILL)

    def signal(self, number: int) -> None:
        if number == SIGKILL:
            self.kill()
        else:
            self._signal_all(number)

    def _hold(self, seconds: float) -> None:
        directory = self.path("freezer")
        if directory:
            _freeze_v1(directory, seconds)

    def join_exec(self, pid: int, subs: list[str], init: int = 0) -> None:
        del init
        for _, mountpoint, path in self._exec_places(subs):
            files.write(f"{mountpoint}{path}/cgroup.procs", str(pid))

    def exec_entrances(self, subs: list[str]) -> Entrances:
        return self._entrances(self._exec_places(subs))

    def exec_descriptor(self, subs: list[str], init: int = 0) -> int:
        del init
        return _opened("".join(root + path for controllers, root, path in self._exec_places(subs) if not controllers))

    def _exec_places(self, subs: list[str]) -> list[tuple[str, str, str]]:
        """As `mounts`, with what exec --cgroup says."""
        if not subs:
            return self.mounts()
        from ocirt.cgroups.making import split_sub, there

        below = dict.fromkeys((controllers for controllers, _, _, _ in self.cgroups), "")
        said: dict[str, str] = {}  # which word names the place of a hierarchy
        for sub in subs:
            names, path = split_sub(sub)
            for controllers in below:
                if not names or controllers in names or any(c in names for c in controllers.split(",")):
                    below[controllers], said[controllers] = path, sub
            for name in names:
                if not any(name in c.split(",") or name == c for c in below):
                    raise Unsupported(f"--cgroup {sub}: no hierarchy has the controller {name}")
        places = [(controllers, root, path + below[controllers]) for controllers, root, path in self.mounts()]
        for controllers, root, path in places:
            if controllers in said:
                there(root + path, said[controllers])
        return places

    # -- what it used

    def stats(self) -> dict[str, Any]:
        from ocirt.cgroups import stats_v1

        return stats_v1.stats(self)

    def oom_kills(self) -> int:
        directory = self.path("memory")
        return files.fields(directory + "/memory.oom_control").get("oom_kill", 0) if directory else 0

    def memory_peak(self) -> tuple[int, int]:
        directory = self.path("memory")
        limit = files.number(directory + "/memory.limit_in_bytes", -1)
        # "no limit" is the largest multiple of the page size that the counter takes
        return (-1 if limit >= 1 << 62 else limit), files.number(directory + "/memory.max_usage_in_bytes")

    # -- delete

    def remove(self) -> None:
        from ocirt.cgroups.removing import remove

        # the hybrid tree first: it is the one that tells when it is empty
        for _, mountpoint, path, kept in sorted(self.cgroups, key=lambda c: c[0]):
            remove(mountpoint, path, kept)
        if self.enabled:
            from ocirt.cgroups import hybrid

            hybrid.disable(self)


def refuse_processes(directory: str) -> None:
    """Raise WrongState if a process is in the cgroup."""
    found = files.processes(directory)
    if found:
        raise WrongState(
            f"cgroup {directory} is not empty: {len(found)} process(es) found, pid {found[0]} first "
            "(linux.cgroupsPath names a cgroup that is in use)"
        )


def inherit_cpuset(mountpoint: str, path: str) -> None:
    """Give new cpusets their parent's cpus and mems: a process can't enter one that has none."""
    parent = mountpoint
    with doing("set up the cpuset"):
        at = 0
        while at >= 0:
            at = path.find("/", at + 1)
            directory = mountpoint + (path[:at] if at >= 0 else path)
            for name in ("/cpuset.cpus", "/cpuset.mems"):
                if not files.read(directory + name):
                    files.write(directory + name, files.read(parent + name))
            parent = directory


def _opened(directory: str) -> int:
    """A descriptor of a cgroup2 directory for clone3, -1 if there is none."""
    if not directory:
        return -1
    with doing("open the cgroup"):
        return posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)


def _join(directory: str, pid: int) -> None:
    try:
        fd = posix.open(directory + "/cgroup.procs", posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, str(pid).encode())
        finally:
            posix.close(fd)
    except OSError as error:
        raise files.failed(directory + "/cgroup.procs", str(pid), error, _join_hint(directory)) from error


def _join_hint(directory: str) -> str:
    if files.read_or(directory + "/cpuset.cpus", "-") == "":
        return "its cpuset has no cpus"
    if files.read_or(directory + "/cpu.rt_runtime_us", "-") == "0":
        return "a realtime process needs linux.resources.cpu.realtimeRuntime"
    return ""


def _freeze_v1(directory: str, deadline: float = 10.0) -> None:
    """Write FROZEN until the state says so.

    The v1 freezer has no event: a process that forks while it is being frozen can
    leave the state at FREEZING, and only another write goes over the list again.
    """
    import time

    state = directory + "/freezer.state"
    until = time.monotonic() + deadline
    pause = 0.00005
    while True:
        files.write(state, "FROZEN")
        if files.read_or(state) == "FROZEN":
            return
        if time.monotonic() > until:
            files.write(state, "THAWED")
            raise Error(f"{state} stays at FREEZING after {deadline:g} s: a process can't be stopped")
        time.sleep(pause)
        pause = min(pause * 2, 0.01)

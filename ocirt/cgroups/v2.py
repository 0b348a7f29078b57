"""Cgroups on a host with cgroup v2 alone (cgroup-v2.rst)."""

from __future__ import annotations

import posix

from ocirt.cgroups import files
from ocirt.cgroups.base import SIGKILL, Cgroup
from ocirt.errors import Error, InvalidConfig, Unsupported, WrongState, doing, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Fallback for /sys/kernel/cgroup/delegate (config-linux.md, Cgroup ownership).
DELEGATED = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


class V2(Cgroup):
    """One directory; the first `kept` components of its path were there before the container and stay.

    Limits, freezing and counting are the directory's. The processes may be in one `below` it ("/NAME"), which then is
    what the container sees, and what is delegated to it.
    """

    __slots__ = ("below", "denied", "kept", "late", "mountpoint", "optional", "relative")

    def __init__(
        self, mountpoint: str, path: str, kept: int, *, optional: bool = False, late: bool = False, below: str = ""
    ) -> None:
        self.mountpoint = mountpoint
        self.relative = path
        self.below = below
        self.kept = kept
        #: rootless: a cgroup that can't be made is only an error if a limit needs it; `denied` says why
        self.optional = optional
        #: the process joins when it has been made: what its making takes isn't charged
        self.late = late
        self.denied = ""

    @property
    def directory(self) -> str:
        """The absolute path."""
        return self.mountpoint + self.relative

    def path(self, controller: str = "") -> str:
        del controller
        return "" if self.denied else self.directory

    def record(self) -> dict[str, Any]:
        if self.denied:
            return {"manager": "disabled"}
        record = {"manager": "v2", "mountpoint": self.mountpoint, "path": self.relative, "kept": self.kept}
        return {**record, "below": self.below} if self.below else record

    def mounts(self) -> list[tuple[str, str, str]]:
        return [] if self.denied else [("", self.mountpoint, self.relative + self.below)]

    # -- create

    def foresee(self) -> None:
        from ocirt.cgroups.making import existing

        self.kept = existing(self.mountpoint, self.relative + self.below)

    def prepare(self) -> int:
        from ocirt.cgroups.making import make

        try:
            self.kept = make(self.mountpoint, self.relative + self.below)
        except OSError as error:
            failure = from_oserror(error, f"mkdir {self.directory}")
            if self.optional and error.errno in (files.EACCES, files.EPERM, files.EROFS):
                self.denied = str(failure)
                return -1
            raise failure from error
        try:
            self._make_usable()
            flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
            return -1 if self.late else posix.open(self.directory + self.below, flags)
        except BaseException:
            self.remove()
            raise

    def _make_usable(self) -> None:
        from ocirt.cgroups import making

        making.make_usable(self.mountpoint, self.relative + self.below)
        events = files.fields(self.directory + "/cgroup.events")
        if events.get("populated"):
            found = self.pids()
            raise WrongState(
                f"cgroup {self.directory} is not empty: {len(found)} process(es) found "
                "(linux.cgroupsPath names a cgroup that is in use)"
            )
        if events.get("frozen") or self.frozen():
            raise WrongState(f"cgroup {self.directory} is frozen: a container in it could never start")

    def join(self, pid: int, *, memory: bool = True) -> None:
        del memory  # one hierarchy
        if self.denied:
            return
        self._enter(self.directory + self.below, pid)

    def _enter(self, directory: str, pid: int) -> None:
        # CLONE_INTO_CGROUP may have put it there; a write would wait until no process is in a fork or exit
        at = files.read_or(f"/proc/{pid}/cgroup").rpartition("0::")[2]
        if self.mountpoint + at != directory:
            _write_procs(directory, pid)

    def complete(self, pid: int) -> None:
        """systemd doesn't know hugetlb, rdma and misc."""
        from ocirt.cgroups import making

        if self.below:
            with doing("join the cgroup below the scope"):
                making.make(self.mountpoint, self.relative + self.below)
                self._enter(self.directory + self.below, pid)
        making.make_usable(self.mountpoint, self.relative + self.below)

    def apply(self, resources: Mapping[str, Any]) -> None:
        self._apply(resources, None)

    def update(self, resources: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        self._apply(resources, current)

    def _apply(self, resources: Mapping[str, Any], current: Mapping[str, Any] | None) -> None:
        from ocirt.cgroups import resources_v2

        if self.denied:
            wanted = [f"linux.resources.{key}" for key, value in resources.items() if value and key != "devices"]
            if wanted:
                raise Unsupported(f"{', '.join(wanted)}: no cgroup of its own: {self.denied} (not delegated)")
            return
        resources_v2.apply(self.directory, resources, current)

    def chown(self, uid: int, gid: int = -1) -> None:
        if self.denied:
            return
        names = files.read_or("/sys/kernel/cgroup/delegate").split() or DELEGATED
        with doing("change the owner of the cgroup"):
            directory = self.directory + self.below
            posix.chown(directory, uid, gid, follow_symlinks=False)
            for name in names:
                if "/" in name:
                    continue
                try:
                    posix.chown(f"{directory}/{name}", uid, gid, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # not every file of the list is in every cgroup

    # -- freeze

    def freeze(self) -> None:
        freeze(self.directory)

    def thaw(self) -> None:
        try:
            files.put(self.directory + "/cgroup.freeze", "0")
        except OSError as error:
            if error.errno not in (files.ENOENT, files.ENODEV):
                raise files.failed(self.directory + "/cgroup.freeze", "0", error) from error

    def frozen(self) -> bool:
        return files.read_or(self.directory + "/cgroup.freeze") == "1"

    # -- processes

    def pids(self, recursive: bool = True) -> list[int]:
        return files.processes(self.directory, recursive=recursive)

    def kill(self) -> None:
        try:
            files.put(self.directory + "/cgroup.kill", "1")
        except OSError as error:
            if error.errno in (files.EOPNOTSUPP, files.EINVAL) or posix.access(self.directory, posix.F_OK):
                self._signal_all(SIGKILL)  # before Linux 5.14, or a threaded cgroup

    def signal(self, number: int) -> None:
        if number == SIGKILL:
            self.kill()
        else:
            self._signal_all(number)

    def _hold(self, seconds: float) -> None:
        freeze(self.directory, seconds)

    def join_exec(self, pid: int, subs: list[str], init: int = 0) -> None:
        self._enter(self._exec_directory(subs, init), pid)

    def exec_descriptor(self, subs: list[str], init: int = 0) -> int:
        directory = self._exec_directory(subs, init)
        with doing("open the cgroup"):
            return posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def _exec_directory(self, subs: list[str], init: int) -> str:
        from ocirt.cgroups.making import split_sub, there

        if subs:
            if len(subs) > 1:
                raise InvalidConfig("--cgroup: cgroup v2 has one hierarchy: give it once")
            names, below = split_sub(subs[0])
            if names:
                raise InvalidConfig(f"--cgroup: {subs[0]!r}: cgroup v2 has no hierarchies to name: give the path alone")
            return there(self.directory + below, subs[0])
        if init and (self.below or files.read_or(self.directory + "/cgroup.subtree_control")):
            # no process may be beside cgroups that have controllers: go where the container's init went
            at = files.read_or(f"/proc/{init}/cgroup").rpartition("0::")[2]
            if at.startswith(self.relative + "/") and "/../" not in at:
                return self.mountpoint + at
        return self.directory

    # -- what it used

    def stats(self) -> dict[str, Any]:
        from ocirt.cgroups import stats_v2

        return stats_v2.stats(self.directory)

    def oom_kills(self) -> int:
        return files.fields(self.directory + "/memory.events").get("oom_kill", 0)

    def memory_peak(self) -> tuple[int, int]:
        return files.number(self.directory + "/memory.max", -1), files.number(self.directory + "/memory.peak")

    # -- delete

    def remove(self) -> None:
        if not self.denied:
            from ocirt.cgroups.removing import remove

            if self.below and self.kept >= self.relative.count("/"):
                remove(self.mountpoint, self.relative + self.below, self.kept)
            else:
                remove(self.mountpoint, self.relative, self.kept)


def _write_procs(directory: str, pid: int) -> None:
    path = directory + "/cgroup.procs"
    try:
        files.put(path, str(pid))
    except OSError as error:
        hint = ""
        if error.errno == files.EBUSY:
            enabled = files.read_or(directory + "/cgroup.subtree_control")
            hint = f"it gives controllers to cgroups below ({enabled}): processes can only be in those"
        elif error.errno == files.EOPNOTSUPP:
            hint = f"its cgroup.type is {files.read_or(directory + '/cgroup.type')!r}"
        elif error.errno == files.EACCES:
            hint = (
                "moving a process takes cgroup.procs of the nearest cgroup that both places are in:"
                " run this where the cgroups are delegated, `systemd-run --user --scope`, or use --systemd-cgroup"
            )
        raise files.failed(path, str(pid), error, hint) from error


def freeze(directory: str, deadline: float = 10.0) -> None:
    """Freeze the cgroup and wait for the event that says so; raises Error (and thaws) after `deadline` seconds."""
    import select
    import time

    until = time.monotonic() + deadline
    with doing("freeze the cgroup"):
        files.write(directory + "/cgroup.freeze", "1")
        fd = posix.open(directory + "/cgroup.events", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            while b"frozen 1" not in posix.pread(fd, 256, 0):
                left = until - time.monotonic()
                if left <= 0:
                    files.write(directory + "/cgroup.freeze", "0")
                    raise Error(f"{directory}/cgroup.events doesn't say frozen after {deadline:g} s")
                poll.poll(left * 1000)
        finally:
            posix.close(fd)

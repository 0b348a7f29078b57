"""The one interface of the cgroup managers; as it stands it is the manager `disabled`."""

from __future__ import annotations

import posix

from ocirt.errors import Error, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.cgroups.entrances import Entrances

SIGKILL = 9
#: Seconds that a signal to all waits until they stand still.
_STANDSTILL = 0.5


class Cgroup:
    """The cgroup of one container. This class is the container that has none (`--cgroup-manager=disabled`).

    create    prepare(), clone (into the descriptor it gave, if any), join(pid), apply(resources), in this order;
              with cgroupfs, apply may also come right after prepare
    delete    kill(), remove()
    others    load(record()) gives the same cgroup in another process

    Every method may raise Error; what isn't there any more is no error for pids, kill, thaw and remove.
    """

    __slots__ = ()

    #: May apply come before join? It must where it may: a v1 device list that is being written denies everything for
    #: a moment, and an init that is in it already can't make a node or open the console then.
    applies_first = True

    def foresee(self) -> None:
        """Look which directories exist, so that record() says already now what prepare will have made.

        A crash in the middle of prepare then leaves nothing that delete --force doesn't find.
        """

    def prepare(self) -> int:
        """Make the directories. Raises Error if there are processes in it or it is frozen.

        Gives a descriptor of the cgroup2 directory for CLONE_INTO_CGROUP, which the caller closes, or -1.
        """
        return -1

    def join(self, pid: int, *, memory: bool = True) -> None:
        """Put the process in, in every hierarchy in which it isn't yet.

        memory  False: leave out that of the memory controller where it is one of its own;
                charge() follows
        """

    def entrances(self, *, memory: bool = True) -> Entrances | None:
        """The way in that the process goes by itself, in place of join and charge; None where there is none.

        After prepare and apply, before the clone. memory as for join.
        """
        del memory
        return None

    def charge(self, pid: int) -> None:
        """Count the process's memory from here on: for what join left out."""

    def complete(self, pid: int) -> None:
        """Finish what systemd began: hierarchies and controllers that it doesn't manage."""

    def apply(self, resources: Mapping[str, Any]) -> None:
        """Write every limit of linux.resources, the device rules too (config-linux.md, Control groups)."""
        wanted = sorted(key for key, value in resources.items() if value and key != "devices")
        if wanted:
            from ocirt import log

            log.warning(f"cgroups are disabled: linux.resources is not applied ({', '.join(wanted)})")

    def update(self, resources: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        """Write the limits that `resources` has; `current` is what was applied before."""
        del resources, current
        raise Unsupported("cgroups are disabled: nothing to update")

    def record(self) -> dict[str, Any]:
        """What load needs, as JSON: for state.json."""
        return {"manager": "disabled"}

    def mounts(self) -> list[tuple[str, str, str]]:
        """(controllers, mountpoint, path in it) of each hierarchy; controllers is "" for cgroup2."""
        return []

    def path(self, controller: str = "") -> str:
        """The directory that has the controller's files; "" if there is none."""
        del controller
        return ""

    def chown(self, uid: int, gid: int = -1) -> None:
        """Delegate the cgroup2 directory to `uid` (config-linux.md, Cgroup ownership); nothing on v1."""

    def freeze(self) -> None:
        """Stop every process and come back when they stand still."""
        raise Unsupported("cgroups are disabled: the container can't be paused")

    def thaw(self) -> None:
        """Let the processes run again."""

    def frozen(self) -> bool:
        """Was the cgroup frozen? One file read."""
        return False

    def pids(self, recursive: bool = True) -> list[int]:
        """The processes in the cgroup, seen from the runtime's pid namespace."""
        del recursive
        return []

    def kill(self) -> None:
        """SIGKILL every process in the cgroup, at once: none can fork itself away."""

    def signal(self, number: int) -> None:
        """Send a signal to every process in the cgroup."""
        del number

    def _signal_all(self, number: int) -> None:
        """To each by its pid; frozen while the list is read and worked off, so that no fork escapes; then thawed."""
        was_frozen = self.frozen()
        try:
            if not was_frozen:
                try:
                    self._hold(_STANDSTILL)
                except Error:
                    pass  # a process in an uninterruptible wait: the signal is sent all the same
            for pid in self.pids():
                try:
                    posix.kill(pid, number)
                except ProcessLookupError:
                    continue
        finally:
            if not was_frozen or number == SIGKILL:
                self.thaw()

    def _hold(self, seconds: float) -> None:
        """Freeze within that time, if the cgroup can be."""

    def stats(self) -> dict[str, Any]:
        """Usage and limits, in the shape of runc's `events --stats`."""
        return {}

    def oom_kills(self) -> int:
        """How many processes the OOM killer took in this cgroup."""
        return 0

    def memory_peak(self) -> tuple[int, int]:
        """(limit, highest usage) of memory in bytes, -1 for a limit that isn't set."""
        return -1, 0

    def remove(self) -> None:
        """Remove what prepare made; waits for processes that are dying."""

    def join_exec(self, pid: int, subs: list[str], init: int = 0) -> None:
        """Put a process of exec in; `subs` is `[controller:]path` below the cgroup each (exec --cgroup).

        `init` is the container's first process: where the cgroup itself can't have processes
        (cgroup v2 with controllers enabled below), its cgroup is taken.
        """
        del pid, init
        if subs:
            raise Unsupported("cgroups are disabled: no cgroup to join")

    def exec_entrances(self, subs: list[str]) -> Entrances | None:
        """The way in that the process of an exec goes by itself, in place of join_exec; None where there is none."""
        del subs
        return None

    def exec_descriptor(self, subs: list[str], init: int = 0) -> int:
        """A descriptor for CLONE_INTO_CGROUP of an exec's process, or -1: then use join_exec."""
        del subs, init
        return -1


#: What the runtime's own part of a container's start is charged at most, in bytes (measured: 0.7 MiB), and a reserve.
START_UP = 1 << 20


def too_small(limit: int, peak: int) -> str:
    """The hint when the OOM killer took the container's init before the program started."""
    enough = max(START_UP, max(peak, limit) // 4096 * 4096 + START_UP // 2)
    return f"memory limit {limit} too small for start-up; {enough} would do"

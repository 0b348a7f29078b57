"""What a test leaves on the host: processes, mounts, cgroups and files.

Everything is attributed to the test, because others use the machine as well:
processes because the test process is a child subreaper (whatever is orphaned
below it becomes its child), mounts because it lives in a mount namespace of its
own, cgroups and files by the container's unique name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from tests.harness.box import alive

#: Where runtimes and engines put things that carry a container's name.
PLACES = ("/run", "/run/ocirt", "/run/runc", "/run/crun", "/run/netns", "/tmp", "/dev/shm", "/var/run", "/var/tmp")


def children(pid: int | None = None) -> set[int]:
    """Pids whose parent is `pid` (this process), zombies included."""
    parent = os.getpid() if pid is None else pid
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_bytes()
                if int(stat[stat.rindex(b")") + 2 :].split()[1]) == parent:
                    found.add(int(entry))
    return found


def reap(pids: set[int]) -> set[int]:
    """Reap what has ended; what lives is returned."""
    living = set()
    for pid in pids:
        try:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                living.add(pid)
        except ChildProcessError:
            if alive(pid):
                living.add(pid)
    return living


def describe(pid: int) -> str:
    """`pid (what it runs)`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"{pid} (gone)"
    return f"{pid} ({words or name})"


def mounts() -> dict[int, str]:
    """Mount id and mount point of every mount that this process sees."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        found[int(fields[0])] = fields[4].replace("\\040", " ")
    return found


def cgroup_mounts() -> list[str]:
    """Where cgroup hierarchies are mounted."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            points.append(before.split()[4])
    return list(dict.fromkeys(points))  # a later mount may cover an earlier one


def cgroups(name: str) -> list[str]:
    """Directories of any hierarchy whose name contains `name`."""
    found = []
    for point in cgroup_mounts():
        for top, directories, _ in os.walk(point):
            found += [os.path.join(top, d) for d in directories if name in d]
    return found


def files(name: str) -> list[str]:
    """Files that carry `name` in the places where runtimes put some."""
    found = []
    for place in PLACES:
        with contextlib.suppress(OSError):
            found += [os.path.join(place, entry) for entry in os.listdir(place) if name in entry]
    return found


class Before:
    """How the host looked before the test."""

    def __init__(self) -> None:
        self.children = children()
        self.mounts = mounts()

    def left(self, directory: Path, name: str, patience: float = 3) -> list[str]:
        """What the test left, as lines; it is taken away.

        directory  the test's own, not counted as a leftover
        name       what every id of the test begins with
        """
        end = time.monotonic() + patience
        while (living := reap(children() - self.children)) and time.monotonic() < end:
            time.sleep(0.02)
        left = [f"process {describe(pid)}" for pid in sorted(living)]
        kill(living)
        new = {key: point for key, point in mounts().items() if key not in self.mounts}
        left += [f"mount on {point}" for point in new.values()]
        for key in sorted(new, reverse=True):
            detach(new[key])
        groups = cgroups(name)
        left += [f"cgroup {path}" for path in groups]
        for path in sorted(groups, key=len, reverse=True):
            remove_cgroup(path)
        left += [f"file {path}" for path in files(name) if path != str(directory)]
        return left


def descendants(pid: int) -> set[int]:
    """A process and all that descend from it."""
    found = {pid}
    for child in children(pid):
        found |= descendants(child)
    return found


def kill(pids: set[int]) -> None:
    """Kill processes of ours and all that descend from them, and reap them."""
    doomed = {each for pid in pids for each in descendants(pid)}
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while reap(doomed) and time.monotonic() < end:
        time.sleep(0.01)


def detach(point: str) -> None:
    """Unmount lazily in this mount namespace."""
    import ctypes

    ctypes.CDLL(None).umount2(os.fsencode(point), 2)


def remove_cgroup(path: str) -> None:
    """Remove a cgroup of a test that failed, and what is below; its processes are ours and are killed."""
    for top, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            for pid in Path(top, "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        for _ in range(50):
            try:
                os.rmdir(top)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)


def remove_directory(directory: Path) -> None:
    """Remove a test's directory, but never through a mount that is still there."""
    prefix = f"{directory}/"
    for point in sorted((p for p in mounts().values() if p.startswith(prefix)), key=len, reverse=True):
        detach(point)
    if not any(point.startswith(prefix) for point in mounts().values()):
        shutil.rmtree(directory, ignore_errors=True)

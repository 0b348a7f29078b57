"""A machine of the tests' own for engines: namespaces in which podman, containerd and Docker are set up as on a host.

Mount, network, IPC and PID namespaces; /etc, /usr/local and /var/lib are overlays, /run is empty. So an engine finds
its ordinary paths, set-up files are tested where they belong, and the end of the space's init takes everything with it
but cgroups.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.harness import leftovers
from tests.harness.runtime import Result, wait

TIMEOUT = 60.0
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C",
    "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",  # ctr's, into the output of containers
}

#: Makes the space; $1 is its directory. crun 1.8.1 refuses a hybrid host whose cgroup v2 holds controllers, so each of
#: those gets a v1 hierarchy, mounted here only (one that nobody mounts goes back to v2 after a while: claim them all).
SET_UP = r"""
set -eu
mount --make-rprivate /
mount -t proc proc /proc
for place in /etc /usr/local /var/lib; do
    upper="$1/upper$place"
    mkdir -p "$upper" "$1/work$place"
    mount -t overlay -o "lowerdir=$place,upperdir=$upper,workdir=$1/work$place" overlay "$place"
done
for place in containers containerd docker cni; do
    mkdir -p "$1/$place" "/var/lib/$place"
    mount --bind "$1/$place" "/var/lib/$place"
done
mount -t tmpfs -o mode=755 run /run
mkdir /run/lock
if [ -d /sys/fs/cgroup/unified ]; then
    mkdir "$1/cgroup"
    mount --rbind /sys/fs/cgroup "$1/cgroup"
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for path in "$1"/cgroup/*; do
        mkdir "/sys/fs/cgroup/${path##*/}"
        mount --rbind "$path" "/sys/fs/cgroup/${path##*/}"
    done
    umount -l "$1/cgroup"
    for controller in cpu cpuset blkio memory pids hugetlb net_cls net_prio perf_event rdma misc dmem; do
        grep -q "^$controller[[:space:]]" /proc/cgroups || continue
        grep -q " cgroup cgroup [^ ]*\b$controller\b" /proc/self/mountinfo && continue
        mkdir "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" || true  # v2 uses it
    done
fi
mount --make-rshared /
ip link set lo up
"""

#: Init of the space: sets up, says so, and reaps for ever.
INIT = """
import os, subprocess, sys, time
subprocess.run(["sh", "-c", sys.argv[1], "set-up", sys.argv[2]], check=True)
os.write(1, b"ready\\n")
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.02)
"""


class Space:
    """Namespaces, a directory for their files, and commands in them.

    directory  on a real file system: overlays need one
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        flags = ("--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private")
        self.holder = subprocess.Popen(
            ["unshare", *flags, "--", sys.executable, "-ISc", INIT, SET_UP, str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.holder.stdout
        assert self.holder.stdout.readline() == b"ready\n", "the space could not be set up"
        tasks = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.init = int(tasks[0])
        self.root = Path(f"/proc/{self.init}/root")

    def argv(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        enter = ["nsenter", "--target", str(self.init), "--mount", "--net", "--ipc", "--pid", "--"]
        return [*enter, *map(os.fspath, argv)]

    def popen(self, *argv: str | os.PathLike[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a command; the space's end ends it."""
        defaults: dict[str, object] = {"stdin": subprocess.DEVNULL, "env": ENVIRONMENT, "start_new_session": True}
        return subprocess.Popen(self.argv(argv), **{**defaults, **options})  # type: ignore[call-overload]

    def __call__(
        self,
        *argv: str | os.PathLike[str],
        rc: int | None = 0,
        timeout: float = TIMEOUT,
        stdin: bytes | int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run a command to its end; its exit status must be `rc` unless that is None.

        Output goes to files: what lives on and holds them does not make the command look as if it hung.
        """
        __tracebackhide__ = True
        out, err = (self.directory / f"{name}-{os.urandom(4).hex()}" for name in ("out", "err"))
        given = self.directory / f"in-{os.urandom(4).hex()}"
        if isinstance(stdin, bytes):
            given.write_bytes(stdin)
        with out.open("wb") as stdout, err.open("wb") as stderr:
            source = given.open("rb") if isinstance(stdin, bytes) else None
            process = self.popen(
                *argv,
                stdin=source if source else stdin,
                stdout=stdout,
                stderr=stderr,
                env={**ENVIRONMENT, **(env or {})},
            )
            if source:
                source.close()
            status = wait(process, list(map(os.fspath, argv)), timeout)
        result = Result(
            list(map(os.fspath, argv)),
            status,
            out.read_text(errors="replace"),
            err.read_text(errors="replace"),
        )
        for path in (out, err, given):
            path.unlink(missing_ok=True)
        assert rc is None or status == rc, f"expected exit status {rc}:\n{result}"
        return result

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the space."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def processes(self, word: str) -> list[str]:
        """Command lines in the space that contain `word`, zombies left out."""
        listing = self("ps", "-eo", "stat,args").out.splitlines()[1:]
        return [line.strip() for line in listing if word in line and not line.startswith("Z") and "ps -eo" not in line]

    def mounts(self, word: str) -> list[str]:
        """Mount points of the space that contain `word`."""
        lines = Path(f"/proc/{self.init}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if word in line.split()[4]]

    def close(self) -> None:
        """End everything in the space and remove its files."""
        self.holder.kill()
        self.holder.wait()
        if self.holder.stdout:
            self.holder.stdout.close()
        end = time.monotonic() + 10
        while leftovers.alive(self.init) and time.monotonic() < end:
            time.sleep(0.02)
        shutil.rmtree(self.directory, ignore_errors=True)


class Machine(Space):
    """All of this machine, for one that is thrown away: the test VM, where systemd makes the cgroups."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.init = 1
        self.root = Path("/proc/1/root")

    def close(self) -> None:
        """Remove the tests' directory; the machine is switched off soon."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Census:
    """Everything in a space, to see what is new: whatever its name is, a container's or a hash."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.before = self._count()

    def _count(self) -> set[str]:
        found: set[str] = set()
        for line in self.space("ps", "-eo", "stat,args").out.splitlines()[1:]:
            state, _, args = line.partition(" ")
            if "ps -eo" not in args:
                found.add(f"{'zombie' if state.startswith('Z') else 'process'} {args.strip()}")
        lines = Path(f"/proc/{self.space.init}/mountinfo").read_text().splitlines()
        found |= {f"mount {line.split()[4]}" for line in lines}
        sockets = Path(f"/proc/{self.space.init}/net/unix").read_text().splitlines()[1:]
        found |= {f"socket {line.split()[7]}" for line in sockets if len(line.split()) > 7}
        for top, directories, files in os.walk(self.space.root / "run"):
            found |= {f"file {os.path.join(top, name)}" for name in (*directories, *files)}
        return found

    def new(self, patience: float = 10, ignore: str = "\0") -> list[str]:
        """What was not there before, once it has had time to go, but for files whose path contains `ignore`."""
        end = time.monotonic() + patience
        while True:
            left = {line for line in self._count() - self.before if not (line.startswith("file ") and ignore in line)}
            if not left or time.monotonic() > end:
                return sorted(left)
            time.sleep(0.2)


def left_behind(space: Space, id: str, patience: float = 5) -> list[str]:
    """What of a container whose full id is `id` is still there: processes, mounts, cgroups, files in /run."""
    end = time.monotonic() + patience
    while True:
        left = [f"process {line}" for line in space.processes(id)]
        left += [f"mount {point}" for point in space.mounts(id)]
        left += [f"cgroup {path}" for path in leftovers.cgroups(id)]
        for top, directories, files in os.walk(space.root / "run"):
            left += [f"file {os.path.join(top, name)}" for name in (*directories, *files) if id in name]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)

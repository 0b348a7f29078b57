"""What is measured of containerd's shims: ours against io.containerd.runc.v2 with runc and crun."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import bundles
import host
from cases import Bench, Ways
from measure import ENVIRONMENT, Failed, Sample, reap_rest, run
from report import Paired, Table

_GO = "/usr/bin/containerd-shim-runc-v2"
_GROUP = "io.kubernetes.cri.sandbox-id"
_STEPS = ("start", "connect", "Create", "Start", "Wait", "Delete", "Shutdown", "delete")
_TEN = 10
#: ocirt's shim where no spare one is kept: each begins with an interpreter's start and its imports.
_COLD = "ocirt, cold"
#: Seconds after which a shim is idle.
_IDLE = 2.0
_IMAGE = "localhost/box:1"
_CONFIG = """version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs"]
[grpc]
  address = "{0}/containerd.sock"
[ttrpc]
  address = "{0}/containerd.sock.ttrpc"
"""


class Shims:
    """The shims that are compared, and their containers.

    names  ocirt, as it is; ocirt without a spare shim ("cold"); runc.v2 with each peer
    """

    def __init__(self, bench: Bench) -> None:
        from shimcalls import Caller, Events, runc_options

        self.bench = bench
        self.directory = f"{bench.directory}/shims"
        os.makedirs(self.directory, exist_ok=True)
        if not os.path.exists(f"{self.directory}/events.sock"):
            Events(f"{self.directory}/events.sock")
        ours = os.path.join(os.path.dirname(bench.runtimes["ocirt"]), "containerd-shim-ocirt-v1")
        self.callers = {
            "ocirt": Caller(ours, f"{bench.prefix}-ocirt", self.directory, {}, spare=3600),
            _COLD: Caller(ours, f"{bench.prefix}-cold", self.directory, {}),
        }
        if os.access(_GO, os.X_OK):
            for name, path in bench.runtimes.items():
                if name != "ocirt":
                    namespace = f"{bench.prefix}-{name}"
                    self.callers[f"runc.v2+{name}"] = Caller(_GO, namespace, self.directory, runc_options(path))
        else:
            print(f"bench: there is no {_GO}: not measured", file=sys.stderr)
        self._number = 0
        self.cpu = Cpu(bench.prefix)

    def pairs(self, way: str = "ocirt") -> list[tuple[str, str]]:
        """Ours compared with each of the others."""
        return [(way, name) for name in self.callers if not name.startswith("ocirt")]

    def bundle(self, kind: str, way: str, *args: str, group: str = "") -> tuple[str, str]:
        """(id, bundle) of a new container."""
        self._number += 1
        id = self.bench.id(f"s{self._number}")
        make = bundles.plain if kind == "plain" else lambda *a: bundles.full(*a[:2], self.bench.profile, *a[2:])
        config = make(self.bench.rootfs, f"{self.cpu.group}/{id}", *args)
        if group:
            config["annotations"] = {_GROUP: group}
        path = f"{self.directory}/{way}/{id}"
        bundles.write(path, config)
        os.mkfifo(f"{path}/log", 0o700)
        return id, path

    def life(self, kind: str, way: str, group: str = "") -> Sample:
        """A container's whole life, its steps timed."""
        id, bundle = self.bundle(kind, way, "/bin/true", group=group)
        try:
            return self._life(way, id, bundle, alone=not group)
        except BaseException:
            self.callers[way].delete(id, bundle, self.bench.log)
            raise
        finally:
            shutil.rmtree(bundle)

    def _life(self, way: str, id: str, bundle: str, *, alone: bool) -> Sample:
        from shimcalls import Shim

        caller, log = self.callers[way], self.bench.log
        reader = os.open(f"{bundle}/log", os.O_RDWR | os.O_NONBLOCK)  # as containerd keeps it
        before = self.cpu.used()
        clock = Clock()
        address, _ = caller.start(id, bundle, log)
        clock("start")
        shim = Shim(address)
        shim("Connect", id=id)
        clock("connect")
        shim("Create", id=id, bundle=bundle, options=caller.options)
        clock("Create")
        shim("Start", id=id)
        clock("Start")
        shim("Wait", id=id)
        clock("Wait")
        shim("Delete", id=id)
        clock("Delete")
        shim.shutdown(id)
        clock("Shutdown")
        caller.delete(id, bundle, log)
        clock("delete")
        shim.close()
        os.close(reader)
        sample = {f"{step} wall": clock.steps[step] for step in _STEPS}
        sample["wall"] = sum(clock.steps.values())
        if alone:
            settle()
        sample["cpu"] = self.cpu.used() - before
        return sample

    def hold(self, way: str, group: str = "") -> Held:
        """A sleeping container, to be let go."""
        from shimcalls import Shim

        caller = self.callers[way]
        id, bundle = self.bundle("full", way, "/bin/sleep", "100000", group=group)
        reader = os.open(f"{bundle}/log", os.O_RDWR | os.O_NONBLOCK)
        address, _ = caller.start(id, bundle, self.bench.log)
        shim = Shim(address)
        pid = shim("Connect", id=id)["shim_pid"]
        shim("Create", id=id, bundle=bundle, options=caller.options)
        shim("Start", id=id)

        def let_go() -> None:
            shim("Kill", id=id, signal=9)
            shim("Wait", id=id)
            shim("Delete", id=id)
            shim.shutdown(id)
            caller.delete(id, bundle, self.bench.log)
            shim.close()
            os.close(reader)
            shutil.rmtree(bundle)

        return Held(pid, let_go)


class Held:
    """A container that lives: `pid` of its shim."""

    def __init__(self, pid: int, let_go: Callable[[], None]) -> None:
        self.pid = pid
        self.let_go = let_go


class Clock:
    """Stop-watch with names."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.steps[step] = now - self._last
        self._last = now


class Cpu:
    """CPU time of all that we start, by a cgroup of ours in which the containers' are (v1 only).

    wait4(2) can't tell: a shim may be another one's fork.
    """

    def __init__(self, prefix: str) -> None:
        self.group = f"/{prefix}-shims"
        self._directory = f"/sys/fs/cgroup/cpuacct{self.group}"
        self._before = ""
        if not os.path.isdir(os.path.dirname(self._directory)):
            return
        os.makedirs(self._directory, exist_ok=True)
        with open("/proc/self/cgroup", encoding="ascii") as file:
            self._before = next(line.strip().split(":", 2)[2] for line in file if "cpuacct" in line.split(":")[1])
        self._enter(self._directory)

    @staticmethod
    def _enter(directory: str) -> None:
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")

    def close(self) -> None:
        """Go back to where we were."""
        if self._before:
            self._enter(f"/sys/fs/cgroup/cpuacct{self._before}")

    def used(self) -> float:
        """Seconds so far; 0 where that can't be had."""
        try:
            with open(f"{self._directory}/cpuacct.usage", encoding="ascii") as file:
                return int(file.read()) / 1e9
        except FileNotFoundError:
            return 0.0


def settle() -> None:
    """Wait for the shims that were told to end, which are our children once `start` has ended.

    The spare shim stays, and those that it has forked are its children.
    """
    end = time.monotonic() + 10
    while True:
        reap_rest()
        spares = _spares()
        if _children(os.getpid()) <= spares and not any(_children(spare) for spare in spares):
            return
        if time.monotonic() > end:
            raise Failed("a shim doesn't end")
        time.sleep(0.001)


def _children(pid: int) -> set[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return {int(word) for word in file.read().split()}
    except FileNotFoundError:
        return set()


def _spares(*parents: int) -> set[int]:
    """The spare shims among the children of processes; by default among ours."""
    children = set[int]().union(*map(_children, parents or (os.getpid(),)))
    return {pid for pid in children if _name(pid) == "ocirt-spare"}


def _workers(daemons: set[int]) -> set[int]:
    """What shims have forked for themselves: each a nursery, and a worker that is ready."""
    children = set[int]().union(*map(_children, daemons))
    nurseries = {pid for pid in children if _name(pid) == "ocirt-nursery"}
    return nurseries.union(*map(_children, nurseries))


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def end_spares() -> None:
    """End the spare shims: they would wait for more."""
    for pid in _spares():
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    settle()


def _cycle(bench: Bench, kind: str) -> list[Paired]:
    shims = Shims(bench)
    ways: Ways = {name: (lambda name=name: shims.life(kind, name)) for name in shims.callers}  # type: ignore[misc]
    try:
        samples = bench.paired(ways)
    finally:
        end_spares()
        shims.cpu.close()
    quantities = ["wall", "cpu", *(f"{step} wall" for step in _STEPS)]
    title = f"a container's life in its shim ({', '.join(_STEPS)}), {kind}; CPU of all processes"
    return [
        Paired(name, title, samples, shims.pairs(way), quantities)
        for name, way in ((f"shim-{kind}", "ocirt"), (f"shim-{kind}-cold", _COLD))
    ]


def shim_plain(bench: Bench) -> list[Paired]:
    """a container's life in containerd's shim, without containerd; configuration plain"""
    return _cycle(bench, "plain")


def shim_full(bench: Bench) -> list[Paired]:
    """a container's life in containerd's shim, without containerd; configuration full"""
    return _cycle(bench, "full")


def shim_grouped(bench: Bench) -> list[Paired]:
    """a container's life in the shim of a pod that lives, against shims of their own; full"""
    shims = Shims(bench)
    ways: Ways = {
        name: (lambda name=name: shims.life("full", name, f"{bench.prefix}-alone"))  # type: ignore[misc]
        for name in shims.callers
        if not name.startswith("ocirt")
    }
    held = []
    for name in shims.callers:
        if name == _COLD:
            continue
        group = f"{bench.prefix}-pod-{name}"
        held.append(shims.hold(name, group))
        ways[f"{name}, grouped"] = lambda name=name, group=group: shims.life("full", name, group)  # type: ignore[misc]
    try:
        samples = bench.paired(ways)
    finally:
        for one in held:
            one.let_go()
        settle()
        end_spares()
        shims.cpu.close()
    others = [way for way in ways if way != "ocirt, grouped"]
    pairs = [("ocirt, grouped", other) for other in others]
    title = "a container's life in the shim of a pod that lives, full"
    return [Paired("shim-grouped", title, samples, pairs, ["wall", "cpu", *(f"{step} wall" for step in _STEPS)])]


def shim_memory(bench: Bench) -> list[Table]:
    """private memory of idle shims with one container and with ten"""
    shims = Shims(bench)
    rows = []
    for name in shims.callers:
        for what, count, grouped in (("1", 1, False), ("10 in a group", _TEN, True), ("10, each alone", _TEN, False)):
            held = [shims.hold(name, f"{bench.prefix}-memory" if grouped else "") for _ in range(count)]
            time.sleep(_IDLE)
            daemons = {one.pid for one in held}
            spares = _spares(os.getpid(), *daemons)
            pids = daemons | _workers(daemons)
            for also, counted in (("", pids), (" and the spare one", pids | spares))[: 2 if spares else 1]:
                found = [_memory(pid) for pid in counted]
                total = [sum(numbers[key] for numbers in found) for key in ("Rss", "Pss", "private", "Private_Dirty")]
                rows.append([name, what + also, str(len(counted)), *map(str, total)])
            for one in held:
                one.let_go()
            settle()
            end_spares()
    shims.cpu.close()
    head = ["shim", "containers", "processes", "resident", "proportional", "private", "of it written"]
    return [Table("shim-memory", f"idle shims after {_IDLE:.0f} s (full), KiB in all", head, rows)]


def _memory(pid: int) -> dict[str, int]:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        found = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    return {**found, "private": found["Private_Clean"] + found["Private_Dirty"]}


class Containerd:
    """A daemon of our own with an image, and ctr.

    OCIRT_TEST_CONTAINERD names a directory with another containerd than the installed one (hack/containerd).
    """

    def __init__(self, bench: Bench, name: str) -> None:
        sys.path.append(host.TOP)
        from pathlib import Path

        from tests.engines import images

        self.bench = bench
        self.directory = f"{bench.directory}/{name}"
        os.makedirs(self.directory)
        config = f"{self.directory}/config.toml"
        with open(config, "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(self.directory))
        own = os.path.dirname(bench.runtimes["ocirt"])
        other = os.environ.get("OCIRT_TEST_CONTAINERD", "")
        path = ":".join(filter(None, (own, other, ENVIRONMENT["PATH"])))
        self.env = {"PATH": path, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"}
        self.programs = {name: shutil.which(name, path=path) for name in ("containerd", "ctr")}
        if not all(self.programs.values()):
            raise Failed("install containerd")
        with open(f"{self.directory}/log", "wb") as log:
            argv = [str(self.programs["containerd"]), "--config", config]
            self.process = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)
        self.version = ""
        end = time.monotonic() + 30
        while not self.version:
            done = self.ctr("version", check=False)
            if done.returncode == 0:
                self.version = [line.split()[-1] for line in done.stdout.decode().splitlines() if "Version" in line][-1]
            elif time.monotonic() > end:
                raise Failed("containerd doesn't start")
            time.sleep(0.1)
        archive = images.make(Path(self.directory))[1]
        self.ctr("images", "import", str(archive))

    def argv(self, *arguments: str) -> list[str]:
        """A command line of ctr."""
        address = f"{self.directory}/containerd.sock"
        return [str(self.programs["ctr"]), "--address", address, "--namespace", self.bench.prefix, *arguments]

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """ctr, not measured."""
        return subprocess.run(self.argv(*arguments), env=self.env, capture_output=True, check=check, timeout=60)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


def _ctr_run(bench: Bench, name: str, *flags: str) -> list[Paired]:
    containerd = Containerd(bench, name)
    number = 0

    def once(runtime: tuple[str, ...]) -> Sample:
        nonlocal number
        number += 1
        id = bench.id(f"c{number}")
        words = ("run", "--rm", "--cgroup", f"/{id}", *runtime, *flags, _IMAGE, id, "true")
        sample = run(containerd.argv(*words), log=bench.log, env=containerd.env)[1]
        return {"wall": sample["wall"]}

    runtimes: dict[str, tuple[str, ...]] = {"ocirt": ("--runtime", "io.containerd.ocirt.v1")}
    for peer, path in bench.runtimes.items():
        runtimes["runc.v2+" + peer] = ("--runc-binary", path)
    ways: Ways = {}
    try:
        for way, runtime in runtimes.items():
            try:
                once(runtime)
            except Failed as error:
                print(f"bench: {way} isn't measured: {error}", file=sys.stderr)
                continue
            ways[way] = lambda runtime=runtime: once(runtime)  # type: ignore[misc]
        samples = bench.paired(ways)
    finally:
        containerd.close()
        settle_all()
    pairs = [("ocirt", way) for way in ways if way != "ocirt"]
    title = f"`ctr run --rm {' '.join(flags)}` of containerd {containerd.version}".replace(" `", "`")
    return [Paired(name, title, samples, pairs, ["wall"])]


def settle_all() -> None:
    """Reap what has been left to us."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        reap_rest()
        time.sleep(0.05)
    end_spares()


def ctr_run(bench: Bench) -> list[Paired]:
    """ctr run --rm with our shim and with runc's"""
    return _ctr_run(bench, "ctr-run")


def ctr_seccomp(bench: Bench) -> list[Paired]:
    """ctr run --rm --seccomp with our shim and with runc's"""
    return _ctr_run(bench, "ctr-seccomp", "--seccomp")


CASES: dict[str, Callable[[Bench], Any]] = {
    "shim-plain": shim_plain,
    "shim-full": shim_full,
    "shim-grouped": shim_grouped,
    "shim-memory": shim_memory,
    "ctr-run": ctr_run,
    "ctr-seccomp": ctr_seccomp,
}

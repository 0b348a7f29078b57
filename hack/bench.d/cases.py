"""What is measured: one function a case, each gives results (report.py)."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bundles
import host
from measure import Failed, Sample, Watchdog, reap, reap_rest, run
from report import Paired, Table

MIB = 1 << 20
#: KiB
_MEMORY_LADDER = (256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096)
_PIDS_LADDER = (1, 2, 3, 4, 8)
_TRIES = 5
_MANY, _AT_A_TIME, _MANY_ROUNDS = 200, 8, 5
_ALIVE = 500

#: {way: does it once}
Ways = dict[str, Callable[[], Sample]]


class Bench:
    """The runtimes, their state directories, bundles and containers."""

    def __init__(self, directory: str, runtimes: dict[str, str], rounds: int, profile: host.Profile) -> None:
        self.directory = directory
        self.runtimes = runtimes
        self.rounds = rounds
        self.profile = profile
        self.prefix = f"ocirtbench{os.getpid()}"
        self.above = f"{self.prefix}/" if host.take_share(self.prefix) else ""
        self.rootfs = f"{directory}/rootfs"
        self.python = host.interpreter(runtimes["ocirt"])
        self.log = f"{directory}/stderr"
        self.alive: set[tuple[str, str]] = set()
        self._doing = ""
        bundles.make_rootfs(self.rootfs)

    def id(self, name: str) -> str:
        """A container's id."""
        return f"{self.prefix}-{name}"

    def cgroup(self, name: str) -> str:
        """The path of its cgroup."""
        return f"{self.above}{self.id(name)}"

    def bundle(self, kind: str, runtime: str, *args: str, name: str = "") -> str:
        """A bundle of the kind plain or full, for one container of one runtime."""
        cgroup = self.cgroup(name or runtime)
        config = (
            bundles.plain(self.rootfs, cgroup, *args)
            if kind == "plain"
            else bundles.full(self.rootfs, cgroup, self.profile, *args)
        )
        return self.write(f"{kind}-{name or runtime}-{args[0].strip('/').replace('/', '_')}", config)

    def write(self, name: str, config: dict[str, Any]) -> str:
        """A bundle with this config."""
        path = f"{self.directory}/bundles/{name}"
        bundles.write(path, config)
        return path

    def argv(self, runtime: str, *arguments: str) -> list[str]:
        """A command line."""
        return [self.runtimes[runtime], "--root", f"{self.directory}/state-{runtime}", *arguments]

    def do(self, runtime: str, *arguments: str, check: bool = True) -> Sample:
        """A command and its cost."""
        self._doing = f"{runtime} {' '.join(arguments)}"
        return run(self.argv(runtime, *arguments), log=self.log, check=check)[1]

    def create(self, runtime: str, bundle: str, name: str = "") -> Sample:
        """Create a container, which `close` removes if nothing else has."""
        id = self.id(name or runtime)
        self.alive.add((runtime, id))
        return self.do(runtime, "create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", id)

    def delete(self, runtime: str, name: str = "", *flags: str) -> Sample:
        """Delete it."""
        id = self.id(name or runtime)
        sample = self.do(runtime, "delete", *flags, id)
        self.alive.discard((runtime, id))
        return sample

    def bare(self) -> Sample:
        """The interpreter alone."""
        return run([self.python, "-I", "-S", "-c", "pass"], log=self.log)[1]

    def paired(self, ways: Ways, rounds: int = 0) -> dict[str, list[Sample]]:
        """Each way once a round, in random order, after a round that doesn't count."""
        samples: dict[str, list[Sample]] = {way: [] for way in ways}
        watchdog = Watchdog(lambda: self._doing)
        for number in range((rounds or self.rounds) + 1):
            for way in random.sample(list(ways), len(ways)):
                watchdog.feed()
                sample = ways[way]()
                if number:
                    samples[way].append(sample)
        watchdog.close()
        return samples

    def against_peers(self, way: str = "ocirt") -> list[tuple[str, str]]:
        """ocirt compared with each of the others."""
        return [(way, name) for name in self.runtimes if name != "ocirt"]

    def close(self) -> None:
        """Delete what is left."""
        for runtime, id in sorted(self.alive):
            run(self.argv(runtime, "delete", "--force", id), log=self.log, check=False)
        reap_rest()


def pid_of(bundle: str) -> int:
    """The pid that `create` has written."""
    with open(f"{bundle}/pid", encoding="ascii") as file:
        return int(file.read())


def _run(bench: Bench, kind: str) -> list[Paired]:
    def once(runtime: str, bundle: str) -> Sample:
        sample = bench.do(runtime, "run", "--bundle", bundle, bench.id(runtime))
        sample["cpu"] += reap_rest()
        return sample

    made = {name: bench.bundle(kind, name, "/bin/true") for name in bench.runtimes}
    ways: Ways = {name: (lambda name=name, path=path: once(name, path)) for name, path in made.items()}  # type: ignore[misc]
    samples = bench.paired(ways)
    return [Paired(f"run-{kind}", f"`run`, {kind}", samples, bench.against_peers(), ["cpu", "wall"])]


def run_plain(bench: Bench) -> list[Paired]:
    """run of true, configuration plain"""
    return _run(bench, "plain")


def run_full(bench: Bench) -> list[Paired]:
    """run of true, configuration full"""
    return _run(bench, "full")


def _cycle(bench: Bench, kind: str) -> list[Paired]:
    def once(runtime: str, bundle: str) -> Sample:
        parts = {"create": bench.create(runtime, bundle), "start": bench.do(runtime, "start", bench.id(runtime))}
        inside = reap(pid_of(bundle))
        parts["delete"] = bench.delete(runtime)
        inside += reap_rest()
        sample = {f"{verb} {what}": part[what] for verb, part in parts.items() for what in ("cpu", "wall")}
        sample["init cpu"] = inside
        sample["cpu"] = sum(part["cpu"] for part in parts.values()) + inside
        sample["wall"] = sum(part["wall"] for part in parts.values())
        return sample

    made = {name: bench.bundle(kind, name, "/bin/true") for name in bench.runtimes}
    ways: Ways = {name: (lambda name=name, path=path: once(name, path)) for name, path in made.items()}  # type: ignore[misc]
    quantities = [
        "cpu",
        "wall",
        *(f"{verb} {what}" for verb in ("create", "start", "delete") for what in ("cpu", "wall")),
    ]
    title = f"create + start + delete, {kind}"
    return [Paired(f"cycle-{kind}", title, bench.paired(ways), bench.against_peers(), [*quantities, "init cpu"])]


def cycle_plain(bench: Bench) -> list[Paired]:
    """create, start and delete, configuration plain"""
    return _cycle(bench, "plain")


def cycle_full(bench: Bench) -> list[Paired]:
    """create, start and delete, configuration full"""
    return _cycle(bench, "full")


def execute(bench: Bench) -> list[Paired]:
    """exec of true, configuration full"""
    for name in bench.runtimes:
        bench.create(name, bench.bundle("full", name, "/bin/sleep", "100000"))
        bench.do(name, "start", bench.id(name))

    def once(runtime: str) -> Sample:
        sample = bench.do(runtime, "exec", bench.id(runtime), "/bin/true")
        sample["cpu"] += reap_rest()
        return sample

    ways: Ways = {name: (lambda name=name: once(name)) for name in bench.runtimes}  # type: ignore[misc]
    samples = bench.paired(ways)
    for name in bench.runtimes:
        bench.delete(name, "", "--force")
    return [Paired("exec", "`exec`, full", samples, bench.against_peers(), ["cpu", "wall"])]


def verbs(bench: Bench) -> list[Paired]:
    """state, start, kill and delete against the bare interpreter"""

    def life(runtime: str, bundle: str) -> Sample:
        id = bench.id(runtime)
        parts = {"create": bench.create(runtime, bundle)}
        parts["state"] = bench.do(runtime, "state", id)
        parts["start"] = bench.do(runtime, "start", id)
        parts["kill"] = bench.do(runtime, "kill", id, "KILL")
        reap(pid_of(bundle))
        parts["delete"] = bench.delete(runtime)
        reap_rest()
        return {f"{verb} {what}": part[what] for verb, part in parts.items() for what in ("cpu", "wall")}

    made = {name: bench.bundle("full", name, "/bin/sleep", "100000") for name in bench.runtimes}
    ways: Ways = {name: (lambda name=name, path=path: life(name, path)) for name, path in made.items()}  # type: ignore[misc]
    samples = bench.paired({"bare": bench.bare, **ways})
    quantities = [f"{verb} cpu" for verb in ("state", "start", "kill", "delete")]
    pairs = [("ocirt", "bare"), *bench.against_peers()]
    return [Paired("verbs", "single commands, full; bare is `python3 -I -S -c pass`", samples, pairs, quantities)]


def seccomp(bench: Bench) -> list[Paired]:
    """create with Docker's seccomp profile, the first time and cached"""
    cache = f"{bench.directory}/state-ocirt/.cache"

    def once(runtime: str, bundle: str, fresh: bool) -> Sample:
        if fresh:
            shutil.rmtree(cache, ignore_errors=True)
        sample = bench.create(runtime, bundle)
        bench.delete(runtime, "", "--force")
        sample["cpu"] += reap_rest()
        return sample

    ways: Ways = {}
    pairs = []
    for name in bench.runtimes:
        config = bundles.full(bench.rootfs, bench.cgroup(name), bench.profile, "/bin/true")
        profiled = bench.write(f"profiled-{name}", config)
        del config["linux"]["seccomp"]
        without = bench.write(f"unprofiled-{name}", config)
        kinds = [(f"{name}, no profile", without, False), (f"{name}, cached", profiled, False)]
        if name == "ocirt":
            kinds.append((f"{name}, first", profiled, True))
        else:
            kinds[1] = (f"{name}, profile", profiled, False)
        for way, path, fresh in kinds:
            ways[way] = lambda name=name, path=path, fresh=fresh: once(name, path, fresh)  # type: ignore[misc]
        pairs += [(way, kinds[0][0]) for way, _, _ in kinds[1:]]
    samples = bench.paired(ways)
    return [
        Paired("seccomp", "`create` with Docker's seccomp profile and without one", samples, pairs, ["cpu", "wall"])
    ]


def limits(bench: Bench) -> list[Table]:
    """smallest memory and pids limits that start true"""
    rows = []
    for name in bench.runtimes:
        row = [name]
        for resource, ladder, unit in (("memory", _MEMORY_LADDER, 1024), ("pids", _PIDS_LADDER, 1)):
            some, all_ = _ladder(bench, name, resource, ladder, unit)
            row += [some, all_]
        rows.append(row)
    head = [
        "runtime",
        "memory, KiB: first success",
        f"{_TRIES} of {_TRIES}",
        "pids: first success",
        f"{_TRIES} of {_TRIES}",
    ]
    return [Table("limits", "smallest limits with which `run` of busybox's true succeeds (plain)", head, rows)]


def _ladder(bench: Bench, runtime: str, resource: str, ladder: Iterable[int], unit: int) -> tuple[str, str]:
    some = ""
    for step in ladder:
        config = bundles.plain(bench.rootfs, bench.cgroup(runtime), "/bin/true")
        config["linux"]["resources"][resource] = {"limit": step * unit}
        bundle = bench.write(f"ladder-{runtime}", config)
        good = 0
        for _ in range(_TRIES):
            argv = bench.argv(runtime, "run", "--bundle", bundle, bench.id(runtime))
            code, _ = run(argv, log=bench.log, check=False)
            good += code == 0
            if code:
                run(bench.argv(runtime, "delete", "--force", bench.id(runtime)), log=bench.log, check=False)
                reap_rest()
        if good and not some:
            some = str(step)
        if good == _TRIES:
            return some, str(step)
    return some or "none", "none"


def memory(bench: Bench) -> list[Table]:
    """memory of a created container that waits for start"""
    rows = []
    for name in bench.runtimes:
        bundle = bench.bundle("full", name, "/bin/true")
        bench.create(name, bundle)
        pid = pid_of(bundle)
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            found = {line.split(":")[0]: line.split()[1] for line in file if line.endswith("kB\n")}
        private = int(found["Private_Clean"]) + int(found["Private_Dirty"])
        with open(f"{_memory_cgroup(pid)}", encoding="ascii") as file:
            charged = int(file.read()) // 1024
        rows.append([name, found["Rss"], found["Pss"], str(private), str(charged)])
        bench.delete(name, "", "--force")
        reap_rest()
    head = ["runtime", "resident", "proportional", "private", "charged to its cgroup"]
    return [Table("memory", "init of a created container (full), KiB", head, rows)]


def _memory_cgroup(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        groups = {fields[1]: fields[2] for fields in (line.strip().split(":", 2) for line in file)}
    if "memory" in groups:
        return f"/sys/fs/cgroup/memory{groups['memory']}/memory.usage_in_bytes"
    return f"/sys/fs/cgroup{groups['']}/memory.current"


def many(bench: Bench) -> list[Paired]:
    """200 containers, 8 at a time"""

    def once(runtime: str) -> Sample:
        def one(number: int) -> Sample:
            path = made[runtime, number]
            argv = bench.argv(runtime, "run", "--bundle", path, bench.id(f"{runtime}-{number}"))
            return run(argv, log=f"{path}/stderr")[1]

        import time

        start = time.perf_counter()
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            samples = list(pool.map(one, range(_MANY)))
        wall = time.perf_counter() - start
        return {"wall": wall, "cpu": sum(sample["cpu"] for sample in samples) + reap_rest()}

    made = {
        (runtime, number): bench.bundle("full", runtime, "/bin/true", name=f"{runtime}-{number}")
        for runtime in bench.runtimes
        for number in range(_MANY)
    }
    ways: Ways = {name: (lambda name=name: once(name)) for name in bench.runtimes}  # type: ignore[misc]
    samples = bench.paired(ways, min(bench.rounds, _MANY_ROUNDS))
    title = f"{_MANY} containers by `run`, {_AT_A_TIME} at a time, full"
    return [Paired("many", title, samples, bench.against_peers(), ["wall", "cpu"])]


def alive(bench: Bench) -> list[Paired]:
    """create, state and list with 500 containers alive and with none"""
    bundle = bench.bundle("full", "ocirt", "/bin/sleep", "100000")

    def once() -> Sample:
        parts = {"create": bench.create("ocirt", bundle), "state": bench.do("ocirt", "state", bench.id("ocirt"))}
        parts["list"] = bench.do("ocirt", "list", "--quiet")
        parts["delete"] = bench.delete("ocirt", "", "--force")
        reap_rest()
        unit = bench.bare()  # two stretches of time are compared: by what the interpreter costs in each
        return {f"{verb} {what}": part[what] / unit[what] for verb, part in parts.items() for what in ("cpu", "wall")}

    rounds = max(bench.rounds // 2, 1)
    none = bench.paired({"none": once}, rounds)["none"]
    for number in range(_ALIVE):
        path = bench.bundle("full", "ocirt", "/bin/sleep", "100000", name=f"alive-{number}")
        bench.create("ocirt", path, f"alive-{number}")
        bench.do("ocirt", "start", bench.id(f"alive-{number}"))
    full = bench.paired({"alive": once}, 2 * rounds)["alive"]
    for number in range(_ALIVE):
        bench.delete("ocirt", f"alive-{number}", "--force")
    reap_rest()
    none += bench.paired({"none": once}, rounds)["none"]
    quantities = [f"{verb} {what}" for verb in ("create", "state", "list", "delete") for what in ("cpu", "wall")]
    title = f"with {_ALIVE} containers alive, as multiples of the bare interpreter at the time; none: before and after"
    return [Paired("alive", title, {"alive": full, "none": none}, [("alive", "none")], quantities, unit="× bare")]


CASES = {
    "run-plain": run_plain,
    "run-full": run_full,
    "cycle-plain": cycle_plain,
    "cycle-full": cycle_full,
    "exec": execute,
    "verbs": verbs,
    "seccomp": seccomp,
    "limits": limits,
    "memory": memory,
    "many": many,
    "alive": alive,
}

#: What is measured without --only: what takes a few minutes.
DEFAULT = ["run-plain", "run-full", "cycle-plain", "cycle-full", "exec", "verbs", "seccomp", "limits", "memory"]

__all__ = ["CASES", "DEFAULT", "Bench", "Failed"]

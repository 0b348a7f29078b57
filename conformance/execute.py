"""Run tests of the suite against one runtime, each in mount and pid namespaces of its own.

Own mount namespace: several tests start containers without one, or with shared propagation, and leave mounts behind.
Own pid namespace: nothing outlives its test, and orphans are reaped at once. Own state root: the runtime is called
through a two-line script that adds `--root`, so tests don't see each other's containers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tap
from suite import Suite, cache

HERE = Path(__file__).resolve().parent

# They all use the same fixed cgroups (/cgrouptest and testdir/cgrouptest), so they run one after another.
SERIAL = ("linux_cgroups_", "delete_resources", "delete_only_create_resources")
FIXED_CGROUPS = ("cgrouptest", "testdir/cgrouptest/container", "testdir/cgrouptest", "testdir")

APPARMOR_PROFILE = "acme_secure_profile"
APPARMOR_RULES = "file, capability, network, mount, umount, pivot_root, signal, ptrace, unix, dbus,"


@dataclass
class Outcome:
    verdict: str
    why: str
    seconds: float
    stdout: str = field(repr=False, default="")
    stderr: str = field(repr=False, default="")
    calls: str = field(repr=False, default="")
    """Arguments of every call of the runtime, a line each."""


def version_of(runtime: str) -> str:
    """First line of `RUNTIME --version`."""
    done = subprocess.run([*shlex.split(runtime), "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [f"unknown: {done.stderr.strip()[:200]}"])[0]


def in_private_mounts() -> None:
    """Execute this program again in a mount namespace of its own, unless it already is."""
    if os.environ.pop("OCIRT_CONFORMANCE_PRIVATE", "") == str(os.getpid()):
        return
    os.environ["OCIRT_CONFORMANCE_PRIVATE"] = str(os.getpid())  # unshare doesn't fork, so the pid stays
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])


def add_v1_controllers() -> list[str]:
    """On a hybrid host, mount as v1 hierarchies the controllers that nobody has claimed, in this mount namespace.

    The tests of hugetlb and network want them there, and crun refuses a hybrid host whose unified tree has
    controllers. They lie on a tmpfs of our own, so /sys/fs/cgroup of the host is untouched; but a hierarchy is one
    for the whole kernel: until the last one leaves, processes elsewhere see its line in /proc/self/cgroup.

    -> names of the mounted controllers
    """
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [m[4] for m in mounts if m[4].startswith("/sys/fs/cgroup/") and m[m.index("-") + 1].startswith("cgroup")]
    if not any(m[m.index("-") + 1] == "cgroup" for m in mounts):
        return []  # pure v2
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines() if not line.startswith("#")]
    built_in = {name for name, _, _, enabled in rows if enabled == "1"}
    mounted = {option for m in mounts if m[m.index("-") + 1] == "cgroup" for option in m[-1].split(",")}
    wanted = [name for name in ("hugetlb", "net_cls", "net_prio", "perf_event") if name in built_in - mounted]
    if not wanted:
        return []
    new = tempfile.mkdtemp(prefix="conformance-cgroup.")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", new)
    for old in below:
        target = os.path.join(new, os.path.relpath(old, "/sys/fs/cgroup"))
        os.makedirs(target)
        _mount("--move", old, target)
    added = []
    for name in wanted:
        os.mkdir(os.path.join(new, name))
        try:
            _mount("-t", "cgroup", "-o", name, "cgroup", os.path.join(new, name))
            added.append(name)
        except subprocess.CalledProcessError:
            os.rmdir(os.path.join(new, name))
    _mount("--move", new, "/sys/fs/cgroup")
    os.rmdir(new)
    return added


@contextlib.contextmanager
def apparmor_profile() -> Iterator[None]:
    """Load the profile that a test asks for by name, where there is AppArmor: one that allows everything."""
    if not apparmor():
        yield
        return
    profile = f"profile {APPARMOR_PROFILE} flags=(attach_disconnected,mediate_deleted) {{ {APPARMOR_RULES} }}\n"
    subprocess.run(["apparmor_parser", "--replace"], input=profile, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["apparmor_parser", "--remove"], input=profile, text=True, check=True)


def apparmor() -> bool:
    """Is AppArmor on, and is there the program that loads profiles?"""
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    return enabled.exists() and enabled.read_text().strip() == "Y" and shutil.which("apparmor_parser") is not None


def _mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True, capture_output=True)


def run_all(
    suite: Suite,
    runtime: str,
    names: Iterable[str],
    *,
    timeout: int,
    jobs: int,
    attempts: Mapping[str, int],
    report: Callable[[str, Outcome], None],
) -> dict[str, Outcome]:
    """Run the named tests; `report` is called as each one ends. -> outcome by name, in the order of `names`

    attempts  tests that are run again when they fail, and how often in all
    """
    names = list(names)
    serial = [name for name in names if name.startswith(SERIAL)]
    outcomes: dict[str, Outcome] = {}

    def one(name: str) -> None:
        for _ in range(attempts.get(name, 1)):
            outcomes[name] = run_one(suite, runtime, name, timeout)
            report(name, outcomes[name])
            if outcomes[name].verdict != "failed":
                break

    def in_turn() -> None:
        with open(cache() / "cgrouptest.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in serial:
                one(name)
                _remove_fixed_cgroups()

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(in_turn)] if serial else []
        futures += [pool.submit(one, name) for name in names if name not in serial]
        for future in concurrent.futures.as_completed(futures):
            future.result()
    return {name: outcomes[name] for name in names}


def run_one(suite: Suite, runtime: str, name: str, timeout: int) -> Outcome:
    """Run one test in namespaces of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"conformance.{name}."))
    try:
        folder.chmod(0o755)  # containers with user namespaces walk through it
        bundles, state = folder / "tmp", folder / "state"
        bundles.mkdir(mode=0o755)
        state.mkdir()
        shutil.copy(suite.runtimetest, folder / "runtimetest")
        (folder / suite.rootfs.name).symlink_to(suite.rootfs)
        wrapper = folder / "runtime"
        wrapper.write_text(
            f'#!/bin/sh\necho "$*" >>{shlex.quote(str(folder / "calls"))}\n'
            f'exec {runtime} --root {shlex.quote(str(state))} "$@"\n'
        )
        wrapper.chmod(0o755)
        began = time.monotonic()
        command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL",
                   "--mount-proc", sys.executable, "-I", str(HERE / "inside.py"), str(folder / "result"),
                   str(timeout), str(wrapper), str(suite.tests[name])]  # fmt: skip
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "RUNTIME": str(wrapper), "TMPDIR": str(bundles)},
            )
            try:
                process.wait(timeout + 60)  # inside.py keeps the time; this is for when even that hangs
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return _outcome(folder, time.monotonic() - began, timeout)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(folder: Path, seconds: float, timeout: int) -> Outcome:
    def text(name: str) -> str:
        path = folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    if not text("result"):
        verdict, why = "failed", f"no result: {text('stderr').strip()[-300:]}"
    else:
        result = json.loads(text("result"))
        verdict, why = tap.verdict(text("stdout"), result["status"], text("stderr"))
        if result["timeout"]:
            verdict, why = "failed", f"not finished after {timeout} s; {why}"
    return Outcome(verdict, why, seconds, text("stdout"), text("stderr"), text("calls"))


def _remove_fixed_cgroups() -> None:
    """Remove the parents that the cgroup tests leave (nobody else would: a runtime deletes only its own cgroup)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1].startswith("cgroup"):
            for name in FIXED_CGROUPS:
                try:
                    os.rmdir(os.path.join(fields[4], name))
                except OSError:
                    pass

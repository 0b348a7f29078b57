"""Making, finding, freezing, killing and removing a container's cgroup, on whatever kind of host this is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocirt import cgroups
from ocirt.cgroups import host
from ocirt.errors import Error, InvalidConfig, Unsupported, WrongState
from tests.harness.leftovers import Before
from tests.harness.waiting import eventually
from tests.kernel.cgroup_lab import MANAGERS, UNIFIED, Lab, Process, read

FORKER = """
def grow(depth):
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if depth:
                grow(depth - 1)
            time.sleep(600)
grow(3)
print('grown', flush=True)
time.sleep(600)
"""
COUNTER = "n = 0\nwhile True:\n    n += 1\n    print(n, flush=True)\n    time.sleep(0.02)\n"


@pytest.fixture(params=MANAGERS)
def lab(request: pytest.FixtureRequest, apart: None, test_id: str, place: Path) -> Iterator[Lab]:
    yield from _lab(test_id, request.param, place)


@pytest.fixture
def by_hand(apart: None, test_id: str, place: Path) -> Iterator[Lab]:
    """Without systemd, on every host."""
    yield from _lab(test_id, "cgroupfs", place)


def _lab(test_id: str, manager: str, place: Path) -> Iterator[Lab]:
    before = Before()
    made = Lab(test_id, manager)
    yield made
    made.close()
    left = before.left(place, test_id)
    assert not left, "left behind: " + ", ".join(left)


def where(process: Process) -> dict[str, str]:
    """Its cgroups in the hierarchies that are mounted here; others may be mounted elsewhere."""
    mounted = {controllers for controllers, _ in host.hierarchies()}
    return {controllers: path for controllers, path in host.own(process.pid).items() if controllers in mounted}


def directories(lab: Lab, path: str) -> list[Path]:
    return [Path(mountpoint + path) for _, mountpoint in host.hierarchies()]


def test_joins_every_hierarchy(lab: Lab) -> None:
    cgroup, process = lab.idle()
    own = where(process)
    for controllers, mountpoint, path in cgroup.mounts():
        assert own[controllers] == path, f"{controllers or 'cgroup2'} on {mountpoint}"
    assert {c for c, _, _ in cgroup.mounts()} == {c for c, _ in host.hierarchies()}


def test_choosing_changes_nothing(lab: Lab) -> None:
    cgroup = lab.choose("/a")
    assert not os.path.exists(cgroup.path("memory") or "/nonexistent")
    cgroup.remove()  # of what was never made


def test_empty_path_is_the_id_at_the_root(by_hand: Lab) -> None:
    cgroup = cgroups.choose({}, by_hand.name, manager="cgroupfs", rootless=False, annotations={})
    assert {path for _, _, path in cgroup.mounts()} == {f"/{by_hand.name}"}


def test_relative_path_is_the_same_place_for_every_caller(by_hand: Lab) -> None:
    cgroup = cgroups.choose(
        {"cgroupsPath": f"{by_hand.name}/x"}, "id", manager="cgroupfs", rootless=False, annotations={}
    )
    assert {path for _, _, path in cgroup.mounts()} == {f"/{by_hand.name}/x"}


@pytest.mark.parametrize("path", ["/../x", "/a/../../x", "..", "/", "/.", "/a\nb"])
def test_paths_that_name_another_cgroup_are_refused(by_hand: Lab, path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"linux\.cgroupsPath"):
        by_hand.choose(path=path)


def test_a_record_is_all_that_is_needed_later(lab: Lab) -> None:
    cgroup, process = lab.idle()
    loaded = cgroups.load(cgroup.record())
    assert loaded.pids() == [process.pid]
    assert loaded.path("memory") == cgroup.path("memory")
    loaded.kill()
    assert process.result()[0] == -signal.SIGKILL
    loaded.remove()
    assert not os.path.exists(cgroup.path("memory"))
    loaded.remove()


def test_parents_are_made_and_removed(by_hand: Lab) -> None:
    cgroup, process = by_hand.idle(below="/a/b/c")
    assert all(d.is_dir() for d in directories(by_hand, f"/{by_hand.name}/a/b/c"))
    process.end()
    cgroup.remove()
    assert not any(d.exists() for d in directories(by_hand, f"/{by_hand.name}"))


def test_what_was_there_before_stays(by_hand: Lab) -> None:
    outer = directories(by_hand, f"/{by_hand.name}")
    inner = [d / "mine" for d in outer]
    try:
        for directory in outer + inner:
            directory.mkdir()
        cgroup, process = by_hand.idle(below="/mine")
        process.end()
        cgroup.remove()
        assert all(d.is_dir() for d in inner)
    finally:
        for directory in inner + outer:
            directory.rmdir()


def test_another_container_keeps_the_parent(by_hand: Lab) -> None:
    first, process = by_hand.idle(below="/pod/one")
    second, other = by_hand.idle(below="/pod/two")
    process.end()
    first.remove()
    assert second.pids() == [other.pid]
    other.end()
    second.remove()
    # the pod was made for the first, which is gone: it could not be removed then
    for directory in directories(by_hand, f"/{by_hand.name}"):
        (directory / "pod").rmdir()
        directory.rmdir()


def test_a_cgroup_with_processes_is_refused(lab: Lab) -> None:
    _, process = lab.idle()
    with pytest.raises(WrongState, match=r"is not empty: 1 process|is there already"):
        lab.choose().prepare()
    assert process.popen.poll() is None


def test_a_frozen_parent_is_refused(by_hand: Lab) -> None:
    above, _ = by_hand.idle()
    above.freeze()
    with pytest.raises(WrongState, match="is frozen"):
        by_hand.choose("/below").prepare()
    assert not any((d / "below").exists() for d in directories(by_hand, f"/{by_hand.name}"))


def test_freeze_stops_and_thaw_goes_on(lab: Lab) -> None:
    cgroup, process = lab.limited({}, COUNTER)
    assert process.line() == "1"
    cgroup.freeze()
    assert cgroup.frozen()
    while not process.silent(0):
        process.line()
    assert process.silent(0.3)
    cgroup.thaw()
    assert not cgroup.frozen()
    assert process.line()


def test_freezing_a_group_that_forks_all_the_time(lab: Lab) -> None:
    program = (
        "print('go', flush=True)\nwhile True:\n"
        "    pid = os.fork()\n    if not pid: os._exit(0)\n    os.waitpid(pid, 0)\n"
    )
    cgroup, process = lab.limited({}, program)
    process.line()
    for _ in range(5):
        cgroup.freeze()
        before = process.cpu()
        time.sleep(0.05)
        assert process.cpu() == before
        cgroup.thaw()


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_kill_takes_all_at_once(lab: Lab, frozen: bool) -> None:
    cgroup, process = lab.limited({}, FORKER)
    assert process.line() == "grown"
    assert eventually(lambda: len(cgroup.pids()) == 31)
    if frozen:
        cgroup.freeze()
    cgroup.kill()
    process.end()
    assert eventually(lambda: not cgroup.pids())
    cgroup.remove()


def test_signal_reaches_every_process(lab: Lab) -> None:
    program = (
        # sigwait: a handler that runs just before sleep() begins would not cut it short
        "r, w = os.pipe()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "for _ in range(4):\n"
        "    if not os.fork():\n"
        "        os.write(w, b'.'); signal.sigwait([signal.SIGUSR1]); os.write(w, b'x'); os._exit(0)\n"
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "n = 0\n"
        "while n < 4: n += len(os.read(r, 9))\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while n < 4: n += len(os.read(r, 9))\n"
        "print('all', flush=True)\n"
    )
    cgroup, process = lab.limited({}, program)
    assert process.line() == "ready"
    cgroup.signal(signal.SIGUSR1)
    assert process.line() == "all"
    assert not cgroup.frozen()


def test_remove_waits_for_the_dying(lab: Lab) -> None:
    cgroup, process = lab.limited({}, FORKER)
    process.line()
    cgroup.kill()
    cgroup.remove()  # without having waited for anyone
    assert not os.path.exists(cgroup.path("memory"))
    process.end()


def test_remove_says_who_is_left(by_hand: Lab) -> None:
    from ocirt.cgroups import removing

    cgroup, process = by_hand.idle()
    _, mountpoint, path = cgroup.mounts()[0]
    with pytest.raises(Error, match=rf"1 process\(es\) left: {process.pid}"):
        removing.remove(mountpoint, path, 0, patience=0.1)


def test_remove_takes_trees_deeper_than_a_path_may_be_long(by_hand: Lab) -> None:
    """A container that was given its cgroup can make such trees."""
    cgroup, process = by_hand.idle()
    process.end()
    here = os.open(cgroup.path("pids"), os.O_RDONLY | os.O_DIRECTORY)
    name = "d" * 200
    depth = 0
    try:
        for _ in range(30):
            os.mkdir(name, dir_fd=here)
            there = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = there
            depth += 1
    finally:
        os.close(here)
    assert depth * len(name) > os.pathconf("/", "PC_PATH_MAX")
    cgroup.remove()
    assert not os.path.exists(cgroup.path("pids"))


def test_exec_into_cgroups_below(by_hand: Lab) -> None:
    cgroup, process = by_hand.idle()
    for controllers, mountpoint, path in cgroup.mounts():
        (Path(mountpoint + path) / "sub").mkdir()
        if "cpuset" in controllers:
            for name in ("cpuset.cpus", "cpuset.mems"):
                Path(mountpoint + path, "sub", name).write_text(Path(mountpoint + path, name).read_text())
    other = by_hand.process("time.sleep(600)")
    cgroup.join_exec(other.pid, ["sub"], process.pid)
    assert set(where(other).values()) == {f"/{by_hand.name}/sub"}
    cgroup.join_exec(other.pid, [], process.pid)
    assert set(where(other).values()) == {f"/{by_hand.name}"}
    for bad in ("../x", "sub/../../x"):
        with pytest.raises(InvalidConfig, match="--cgroup"):
            cgroup.join_exec(other.pid, [bad], process.pid)
    with pytest.raises(Error, match="--cgroup missing: there is no cgroup"):
        cgroup.join_exec(other.pid, ["missing"], process.pid)


@pytest.mark.skipif(UNIFIED, reason="cgroup v2 has one hierarchy: nothing to choose between")
def test_exec_into_the_cgroup_of_one_controller(by_hand: Lab) -> None:
    cgroup, _ = by_hand.idle()
    Path(cgroup.path("pids"), "sub").mkdir()
    other = by_hand.process("time.sleep(600)")
    cgroup.join_exec(other.pid, ["pids:sub"])
    own = where(other)
    assert own.pop("pids") == f"/{by_hand.name}/sub"
    assert set(own.values()) == {f"/{by_hand.name}"}
    with pytest.raises(Unsupported, match="nonsense"):
        cgroup.join_exec(other.pid, ["nonsense:sub"])


@pytest.mark.skipif(not UNIFIED, reason="CLONE_INTO_CGROUP needs a pure cgroup v2 host")
def test_prepare_gives_a_descriptor_to_clone_into(by_hand: Lab) -> None:
    cgroup = by_hand.choose()
    by_hand.made.append(cgroup)
    descriptor = cgroup.prepare()
    try:
        assert os.fstat(descriptor).st_ino == os.stat(cgroup.path()).st_ino
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not UNIFIED, reason="threaded cgroups are of cgroup v2")
def test_a_threaded_parent(by_hand: Lab) -> None:
    parent = Path(host.MOUNTPOINT, by_hand.name)
    parent.mkdir()
    try:
        (parent / "t").mkdir()
        (parent / "t" / "cgroup.type").write_text("threaded")
        cgroup, process = by_hand.idle({"pids": {"limit": 20}}, below="/t/deeper/c")
        assert read(cgroup, "pids", "cgroup.type") == "threaded"
        assert read(cgroup, "pids", "pids.max") == "20"
        assert cgroup.pids() == [process.pid]
        with pytest.raises(Unsupported, match="controller not delegated: memory"):
            cgroup.update({"memory": {"limit": 1 << 26}}, {})
        cgroup.kill()
        process.end()
        cgroup.remove()
    finally:
        (parent / "t").rmdir()
        parent.rmdir()


@pytest.mark.skipif(not UNIFIED, reason="on cgroup v1 every controller is in every cgroup of its hierarchy")
def test_a_controller_that_is_not_delegated_is_named_with_the_file(by_hand: Lab) -> None:
    parent = Path(host.MOUNTPOINT, by_hand.name)
    parent.mkdir()
    squatter = by_hand.process("time.sleep(600)")
    try:
        (parent / "cgroup.procs").write_text(str(squatter.pid))  # no controllers below a cgroup with processes
        cgroup = by_hand.prepared("/c")
        with pytest.raises(
            Unsupported, match=rf"linux\.resources\.memory\.limit: {parent}/c/memory\.max doesn't exist"
        ):
            cgroup.apply({"memory": {"limit": 1 << 26}})
        cgroup.remove()
    finally:
        squatter.end()
        parent.rmdir()


@pytest.mark.skipif(not UNIFIED, reason="delegation is not secure with cgroup v1, so nothing is given away there")
def test_the_owner_gets_the_files_of_the_list(lab: Lab) -> None:
    cgroup, _ = lab.idle()
    cgroup.chown(4242)
    directory = Path(cgroup.path())
    wanted = set(Path("/sys/kernel/cgroup/delegate").read_text().split())
    owned = {p.name for p in directory.iterdir() if p.stat().st_uid == 4242}
    assert owned == {name for name in wanted if (directory / name).exists()}
    assert directory.stat().st_uid == 4242
    assert "memory.max" not in owned


def test_without_privilege_only_a_limit_is_an_error(by_hand: Lab, test_id: str) -> None:
    """The child is nobody: it may make no cgroup."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "?"
        try:
            os.setgid(65534)
            os.setuid(65534)
            cgroup = cgroups.choose(
                {"cgroupsPath": f"/{test_id}"}, test_id, manager="cgroupfs", rootless=True, annotations={}
            )
            cgroup.prepare()
            cgroup.join(os.getpid())
            cgroup.apply({"devices": [{"allow": False, "access": "rwm"}]})
            said = f"{cgroup.pids()} "
            cgroup.apply({"pids": {"limit": 5}})
        except Error as error:
            said += str(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as stream:
        said = stream.read()
    assert said.startswith("[] linux.resources.pids"), said


def test_disabled_does_nothing_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    cgroup = cgroups.choose({"cgroupsPath": "/x"}, "x", manager="disabled", rootless=False, annotations={})
    assert cgroup.prepare() == -1
    cgroup.join(os.getpid())
    cgroup.apply({"memory": {"limit": 1}})
    assert "memory" in capfd.readouterr().err
    loaded = cgroups.load(cgroup.record())
    assert loaded.pids() == []
    loaded.kill()
    loaded.remove()
    with pytest.raises(Unsupported):
        loaded.freeze()

"""containerd's CRI plugin with io.containerd.ocirt.v1 as a runtime handler: what a kubelet asks for.

The tests of io.containerd.runc.v2 (tests/engines/test_cri.py) with the same outcomes, one shim a pod, and many pods
whose shims are killed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines.conftest import CONTRIB, assert_nothing_left, make_space, need, remove_cgroup
from tests.engines.containerd.test_ctr import install
from tests.engines.grpc import GrpcError, parse
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.engines.test_containerd import CONFIG, Containerd
from tests.engines.test_cri import (  # noqa: F401 (some are tests)
    CREATED,
    EXITED,
    RUNNING,
    Pod,
    test_attach,
    test_exec_and_exit_codes,
    test_log,
    test_program_that_cannot_run,
    test_resources_and_stats,
    test_streamed_exec,
    test_streamed_exec_in_a_terminal,
)

HANDLER = "ocirt"
#: runc is built in only until another runtime is named.
RUNC = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
TOTAL, IN_A_POD, AT_A_TIME = 200, 4, 8


@pytest.fixture(scope="module")
def daemon(program: str, image: tuple[Path, Path]) -> Iterator[Containerd]:
    need("containerd", "ctr", "curl")
    space = make_space("pods", program)
    try:
        ours = (CONTRIB / "containerd/ocirt-shim.toml").read_text()
        space.write("/etc/containerd/config.toml", f'{CONFIG.rstrip()}\n  sandbox_image = "{NAME}"\n{RUNC}\n{ours}')
        install(space)
        daemon = Containerd(space)
        space("ctr", "--namespace", "k8s.io", "images", "import", image[1])
        yield daemon
        daemon.process.kill()
        daemon.process.wait()
    finally:
        space.close()
        remove_cgroup("k8s.io")


@pytest.fixture
def cri_space(daemon: Containerd) -> Space:
    return daemon.space


@pytest.fixture
def pod(cri_space: Space, name: str) -> Iterator[Pod]:
    pod = Pod(cri_space, HANDLER, name)
    yield pod
    pod.remove()
    for id in (pod.id, *pod.containers):
        assert_nothing_left(cri_space, id)
    assert sockets(cri_space) == []


def sockets(space: Space, patience: float = 5) -> list[str]:
    """Of shims; a shim takes a moment to end."""
    directory = space.root / "run/containerd/s"
    end = time.monotonic() + patience
    while True:
        names = os.listdir(directory) if directory.exists() else []
        left = [name for name in names if not name.endswith(".spare")]  # it waits for the next pod
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def shims(space: Space) -> dict[int, str]:
    """{pid: command line} of our shims in the space."""
    listing = space("ps", "-eo", "pid,stat,args").out.splitlines()[1:]
    found = {}
    for line in listing:
        pid, state, words = line.split(None, 2)
        if "containerd-shim-ocirt-v1" in words and not state.startswith("Z") and words.endswith(" start"):
            found[int(pid)] = words
    return found


def test_life_of_a_pod(pod: Pod) -> None:
    """Three containers and the sandbox: one process."""
    ids = [pod.create(f"c{number}", "/bin/sleep", "1000") for number in range(3)]
    assert [pod.status(id)[0] for id in ids] == [CREATED] * 3
    for id in ids:
        pod("StartContainer", {1: id})
    assert [pod.status(id)[0] for id in ids] == [RUNNING] * 3
    assert len(shims(pod.space)) == 1
    assert pod.id in next(iter(shims(pod.space).values()))
    links = {pod.execute(id, "/bin/readlink", "/proc/self/ns/ipc")[1] for id in ids}
    assert len(links) == 1, "the pod's IPC namespace"
    pod("StopContainer", {1: ids[0], 2: 1})
    assert pod.status(ids[0]) == (EXITED, 143)
    pod("RemoveContainer", {1: ids[0]})
    with pytest.raises(GrpcError, match=r"5: .*not found"):
        pod.status(ids[0])
    assert [pod.status(id)[0] for id in ids[1:]] == [RUNNING] * 2


def test_stats_of_all(pod: Pod) -> None:
    for number in range(2):
        pod("StartContainer", {1: pod.create(f"c{number}", "/bin/sleep", "1000")})
    found = parse(pod("ListContainerStats", {1: {2: pod.id}})[1])
    assert found[2], "cpu"
    assert found[3], "memory"


def test_started_again(pod: Pod) -> None:
    """A container that fails is made anew in the same pod, as a kubelet does."""
    for attempt in range(4):
        id = pod.create(f"c{attempt}", "/bin/sh", "-c", f"exit {attempt}")
        pod("StartContainer", {1: id})
        assert pod.wait_for(id, EXITED) == attempt
        pod("RemoveContainer", {1: id})
    assert len(shims(pod.space)) == 1


def test_killed_shim(pod: Pod) -> None:
    """All of the pod's containers have ended then, and the pod can be removed."""
    ids = [pod.create(f"c{number}", "/bin/sleep", "1000") for number in range(2)]
    for id in ids:
        pod("StartContainer", {1: id})
    (shim,) = shims(pod.space)
    pod.space("kill", "-KILL", str(shim))
    for id in ids:
        assert pod.wait_for(id, EXITED) in (137, 255)
    assert not pod.space.processes("sleep 1000") or all("pause" in line for line in pod.space.processes("sleep 1000"))


def test_restart_of_containerd(pod: Pod, daemon: Containerd) -> None:
    id = pod.create("c", "/bin/sleep", "1000")
    pod("StartContainer", {1: id})
    daemon.restart()
    wait_for_cri(pod)
    assert pod.status(id)[0] == RUNNING
    assert pod.execute(id, "/bin/echo", "still here")[1] == "still here\n"
    other = pod.create("d", "/bin/true")
    pod("StartContainer", {1: other})
    assert pod.wait_for(other, EXITED) == 0
    assert len(shims(pod.space)) == 1


def wait_for_cri(pod: Pod) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            pod("Version", {})
            return
        except (GrpcError, AssertionError):
            assert time.monotonic() < end
            time.sleep(0.2)


def test_port_forward_prerequisites(pod: Pod) -> None:
    """containerd enters the sandbox's network namespace by its pid or path: the sandbox's process is there."""
    url = pod("PortForward", {1: pod.id, 2: 80})[1].decode()
    assert url.startswith("http")


@pytest.mark.timeout(900)
def test_two_hundred(daemon: Containerd, name: str) -> None:
    """200 containers in pods of four, eight pods at a time, a shim in six killed under load: nothing lost or left."""
    space = daemon.space
    chance = random.Random(name)

    def one(number: int) -> list[str]:
        pod = Pod(space, HANDLER, f"{name}p{number}")
        killed = number % 6 == 5
        ids: list[str] = []
        try:
            for part in range(IN_A_POD - 1):  # the sandbox is the fourth
                ids.append(pod.create(f"c{part}", "/bin/sh", "-c", f"echo {number}.{part}; sleep 1000"))
                pod("StartContainer", {1: ids[-1]})
            if killed:
                time.sleep(chance.random() / 2)
                mine = [pid for pid, words in shims(space).items() if pod.id in words]
                assert len(mine) == 1, mine
                space("kill", "-KILL", str(mine[0]))
                for id in ids:
                    pod.wait_for(id, EXITED)
            else:
                code, out, _ = pod.execute(ids[0], "/bin/echo", f"exec {number}")
                assert (code, out) == (0, f"exec {number}\n")
                for id in ids:
                    assert pod.status(id)[0] == RUNNING
            for part in range(IN_A_POD - 1):
                log = (space.directory / f"c{part}.log").read_text()
                assert f" stdout F {number}.{part}\n" in log
        finally:
            pod.remove()
        return [pod.id, *ids]

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        groups = list(pool.map(one, range(TOTAL // IN_A_POD)))
    ids = [id for group in groups for id in group]
    assert len(set(ids)) == TOTAL
    end = time.monotonic() + 10
    while shims(space) and time.monotonic() < end:
        time.sleep(0.1)
    assert shims(space) == {}
    assert sockets(space) == []
    for id in ids:
        assert_nothing_left(space, id)

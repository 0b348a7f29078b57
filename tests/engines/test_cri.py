"""containerd's CRI plugin, as a kubelet uses it: pods and their containers by gRPC, with ocirt, runc and crun."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import CONTRIB, assert_nothing_left, make_space, need, remove_cgroup
from tests.engines.grpc import GrpcError, call, parse
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.engines.streaming import stream
from tests.engines.test_containerd import CONFIG, Containerd

SOCKET = "/run/containerd/containerd.sock"
CREATED, RUNNING, EXITED = 0, 1, 2
NODE = 2  # the host's network: no CNI needed

#: The peers beside ocirt, which comes from our snippet.
PEERS = "".join(
    f"""
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
    BinaryName = "{path}"
"""
    for name, path in (("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun"))
)


@pytest.fixture(scope="module")
def cri_space(program: str, image: tuple[Path, Path]) -> Iterator[Space]:
    need("containerd", "ctr", "curl")
    space = make_space("cri", program)
    try:
        ours = (CONTRIB / "containerd/ocirt.toml").read_text()
        space.write("/etc/containerd/config.toml", f'{CONFIG.rstrip()}\n  sandbox_image = "{NAME}"\n{PEERS}\n{ours}')
        daemon = Containerd(space)
        space("ctr", "--namespace", "k8s.io", "images", "import", image[1])
        yield space
        daemon.process.kill()
        daemon.process.wait()
    finally:
        space.close()
        remove_cgroup("k8s.io")


class Pod:
    """A pod of the runtime, and what is in it."""

    def __init__(self, space: Space, runtime: str, name: str) -> None:
        self.space = space
        self.config: dict[int, Any] = {
            1: {1: name, 2: f"{name}-uid", 3: "default"},
            3: str(space.directory),
            8: {2: {1: {1: NODE}}},
        }
        self.containers: list[str] = []
        self.id = self("RunPodSandbox", {1: self.config, 2: runtime})[1].decode()

    def __call__(self, method: str, message: dict[int, Any]) -> dict[int, Any]:
        return call(self.space, SOCKET, f"runtime.v1.RuntimeService/{method}", message)

    def create(self, name: str, *command: str, **config: Any) -> str:
        """CreateContainer; its id."""
        extra = config.get("linux")
        wanted: dict[int, Any] = {1: {1: name}, 2: {1: NAME}, 3: list(command), 11: f"{name}.log"}
        if extra:
            wanted[15] = extra
        id = self("CreateContainer", {1: self.id, 2: wanted, 3: self.config})[1].decode()
        self.containers.append(id)
        return id

    def status(self, id: str) -> tuple[int, int]:
        """(state, exit code)"""
        found = parse(self("ContainerStatus", {1: id})[1])
        return found.get(3, 0), found.get(7, 0)

    def wait_for(self, id: str, state: int) -> int:
        """Wait for a state; the exit code."""
        end = time.monotonic() + 20
        while (seen := self.status(id))[0] != state:
            assert time.monotonic() < end, f"state is {seen}"
            time.sleep(0.1)
        return seen[1]

    def execute(self, id: str, *command: str) -> tuple[int, str, str]:
        """ExecSync: (exit code, stdout, stderr)"""
        found = self("ExecSync", {1: id, 2: list(command), 3: 20})
        return found.get(3, 0), found.get(1, b"").decode(), found.get(2, b"").decode()

    def remove(self) -> None:
        self("StopPodSandbox", {1: self.id})
        self("RemovePodSandbox", {1: self.id})


@pytest.fixture
def pod(cri_space: Space, runtime_name: str, name: str) -> Iterator[Pod]:
    pod = Pod(cri_space, runtime_name, name)
    yield pod
    pod.remove()
    for id in (pod.id, *pod.containers):
        assert_nothing_left(cri_space, id)


def test_life_of_a_pod(pod: Pod) -> None:
    ids = [pod.create(f"c{number}", "/bin/sleep", "1000") for number in range(3)]
    assert [pod.status(id)[0] for id in ids] == [CREATED] * 3
    for id in ids:
        pod("StartContainer", {1: id})
    assert [pod.status(id)[0] for id in ids] == [RUNNING] * 3
    assert len(pod.space.processes(f"containerd-shim-runc-v2 -namespace k8s.io -id {pod.id}")) == 1
    links = {pod.execute(id, "/bin/readlink", "/proc/self/ns/ipc")[1] for id in ids}
    assert len(links) == 1, "the pod's IPC namespace"
    pod("StopContainer", {1: ids[0], 2: 1})
    assert pod.status(ids[0]) == (EXITED, 143)  # it is not the first process of the PID namespace
    pod("RemoveContainer", {1: ids[0]})
    with pytest.raises(GrpcError, match=r"5: .*not found"):
        pod.status(ids[0])


def test_exec_and_exit_codes(pod: Pod) -> None:
    id = pod.create("one", "/bin/sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done")
    pod("StartContainer", {1: id})
    assert pod.execute(id, "/bin/sh", "-c", "echo out; echo err >&2; exit 9") == (9, "out\n", "err\n")
    with pytest.raises(GrpcError, match=r"(?i)no such file|executable file"):
        pod.execute(id, "/nope")
    pod("StopContainer", {1: id, 2: 10})
    assert pod.wait_for(id, EXITED) == 6


def test_program_that_cannot_run(pod: Pod) -> None:
    id = pod.create("one", "/nonexistent")
    with pytest.raises(GrpcError, match=r"(?i)no such file|executable file"):
        pod("StartContainer", {1: id})
    assert pod.status(id) == (EXITED, 128)


def test_resources_and_stats(pod: Pod) -> None:
    id = pod.create("one", "/bin/sleep", "1000", linux={1: {4: 64 << 20}})
    pod("StartContainer", {1: id})
    pod("UpdateContainerResources", {1: id, 2: {4: 80 << 20}})
    limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
    assert pod.execute(id, "/bin/sh", "-c", limits)[1] == f"{80 << 20}\n"
    stats = parse(pod("ContainerStats", {1: id})[1])
    assert stats[2]  # cpu
    assert stats[3]  # memory


def test_log(pod: Pod) -> None:
    id = pod.create("one", "/bin/sh", "-c", "echo to the log; exit 3")
    pod("StartContainer", {1: id})
    assert pod.wait_for(id, EXITED) == 3
    assert " stdout F to the log\n" in (pod.space.directory / "one.log").read_text()


def test_streamed_exec(pod: Pod) -> None:
    """kubectl exec: streams and the exit code."""
    id = pod.create("c", "/bin/sleep", "1000")
    pod("StartContainer", {1: id})
    command = ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]
    url = pod("Exec", {1: id, 2: command, 5: True, 6: True})[1].decode()
    told = stream(pod.space, url)
    assert (told["1"], told["2"]) == ("out\n", "err\n")
    assert '"7"' in told["3"]


def test_streamed_exec_in_a_terminal(pod: Pod) -> None:
    id = pod.create("c", "/bin/sleep", "1000")
    pod("StartContainer", {1: id})
    url = pod("Exec", {1: id, 2: ["/bin/sh", "-c", "tty; read a; echo got $a"], 3: True, 4: True, 5: True})[1].decode()
    told = stream(pod.space, url, "word\n", "got word")
    assert "/dev/" in told["1"]
    assert "got word" in told["1"]


def test_attach(pod: Pod) -> None:
    """kubectl attach: to what init reads and writes."""
    script = "while read line; do echo got $line; done"
    config = {1: {1: "c"}, 2: {1: NAME}, 3: ["/bin/sh", "-c", script], 11: "c.log", 12: True}
    id = pod("CreateContainer", {1: pod.id, 2: config, 3: pod.config})[1].decode()
    pod.containers.append(id)
    pod("StartContainer", {1: id})
    url = pod("Attach", {1: id, 2: True, 4: True, 5: True})[1].decode()
    assert "got word" in stream(pod.space, url, "word\n", "got word")["1"]
    assert " stdout F got word\n" in (pod.space.directory / "c.log").read_text()

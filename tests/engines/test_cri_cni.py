"""containerd's CRI plugin with our CNI plugins: pods with an address, mapped ports, and nothing left of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import CONTRIB, assert_nothing_left, make_space, need, remove_cgroup
from tests.engines.grpc import GrpcError, parse
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.engines.test_containerd import CONFIG, Containerd
from tests.engines.test_cri import PEERS, Pod
from tests.harness.waiting import eventually

PLUGINS = "/usr/local/lib/ocirt-cni"
SUBNET = "10.62.0."
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": f"{SUBNET}0/24"}], [{"subnet": "fd62::/64"}]],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": "same-bridge"},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


@pytest.fixture(scope="module", params=["nftables", "proxy", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cni_space(program: str, image: tuple[Path, Path], backend: str) -> Iterator[Space]:
    need("containerd", "ctr", "curl", "iptables", "nft")
    space = make_space("cni", program)
    try:
        network = json.loads(json.dumps(NETWORK))
        network["plugins"][1]["backend"] = backend
        space.write("/etc/cni/net.d/10-pods.conflist", json.dumps(network))
        space("/usr/local/bin/ocirt", "network", "plugins", PLUGINS)
        cni = f'[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "{PLUGINS}"\n  conf_dir = "/etc/cni/net.d"\n'
        ours = (CONTRIB / "containerd/ocirt.toml").read_text()
        space.write(
            "/etc/containerd/config.toml", f'{CONFIG.rstrip()}\n  sandbox_image = "{NAME}"\n{cni}{PEERS}\n{ours}'
        )
        daemon = Containerd(space)
        space("ctr", "--namespace", "k8s.io", "images", "import", image[1])
        yield space
        daemon.process.kill()
        daemon.process.wait()
    finally:
        space.close()
        remove_cgroup("k8s.io")


class NetworkedPod(Pod):
    """A pod with a network namespace of its own, and port 80 at `port` of the host."""

    def __init__(self, space: Space, runtime: str, name: str, port: int) -> None:
        self.space = space
        self.config = {
            1: {1: name, 2: f"{name}-uid", 3: "default"},
            3: str(space.directory),
            5: [{1: 0, 2: 80, 3: port}],  # tcp, container's port, host's port
            8: {2: {1: {1: 0}}},  # the network is the pod's
        }
        self.containers: list[str] = []
        self.id = self("RunPodSandbox", {1: self.config, 2: runtime})[1].decode()

    def remove(self) -> None:
        """Once; more does nothing."""
        if self.id:
            super().remove()
            self.id = ""

    def address(self) -> str:
        status = parse(self("PodSandboxStatus", {1: self.id})[1])
        return str(parse(status[5])[1].decode())

    def serve(self, name: str) -> None:
        """A container with a web server, whose page is the pod's name."""
        script = (
            f"mkdir /tmp/www; echo page of {name} > /tmp/www/index.html; exec /bin/busybox httpd -f -p 80 -h /tmp/www"
        )
        id = self.create("web", "/bin/sh", "-c", script)
        self("StartContainer", {1: id})


def page(space: Space, url: str) -> str:
    found = space("curl", "-sS", "-m", "5", url, rc=None)
    return found.out.strip() or found.err.strip()


def left(space: Space) -> tuple[list[str], str, list[str], list[str]]:
    """Interfaces, elements and rules, addresses, proxies."""
    links = [i["ifname"] for i in json.loads(space("ip", "-j", "link").out) if i["ifname"].startswith("veth")]
    rules = space("nft", "list", "ruleset").out
    addresses = [p.name for p in (space.root / "var/lib/cni/networks/pods").glob("*") if p.name[0] in "1f"]
    return (
        links,
        "".join(line for line in rules.splitlines() if "pods/" in line),
        addresses,
        space.processes("proxy.main"),
    )


Start = Callable[[str, str, int], NetworkedPod]


@pytest.fixture
def run(cni_space: Space) -> Iterator[Start]:
    """Starts pods, which don't outlive the test."""
    made: list[NetworkedPod] = []

    def start(runtime: str, name: str, port: int) -> NetworkedPod:
        made.append(NetworkedPod(cni_space, runtime, name, port))
        return made[-1]

    yield start
    for pod in made:
        pod.remove()


@pytest.mark.parametrize("runtime_name", ["ocirt", "runc"])
def test_pods_with_our_plugins(cni_space: Space, runtime_name: str, name: str, backend: str, run: Start) -> None:
    space = cni_space
    pods = [run(runtime_name, f"{name}-{i}", 8080 + i) for i in range(2)]
    addresses = [pod.address() for pod in pods]
    assert all(a.startswith(SUBNET) for a in addresses)
    assert addresses[0] != addresses[1]
    for i, pod in enumerate(pods):
        pod.serve(f"{name}-{i}")
    # by its address, by the host's port, and by the other pod
    gateway = f"{SUBNET}1"
    for i, address in enumerate(addresses):
        wanted = f"page of {name}-{i}"
        assert eventually(lambda address=address, wanted=wanted: page(space, f"http://{address}/") == wanted)  # type: ignore[misc]
        assert page(space, f"http://127.0.0.1:{8080 + i}/") == wanted
        web = pods[1 - i].containers[0]
        for url in (f"http://{address}/", f"http://{gateway}:{8080 + i}/"):
            assert pods[1 - i].execute(web, "/bin/busybox", "wget", "-qO-", url) == (0, f"{wanted}\n", "")
    links, rules, reserved, proxies = left(space)
    assert len(links) == 2
    assert rules
    assert len(reserved) == 4
    assert bool(proxies) == (backend == "proxy")
    # a port that is taken: the kubelet reads in the error by whom
    with pytest.raises(GrpcError) as caught:
        run(runtime_name, f"{name}-late", 8081)
    holder = "python3" if backend == "proxy" else f"container {pods[1].id}"
    assert f"host port 8081/tcp is taken by {holder}" in str(caught.value)
    for pod in pods:
        ids = (pod.id, *pod.containers)
        pod.remove()
        for id in ids:
            assert_nothing_left(space, id)
    assert eventually(lambda: left(space) == ([], "", [], [])), left(space)


def test_a_pod_that_was_killed_is_taken_down_by_the_kubelets_next_call(cni_space: Space, name: str, run: Start) -> None:
    space = cni_space
    pod = run("ocirt", name, 8090)
    found: dict[int, Any] = pod("PodSandboxStatus", {1: pod.id, 2: True})
    assert found[1]
    pids = [line for line in space("ctr", "-n", "k8s.io", "tasks", "ls").out.splitlines() if pod.id in line]
    space("kill", "-KILL", pids[0].split()[1])

    def removed() -> bool:
        try:
            pod.remove()
        except GrpcError:
            return False  # the call met the shim's end; a kubelet comes again
        return True

    assert eventually(removed)
    assert eventually(lambda: left(space) == ([], "", [], [])), left(space)

"""bridge, host-local and portmap by our client, in a "host" of the test's own, with real traffic."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni import config
from ocirt.cni.client import Client
from ocirt.cni.request import Attachment
from ocirt.cni.result import Result
from ocirt.errors import Error
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, Server, ask, ask_udp

OURS = ("lo", "wire", "br0", "sit0")  # sit0 is in every namespace where the kernel has it built in


class Lab:
    """A host with an interface to a neighbour on its wire, and containers on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = Namespace()
        self.outside = Namespace()
        self.containers: dict[str, Namespace] = {}
        with self.host.inside():
            self.host.sh(
                f"""
                ip link set lo up
                ip link add wire type veth peer name wire netns /proc/{os.getpid()}/fd/{self.outside.fd}
                ip addr add 192.0.2.1/24 dev wire
                ip -6 addr add 2001:db8::1/64 dev wire nodad
                ip link set wire up
                """
            )
        self.outside.sh(
            """
            ip link set lo up
            ip addr add 192.0.2.2/24 dev wire
            ip -6 addr add 2001:db8::2/64 dev wire nodad
            ip link set wire up
            """
        )
        self.client = Client(directory=str(directory / "cache"))
        self.servers: list[Server] = []

    def network(self, *plugins: dict[str, Any], name: str = "net1", version: str = "1.1.0") -> config.NetworkList:
        return config.parse(config.dump_json({"cniVersion": version, "name": name, "plugins": list(plugins)}), "test")

    def bridge(self, subnet: str = "10.88.0.0/16", *more: dict[str, str], **keys: Any) -> dict[str, Any]:
        return {
            "type": "bridge",
            "bridge": "br0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.directory / "ipam"),
                "ranges": [[{"subnet": subnet}], *([m] for m in more)],
            },
            **keys,
        }

    def add(self, network: config.NetworkList, container: str, **capabilities: Any) -> Result:
        self.containers.setdefault(container, Namespace())
        with self.host.inside():
            return self.client.add(network, self.attachment(container, capabilities))

    def attachment(self, container: str, capabilities: dict[str, Any] | None = None) -> Attachment:
        inside = self.containers.get(container)
        return Attachment(container, inside.path if inside else "", "eth0", capabilities=capabilities)

    def delete(self, network: config.NetworkList, container: str) -> None:
        with self.host.inside():
            self.client.delete(network, self.attachment(container))

    def check(self, network: config.NetworkList, container: str) -> None:
        with self.host.inside():
            self.client.check(network, self.attachment(container))

    def serve(self, namespace: Namespace, address: str, port: int, kind: int = socket.SOCK_STREAM) -> Server:
        server = Server(namespace, address, port, kind)
        self.servers.append(server)
        return server

    def left(self) -> dict[str, Any]:
        """What attachments leave on a host."""
        with self.host.inside():
            rules = self.host.sh("nft list ruleset")
        return {
            "links": sorted(i["ifname"] for i in self.host.ip("link") if i["ifname"] not in OURS),
            "elements": rules.count("comment"),
            "chains": sorted(w for w in rules.split() if w.startswith(("outgoing-", "hairpin-"))),
            "addresses": sorted(
                p.name for p in (self.directory / "ipam").rglob("*") if p.name[0].isdigit() or p.name[0] == "f"
            ),
            "cache": sorted(p.name for p in (self.directory / "cache" / "results").glob("*")),
        }

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for namespace in (*self.containers.values(), self.outside, self.host):
            namespace.close()


NOTHING = {"links": [], "elements": 0, "chains": [], "addresses": [], "cache": []}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def ip_of(result: Result, family: str = "4") -> str:
    (found,) = [i["address"].split("/")[0] for i in result.ips if (":" in i["address"]) == (family == "6")]
    return found


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


def test_containers_reach_each_other_the_host_and_the_outside(lab: Lab) -> None:
    network = lab.network(lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}))
    one, two = lab.add(network, "one"), lab.add(network, "two")
    assert [i["name"] for i in one.interfaces][::2] == ["br0", "eth0"]
    assert one.ips[0] == {"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 2}
    lab.serve(lab.containers["two"], "10.88.0.3", 80)
    lab.serve(lab.containers["two"], "fd00:88::3", 80)
    outside4 = lab.serve(lab.outside, "192.0.2.2", 80)
    outside6 = lab.serve(lab.outside, "2001:db8::2", 80)
    inside = lab.containers["one"]
    assert ask(inside, "10.88.0.3", 80) == b"hello|10.88.0.2"
    assert ask(inside, "fd00:88::3", 80) == b"hello|fd00:88::2"
    # What leaves the network has the host's address.
    assert ask(inside, "192.0.2.2", 80) == b"hello|192.0.2.1"
    assert ask(inside, "2001:db8::2", 80) == b"hello|2001:db8::1"
    assert outside4.peers == ["192.0.2.1"]
    assert outside6.peers == ["2001:db8::1"]
    assert ask(lab.host, ip_of(two), 80) == b"hello|10.88.0.1"
    lab.check(network, "one")
    lab.delete(network, "one")
    lab.check(network, "two")
    lab.delete(network, "two")
    lab.delete(network, "two")
    assert lab.left() == NOTHING


@pytest.mark.parametrize("filtered", [0, 1], ids=["bridge-nf-off", "bridge-nf-on"])
def test_ports_are_reached_from_everywhere(lab: Lab, filtered: int) -> None:
    # strict, as many hosts have it; and whatever the kernel's default for new interfaces is
    lab.host.sh("for i in all default wire; do echo 1 > /proc/sys/net/ipv4/conf/$i/rp_filter; done")
    network = lab.network(lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}, hairpinMode=True), PORTMAP)
    lab.host.sh(f"echo {filtered} > /proc/sys/net/bridge/bridge-nf-call-iptables")
    lab.host.sh(f"echo {filtered} > /proc/sys/net/bridge/bridge-nf-call-ip6tables")
    mappings = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        # as go-cni sends it
        {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": ""},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "127.0.0.1"},
        {"hostPort": 9000, "containerPort": 9000, "protocol": "tcp", "range": 100},
    ]
    lab.add(network, "web", portMappings=mappings)
    lab.add(network, "neighbour")
    web, neighbour = lab.containers["web"], lab.containers["neighbour"]
    lab.serve(web, "0.0.0.0", 80)
    lab.serve(web, "0.0.0.0", 9042)
    lab.serve(web, "0.0.0.0", 53, socket.SOCK_DGRAM)
    lab.serve(web, "fd00:88::2", 80)
    lab.serve(web, "fd00:88::2", 53, socket.SOCK_DGRAM)
    # From outside the client's address arrives.
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
    assert ask(lab.outside, "2001:db8::1", 8080) == b"hello|2001:db8::2"
    assert ask(lab.outside, "192.0.2.1", 9042) == b"hello|192.0.2.2"
    assert ask_udp(lab.outside, "192.0.2.1", 5353) == b"hello|192.0.2.2"
    assert ask_udp(lab.outside, "2001:db8::1", 5353) == b"hello|2001:db8::2"
    # From the host, by its addresses and by 127.0.0.1.
    assert ask(lab.host, "192.0.2.1", 8080).startswith(b"hello|")
    assert ask(lab.host, "2001:db8::1", 8080).startswith(b"hello|")
    assert ask(lab.host, "127.0.0.1", 8080) == b"hello|10.88.0.1"
    assert ask(lab.host, "127.0.0.1", 8081) == b"hello|10.88.0.1"
    assert ask_udp(lab.host, "127.0.0.1", 5353) == b"hello|10.88.0.1"
    # From a neighbour and from the container itself.
    for client in (neighbour, web):
        for address in ("192.0.2.1", "10.88.0.1"):
            assert ask(client, address, 8080).startswith(b"hello|")
            assert ask_udp(client, address, 5353).startswith(b"hello|")
        assert ask(client, "2001:db8::1", 8080).startswith(b"hello|")
    # A port bound to 127.0.0.1 is not there for others, not even for who forges that destination on the wire.
    with pytest.raises(OSError):
        ask(lab.outside, "192.0.2.1", 8081, timeout=1)
    lab.outside.sh(
        """
        echo 1 > /proc/sys/net/ipv4/conf/wire/route_localnet
        ip route flush table local root 127.0.0.0/8
        ip route add 127.0.0.1/32 via 192.0.2.1 dev wire src 192.0.2.2
        """
    )
    private = lab.serve(web, "0.0.0.0", 81, socket.SOCK_DGRAM)
    with pytest.raises(OSError):
        ask_udp(lab.outside, "127.0.0.1", 8081, timeout=0.5)
    assert private.peers == []
    lab.host.sh("nft flush chain ip ocirt loopback")
    with pytest.raises(OSError):
        ask_udp(lab.outside, "127.0.0.1", 8081, timeout=0.5)
    assert private.peers == ["192.0.2.2"]  # without that chain it arrives
    lab.check(network, "web")
    lab.delete(network, "web")
    lab.delete(network, "neighbour")
    assert lab.left() == NOTHING
    with pytest.raises(OSError):
        ask(lab.outside, "192.0.2.1", 8080, timeout=1)


def test_large_bodies_and_half_close(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    body = os.urandom(20 << 20)
    assert ask(lab.outside, "192.0.2.1", 8080, body, timeout=30) == body + b"|192.0.2.2"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({}, {"hostIP": "192.0.2.1"}),
        ({"hostIP": "192.0.2.1"}, {}),
        ({"hostIP": "192.0.2.1"}, {"hostIP": "192.0.2.1"}),
        ({"range": 100, "hostPort": 8000, "containerPort": 8000}, {}),
        ({}, {"range": 100, "hostPort": 8000, "containerPort": 8000}),
        ({"hostIP": "192.0.2.1"}, {"range": 100, "hostPort": 8000, "containerPort": 8000}),
    ],
)
def test_a_port_of_another_container_is_taken(lab: Lab, first: dict[str, Any], second: dict[str, Any]) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    lab.add(network, "web", portMappings=[{**port, **first}])
    before = lab.left()
    with pytest.raises(Error) as caught:
        lab.add(network, "late", portMappings=[{**port, **second}])
    assert "is taken by container web (network net1, eth0)" in str(caught.value)
    assert lab.left() == before
    # Another protocol or another address of the host is another port.
    lab.add(network, "udp", portMappings=[{**port, **second, "protocol": "udp"}])
    if first.get("hostIP") and second.get("hostIP"):
        lab.add(network, "other", portMappings=[{**port, "hostIP": "127.0.0.1"}])
    lab.check(network, "web")


def test_a_port_of_a_program_is_taken(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    lab.serve(lab.host, "0.0.0.0", 8080)
    with pytest.raises(Error) as caught:
        lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    name = Path("/proc/self/comm").read_text().strip()
    assert f"host port 8080/tcp is taken by {name} (pid {os.getpid()})" in str(caught.value)
    assert lab.left() == NOTHING


def test_a_udp_client_that_goes_on_sending_reaches_the_new_container(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    ports = [{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]
    client = lab.outside.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(("192.0.2.1", 5353))
    client.settimeout(0.3)
    for name in ("one", "two", "three"):
        lab.add(network, name, portMappings=ports)
        lab.serve(lab.containers[name], "0.0.0.0", 53, socket.SOCK_DGRAM)

        def answered() -> bool:
            try:
                client.send(b"hello")
                return client.recv(100) == b"hello|192.0.2.2"
            except OSError:
                return False

        assert eventually(answered, 2)
        lab.delete(network, name)
        for _ in range(3):
            try:
                client.send(b"into the void")
            except OSError:
                pass
    client.close()


def test_delete_works_when_the_namespace_is_gone(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    lab.containers.pop("web").close()
    lab.delete(network, "web")
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


def test_delete_works_without_the_cache(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    for file in (lab.directory / "cache" / "results").iterdir():
        file.unlink()
    lab.containers.pop("web").close()
    lab.delete(network, "web")
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


def test_gc_takes_back_what_nobody_has_any_more(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    for i, name in enumerate(("keep", "lost", "torn")):
        lab.add(network, name, portMappings=[{"hostPort": 8080 + i, "containerPort": 80, "protocol": "tcp"}])
    (lab.directory / "cache" / "results" / "net1-lost-eth0").unlink()
    (lab.directory / "cache" / "results" / "net1-torn-eth0").write_bytes(b"")
    with lab.host.inside():
        lab.client.gc(network, [("keep", "eth0")])
    left = lab.left()
    assert left["addresses"] == ["10.88.0.2"]
    assert left["cache"] == ["net1-keep-eth0"]
    assert len(left["links"]) == 1
    assert left["elements"] == 3  # outgoing, hairpin, one port
    lab.check(network, "keep")
    with lab.host.inside():
        lab.client.gc(network, [])
    assert lab.left() == NOTHING


def test_a_flushed_ruleset_is_found_by_check_and_made_again_by_the_next_add(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    port = {"containerPort": 80, "protocol": "tcp"}
    lab.add(network, "web", portMappings=[{"hostPort": 8080, **port}])
    lab.host.sh("nft flush ruleset")
    with pytest.raises(Error, match="is not masqueraded"):
        lab.check(network, "web")
    lab.add(network, "next", portMappings=[{"hostPort": 8081, **port}])
    lab.check(network, "next")
    lab.delete(network, "web")
    lab.delete(network, "next")
    assert lab.left() == NOTHING


@pytest.mark.parametrize(
    ("network", "ports", "message"),
    [
        ({}, [{"hostPort": 70000, "containerPort": 80}], "invalid hostPort number"),
        ({"bridge": "a/b"}, [], "invalid bridge name"),
        ({"ipam": {"type": "host-local", "subnet": "10.0.0.0/31"}}, [], "too small"),
    ],
)
def test_what_is_refused_leaves_nothing_not_even_in_the_cache(
    lab: Lab, network: dict[str, Any], ports: list[Any], message: str
) -> None:
    with pytest.raises(Error, match=message):
        lab.add(lab.network(lab.bridge(**network), PORTMAP), "web", portMappings=ports)
    assert lab.left() == NOTHING


def test_an_id_whose_namespace_died_without_delete_can_be_attached_again(lab: Lab) -> None:
    network = lab.network(lab.bridge("10.88.0.0/30"), PORTMAP)
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    lab.add(network, "web", portMappings=[port])
    with pytest.raises(Error, match="has interface eth0 in net1 already"):
        lab.add(network, "web")
    lab.containers.pop("web").close()
    result = lab.add(network, "web", portMappings=[port])
    assert [ip["address"] for ip in result.ips] == ["10.88.0.2/30"]
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def test_delete_returns_when_the_link_is_gone_and_holds_no_lock(lab: Lab) -> None:
    """A process of its own waits for the kernel; neither lock nor interface waits for that process."""
    network = lab.network(lab.bridge(), PORTMAP)
    for fails in (False, True):
        for _ in range(5):
            lab.add(network, "web")
            with pytest.MonkeyPatch.context() as patch:
                if fails:
                    patch.setattr(os, "fork", lambda: (_ for _ in ()).throw(OSError(11, "no processes")))
                lab.delete(network, "web")
            with open(lab.directory / "cache" / "locks" / "net1") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert lab.left() == NOTHING
            assert "eth0" not in [i["ifname"] for i in lab.containers["web"].ip("link")]

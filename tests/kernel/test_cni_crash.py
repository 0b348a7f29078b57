"""Whatever moment a runtime is killed at, and whatever is lost: the next DEL or GC leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni import cache, collect, iptables
from ocirt.cni.client import Client
from ocirt.cni.plugins import bandwidth
from ocirt.errors import Error
from ocirt.linux import netlink
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, ask
from tests.kernel.test_cni_bridge import NOTHING, OURS, PORTMAP, Lab
from tests.kernel.test_cni_plugins import IPTABLES_PORT, UDHCPD, ipam

PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
]
CHANGES = ("open", "link", "rename", "unlink", "write", "makedirs", "setxattr")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("OCIRT_CNI_DIRECTORY", str(tmp_path / "cache"))
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(tmp_path / "run"))
    made = Lab(tmp_path)
    yield made
    made.close()


def chain(lab: Lab, **keys: Any) -> Any:
    firewall = {"type": "firewall", "ingressPolicy": "isolated"}
    bridge = lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}, macspoofchk=True)
    return lab.network(bridge, {**PORTMAP, **keys}, firewall)


def kill_at(step: int, action: Callable[..., Any], *what: Any) -> bool:
    """Do `action(*what)` in a child that is killed after its `step`-th change of a file or message to the kernel.

    False if it was through before.
    """
    pid = os.fork()
    if pid == 0:
        try:
            count = 0

            def counted(function: Any) -> Any:
                def call(*arguments: Any, **more: Any) -> Any:
                    nonlocal count
                    result = function(*arguments, **more)
                    count += 1
                    if count == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                return call

            for name in CHANGES:
                setattr(os, name, counted(getattr(os, name)))
            netlink.Socket._send = counted(netlink.Socket._send)  # type: ignore[method-assign]
            for module, name in ((iptables, "_restore"), (bandwidth, "_shape"), (bandwidth, "_redirect")):
                setattr(module, name, counted(getattr(module, name)))
            action(*what)
            os._exit(0)
        except BaseException:
            os._exit(7)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def each_step(lab: Lab, network: Any, crash: str, recover: str) -> int:
    """Kill `crash` at each of its steps, recover, and look; how many steps there were."""
    step = 0
    while True:
        step += 1
        lab.containers["web"] = Namespace()
        attachment = lab.attachment("web", {"portMappings": PORTS})
        with lab.host.inside():
            if crash == "delete":
                lab.client.add(network, attachment)
            action = lab.client.add if crash == "add" else lab.client.delete
            killed = kill_at(step, action, network, attachment)
            if not killed and crash == "add":
                assert step > 20
            if recover == "namespace gone":
                lab.containers["web"].close()
            client = Client(directory=lab.client.directory)
            if recover == "gc":
                client.gc(network, [])
            elif recover == "collect":
                lab.containers["web"].close()
                collect.collect(["net1"], str(lab.directory / "net.d"))
            else:
                client.delete(
                    network, lab.attachment("web") if recover == "delete" else cache.Attachment("web", "", "eth0")
                )
        assert eventually(lambda: lab.left() == NOTHING), (step, lab.left())
        lab.containers.pop("web").close()
        if not killed:
            return step - 1


@pytest.mark.parametrize("recover", ["delete", "namespace gone", "gc", "collect"])
@pytest.mark.parametrize("crash", ["add", "delete"])
def test_killed_after_each_step(lab: Lab, crash: str, recover: str) -> None:
    network = chain(lab)
    (lab.directory / "net.d").mkdir()
    (lab.directory / "net.d" / "net1.conflist").write_bytes(network.data)
    steps = each_step(lab, network, crash, recover)
    assert steps > 10
    # And the same attachment can be made again.
    lab.add(network, "web", portMappings=PORTS)
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"


def by_iptables(lab: Lab) -> list[dict[str, Any]]:
    bridge = lab.bridge("10.88.0.0/16", hairpinMode=True, ipMasqBackend="iptables")
    return [bridge, IPTABLES_PORT, {"type": "firewall", "backend": "iptables"}]


def tuned(lab: Lab) -> dict[str, Any]:
    return {"type": "tuning", "dataDir": str(lab.directory / "tuning"), "mtu": 1300, "promisc": True}


def by_ptp(lab: Lab) -> list[dict[str, Any]]:
    pytest.importorskip("pyroute2")  # here, so that the children needn't import it each
    ptp = {"type": "ptp", "ipMasq": True, "ipam": ipam(lab, "10.77.0.0/24", "fd00:77::/64")}
    rates = {f"{way}{what}": 8_000_000 for way in ("ingress", "egress") for what in ("Rate", "Burst")}
    firewall = {"type": "firewall", "ingressPolicy": "same-bridge"}
    return [ptp, {**PORTMAP, "masqAll": True}, tuned(lab), firewall, {"type": "bandwidth", **rates}]


def by_macvlan(lab: Lab) -> list[dict[str, Any]]:
    return [{"type": "macvlan", "master": "wire", "ipam": ipam(lab, "192.0.2.0/24")}, tuned(lab)]


def by_dhcp(lab: Lab) -> list[dict[str, Any]]:
    return [{"type": "macvlan", "master": "wire", "ipam": {"type": "dhcp", "timeout": 10}}]


def by_overlay(lab: Lab) -> list[dict[str, Any]]:
    (lab.directory / "peers").write_text("192.0.2.1\n192.0.2.2\n")
    addresses = ipam(lab, "10.50.0.0/16")
    overlay = {"type": "overlay", "bridge": "br0", "vni": 42, "peers": str(lab.directory / "peers")}
    return [{**overlay, "isDefaultGateway": True, "ipam": addresses}, PORTMAP]


def left_of_any(lab: Lab) -> dict[str, Any]:
    """As Lab.left, and what is in no table of ours, in the container, and in the processes that serve it."""
    left = lab.left()
    left["elements"] = lab.host.sh("nft list ruleset").count('comment "net1/')
    # an overlay's own interface and watcher are the network's: they go when it has nobody left and GC comes
    left["links"] = [name for name in left["links"] if name != "ocv42"]
    left["rules"] = [line for line in lab.host.sh("iptables-save; ip6tables-save").splitlines() if "ocirt:" in line]
    kept = [*(lab.directory / "tuning").glob("*"), *(lab.directory / "run" / "leases").glob("*")]
    left["files"] = sorted(path.name for path in kept)
    inside = lab.containers["web"]
    left["inside"] = [i["ifname"] for i in inside.ip("link") if i["ifname"] not in OURS] if inside.fd >= 0 else []
    return left


NOTHING_OF_ANY = {**NOTHING, "rules": [], "files": [], "inside": []}


def serving(lab: Lab) -> list[str]:
    """The processes that have a record of this test's open, also one that is deleted."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(f"{lab.directory}/run/"):
                found.append(link.parts[2])
        except OSError:
            continue
    return found


CHAINS: dict[str, tuple[Callable[[Lab], list[dict[str, Any]]], int]] = {
    # how it is made, and of how many steps one is tried: these take their time
    "iptables": (by_iptables, 1),
    "ptp": (by_ptp, 2),
    "macvlan": (by_macvlan, 1),
    "dhcp": (by_dhcp, 3),
    "overlay": (by_overlay, 1),
}


@pytest.fixture
def server(lab: Lab, kind: str) -> Iterator[None]:
    """A DHCP server on the wire, if the chain needs one."""
    if kind != "dhcp":
        yield
        return
    if not shutil.which("busybox"):
        pytest.skip("busybox (for its udhcpd) is not installed")
    (lab.directory / "udhcpd.conf").write_text(UDHCPD.format(lab.directory))
    (lab.directory / "leases").touch()
    with lab.outside.inside():
        command = ["busybox", "udhcpd", "-f", f"{lab.directory}/udhcpd.conf"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(5)


@pytest.mark.parametrize("crash", ["add", "delete"])
@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.usefixtures("server")
def test_other_chains_killed(lab: Lab, kind: str, crash: str) -> None:
    """As above; what recovers changes from step to step."""
    make, stride = CHAINS[kind]
    network = lab.network(*make(lab))
    ports = {"portMappings": PORTS} if kind not in ("macvlan", "dhcp") else {}
    ways = ("delete", "namespace gone", "gc")
    step = 1
    tried = 0
    killed = True
    try:
        while killed:
            lab.containers["web"] = Namespace()
            attachment = lab.attachment("web", ports)
            with lab.host.inside():
                if crash == "delete":
                    lab.client.add(network, attachment)
                killed = kill_at(step, lab.client.add if crash == "add" else lab.client.delete, network, attachment)
                way = ways[tried % len(ways)]
                if way == "namespace gone":
                    lab.containers["web"].close()
                client = Client(directory=lab.client.directory)
                if way == "gc":
                    client.gc(network, [])
                else:
                    here = lab.attachment("web") if way == "delete" else cache.Attachment("web", "", "eth0")
                    client.delete(network, here)
            assert eventually(lambda: left_of_any(lab) == NOTHING_OF_ANY), (step, way, left_of_any(lab))
            lab.containers.pop("web").close()
            step += stride
            tried += 1
        assert tried > 3, step  # the last was through
    finally:
        with lab.host.inside():
            lab.client.gc(network, [])
    assert [p for p in (lab.directory / "run").glob("*/*") if not p.name.startswith(".")] == []
    # nor is there a process whose record is gone
    assert eventually(lambda: serving(lab) == []), serving(lab)


def test_an_attachment_that_crashed_is_made_again_by_add(lab: Lab) -> None:
    network = chain(lab)
    for step in (5, 15, 25, 35):
        lab.containers["web"] = Namespace()
        attachment = lab.attachment("web", {"portMappings": PORTS})
        with lab.host.inside():
            assert kill_at(step, lab.client.add, network, attachment)
            lab.client.add(network, attachment)
            lab.client.check(network, attachment)
            lab.client.delete(network, attachment)
        assert lab.left() == NOTHING
        lab.containers.pop("web").close()


def test_the_proxy_of_a_killed_add_is_found(lab: Lab) -> None:
    network = chain(lab, backend="proxy")
    for step in range(1, 200, 3):
        lab.containers["web"] = Namespace()
        attachment = lab.attachment("web", {"portMappings": PORTS})
        with lab.host.inside():
            killed = kill_at(step, lab.client.add, network, attachment)
            lab.client.delete(network, attachment)
        assert eventually(lambda: lab.host.sh("ss -Htlnu sport = :8080 or sport = :5353") == ""), step
        assert lab.left() == NOTHING
        assert not list((lab.directory / "run" / "proxies").glob("*"))
        lab.containers.pop("web").close()
        if not killed:
            return
    raise AssertionError("never through")


def test_after_a_reboot_everything_is_free(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    network = lab.network(lab.bridge("10.88.0.0/29"), PORTMAP)
    for i in range(5):
        lab.add(network, f"c{i}", portMappings=[{"hostPort": 8080 + i, "containerPort": 80, "protocol": "tcp"}])
    with pytest.raises(Error, match="no IP addresses available"):
        lab.add(network, "late")
    # The machine goes down: namespaces, links and rules are gone, files stay, and say another boot.
    for name in list(lab.containers):
        lab.containers.pop(name).close()
    lab.host.close()
    lab.host = Namespace()
    for file in (lab.directory / "ipam" / "net1").iterdir():
        if file.name[0].isdigit():
            os.setxattr(file, "user.ocirt.boot", b"another-boot")
    for file in (lab.directory / "cache" / "results").iterdir():
        data = json.loads(file.read_text())
        data["ocirt"]["boot"] = "another-boot"
        file.write_text(json.dumps(data))
    with lab.host.inside():
        lab.client.status(network)
    assert lab.add(network, "c0").ips[0]["address"].startswith("10.88.0.")
    for i in range(1, 5):
        lab.add(network, f"new{i}")
    with lab.host.inside():
        lab.client.gc(network, [("c0", "eth0"), *((f"new{i}", "eth0") for i in range(1, 5))])
    left = lab.left()
    assert (len(left["links"]), len(left["addresses"]), len(left["cache"])) == (5, 5, 5)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"kind": "cniCacheV1"}', b"\0" * 100])
def test_a_torn_cache_file_takes_nothing_with_it(lab: Lab, content: bytes) -> None:
    network = chain(lab)
    lab.add(network, "web", portMappings=PORTS)
    lab.add(network, "other")
    (lab.directory / "cache" / "results" / "net1-web-eth0").write_bytes(content)
    lab.containers.pop("web").close()
    os.utime(lab.directory / "cache" / "results" / "net1-web-eth0", (0, 0))
    with lab.host.inside():
        lab.client.gc(network, [("other", "eth0")])
    lab.check(network, "other")
    # a file without a result is no torn one: DEL finds it by its name
    whole = ["net1-other-eth0", "net1-web-eth0"] if b"kind" in content else ["net1-other-eth0"]
    assert lab.left()["cache"] == whole
    lab.delete(network, "web")
    lab.delete(network, "other")
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


def test_a_torn_reservation_is_taken_over(lab: Lab) -> None:
    network = lab.network(lab.bridge("10.88.0.0/30"))
    store = lab.directory / "ipam" / "net1"
    store.mkdir(parents=True)
    (store / "10.88.0.2").write_bytes(b"")
    assert lab.add(network, "web").ips[0]["address"] == "10.88.0.2/30"


def test_many_at_once(lab: Lab) -> None:
    """Eight processes attach and detach without any lock of theirs; nobody gets what another has."""
    network = chain(lab)
    rounds, workers = 6, 8
    read, write = os.pipe()
    pids = []
    with lab.host.inside():
        for worker in range(workers):
            pid = os.fork()
            if pid == 0:
                try:
                    for i in range(rounds):
                        inside = Namespace()
                        port = {"hostPort": 9000 + worker, "containerPort": 80, "protocol": "tcp"}
                        container = f"w{worker}-{i}"
                        attachment = cache.Attachment(container, inside.path, "eth0", (), {"portMappings": [port]})
                        result = lab.client.add(network, attachment)
                        os.write(write, f"+{result.ips[0]['address']}\n".encode())
                        lab.client.check(network, attachment)
                        os.write(write, f"-{result.ips[0]['address']}\n".encode())
                        lab.client.delete(network, attachment)
                        inside.close()
                    os._exit(0)
                except BaseException as error:
                    os.write(write, f"! {error}\n".encode())
                    os._exit(1)
            pids.append(pid)
    os.close(write)
    with open(read) as file:
        lines = file.read().splitlines()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert [line for line in lines if line.startswith("!")] == []
    assert codes == [0] * workers
    held: set[str] = set()
    for line in lines:
        if line[0] == "+":
            assert line[1:] not in held
            held.add(line[1:])
        else:
            held.remove(line[1:])
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


def test_one_port_wanted_by_many_at_once_goes_to_one(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    for kind in ({}, {"hostIP": "192.0.2.1"}):
        pids = []
        with lab.host.inside():
            for worker in range(6):
                pid = os.fork()
                if pid == 0:
                    try:
                        inside = Namespace()
                        # each other one binds to one address, the rest to all
                        port = {
                            "hostPort": 9000,
                            "containerPort": 80,
                            "protocol": "tcp",
                            **(kind if worker % 2 else {}),
                        }
                        attachment = cache.Attachment(f"w{worker}", inside.path, "eth0", (), {"portMappings": [port]})
                        lab.client.add(network, attachment)
                        os._exit(0)
                    except Error as error:
                        os._exit(3 if "is taken by" in str(error) else 4)
                    except BaseException:
                        os._exit(5)
                pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        # two that meet may both give up; never do two have it
        assert codes.count(0) <= 1, codes
        assert codes.count(0) + codes.count(3) == 6, codes
        assert kind or codes.count(0) == 1
        with lab.host.inside():
            lab.client.gc(network, [])
        assert eventually(lambda: lab.left() == NOTHING), lab.left()

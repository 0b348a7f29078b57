"""The plugins besides bridge, host-local and portmap's maps: each by its effect."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni.invoke import invoke
from ocirt.cni.plugins import host_device
from ocirt.cni.request import Request
from ocirt.errors import Error
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, ask, ask_udp
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab, ip_of


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def ipam(lab: Lab, *subnets: str, **keys: Any) -> dict[str, Any]:
    ranges = [[{"subnet": s}] for s in subnets]
    return {"type": "host-local", "dataDir": str(lab.directory / "ipam"), "ranges": ranges, **keys}


def test_loopback(lab: Lab) -> None:
    network = lab.network({"type": "loopback"}, name="lo")
    result = lab.add(network, "web")
    inside = lab.containers["web"]
    assert result.interfaces[0]["name"] == "lo"
    assert {i["address"] for i in result.ips} == {"127.0.0.1/8", "::1/128"}
    assert "UP" in inside.ip("link", "show", "dev", "lo")[0]["flags"]
    lab.check(network, "web")
    inside.sh("ip link set lo down")
    with pytest.raises(Error, match="lo is down"):
        lab.check(network, "web")
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def test_ptp_routes_to_each_container(lab: Lab) -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    network = lab.network(
        {"type": "ptp", "ipMasq": True, "mtu": 1400, "ipam": ipam(lab, "10.77.0.0/24", "fd00:77::/64", routes=routes)},
        PORTMAP,
    )
    lab.add(network, "one", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    lab.add(network, "two")
    lab.serve(lab.containers["one"], "0.0.0.0", 80)
    lab.serve(lab.containers["one"], "fd00:77::2", 80)
    lab.serve(lab.outside, "192.0.2.2", 80)
    assert lab.containers["one"].ip("link", "show", "dev", "eth0")[0]["mtu"] == 1400
    assert ask(lab.containers["two"], "10.77.0.2", 80) == b"hello|10.77.0.3"
    assert ask(lab.containers["two"], "fd00:77::2", 80) == b"hello|fd00:77::3"
    assert ask(lab.containers["two"], "192.0.2.2", 80) == b"hello|192.0.2.1"
    for client in (lab.outside, lab.containers["two"], lab.containers["one"]):
        assert ask(client, "192.0.2.1", 8080).startswith(b"hello|")
    lab.check(network, "one")
    lab.containers.pop("one").close()
    lab.delete(network, "one")
    lab.delete(network, "two")
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


@pytest.mark.parametrize("mode", ["bridge", "private"])
def test_macvlan_is_on_the_wire(lab: Lab, mode: str) -> None:
    network = lab.network(
        {"type": "macvlan", "master": "wire", "mode": mode, "ipam": ipam(lab, "192.0.2.0/24", ranges=[[
            {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.120", "gateway": "192.0.2.2"}
        ]]), "capabilities": {"mac": True}},
    )  # fmt: skip
    result = lab.add(network, "one", mac="02:00:00:00:00:01")
    lab.add(network, "two")
    assert result.interfaces == [
        {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": lab.containers["one"].path}
    ]
    lab.serve(lab.containers["one"], "192.0.2.100", 80)
    assert ask(lab.outside, "192.0.2.100", 80) == b"hello|192.0.2.2"
    if mode == "bridge":
        assert ask(lab.containers["two"], "192.0.2.100", 80) == b"hello|192.0.2.101"
    else:
        with pytest.raises(OSError):
            ask(lab.containers["two"], "192.0.2.100", 80, timeout=0.5)
    with pytest.raises(OSError):
        ask(lab.host, "192.0.2.100", 80, timeout=0.5)  # as macvlan is
    lab.check(network, "one")
    lab.delete(network, "one")
    assert [i["ifname"] for i in lab.containers["one"].ip("link")] == ["lo"]
    lab.delete(network, "two")
    assert lab.left() == NOTHING
    with lab.host.inside(), pytest.raises(Error, match="'nope' does not exist"):
        lab.client.status(lab.network({"type": "macvlan", "master": "nope"}))


def test_macvlan_deletes_its_interface_when_its_ipam_plugin_fails(lab: Lab) -> None:
    plugin = {"type": "macvlan", "master": "wire", "ipam": ipam(lab, "192.0.2.0/24")}
    lab.add(lab.network(plugin), "web")
    config = {**plugin, "cniVersion": "1.1.0", "name": "net1", "ipam": {"type": "nonsense"}}
    request = Request("DEL", config, container="web", netns=lab.containers["web"].path, ifname="eth0")
    with lab.host.inside(), pytest.raises(Error, match="failed to find plugin 'nonsense'"):
        invoke(request)
    assert [i["ifname"] for i in lab.containers["web"].ip("link")] == ["lo"]
    lab.delete(lab.network(plugin), "web")
    assert lab.left() == NOTHING


def test_host_device_comes_back_under_its_name(lab: Lab) -> None:
    lab.host.sh("ip link add dev7 type veth peer name far7; ip link set far7 up; ip addr add 10.7.0.1/24 dev far7")
    static = {"type": "static", "addresses": [{"address": "10.7.0.2/24", "gateway": "10.7.0.1"}]}
    network = lab.network({"type": "host-device", "device": "dev7", "ipam": static})
    with lab.host.inside():
        lab.client.status(network)
    lab.add(network, "web")
    lab.serve(lab.containers["web"], "10.7.0.2", 80)
    assert ask(lab.host, "10.7.0.2", 80) == b"hello|10.7.0.1"
    lab.check(network, "web")
    with lab.host.inside(), pytest.raises(Error, match="failed to find host device 'dev7'"):
        lab.client.status(network)
    lab.delete(network, "web")
    assert lab.host.ip("link", "show", "dev", "dev7")[0]["ifname"] == "dev7"
    assert [i["ifname"] for i in lab.containers["web"].ip("link")] == ["lo"]
    lab.delete(network, "web")


@pytest.mark.parametrize("place", ["hwaddr", "net", "virtio3/net", "deviceID"])
def test_host_device_by_other_names(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    lab.host.sh("ip link add dev7 address 02:00:00:00:0a:07 type veth peer name far7")
    monkeypatch.setattr(host_device, "_PCI", str(tmp_path / "pci"))
    inside = "net" if place in ("hwaddr", "deviceID") else place
    (tmp_path / "pci" / "0000:00:07.0" / inside / "dev7").mkdir(parents=True)
    key: dict[str, Any] = {"hwaddr": "02:00:00:00:0A:07"} if place == "hwaddr" else {"pciBusID": "0000:00:07.0"}
    if place == "deviceID":
        key = {"pciBusID": "0000:00:09.0", "capabilities": {"deviceID": True}}
    network = lab.network({"type": "host-device", **key})
    lab.add(network, "web", deviceID="0000:00:07.0")
    assert [i["ifname"] for i in lab.containers["web"].ip("link")] == ["lo", "eth0"]
    lab.check(network, "web")
    lab.delete(network, "web")
    assert lab.host.ip("link", "show", "dev", "dev7")[0]["ifname"] == "dev7"


def test_host_device_by_its_path_in_the_kernel(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.host.sh("ip link add dev7 type veth peer name far7")
    devices = tmp_path / "devices"
    monkeypatch.setattr(host_device, "_DEVICES", str(devices))
    (devices / "pci0000:00" / "0000:00:07.0" / "net" / "dev7").mkdir(parents=True)
    (devices / "pci0000:00" / "0000:00:08.0").mkdir()
    network = lab.network({"type": "host-device", "kernelpath": f"{devices}/pci0000:00/0000:00:07.0"})
    lab.add(network, "web")
    assert [i["ifname"] for i in lab.containers["web"].ip("link")] == ["lo", "eth0"]
    lab.check(network, "web")
    lab.delete(network, "web")
    assert lab.host.ip("link", "show", "dev", "dev7")[0]["ifname"] == "dev7"
    for path, message in (
        (f"{devices}/pci0000:00/0000:00:08.0", "no network device in .*0000:00:08.0/net"),
        (f"{devices}/../devices/pci0000:00/0000:00:07.0", "must be absolute and in"),
        ("/etc", "must be absolute and in"),
        ("pci0000:00/0000:00:07.0", "must be absolute and in"),
    ):
        with pytest.raises(Error, match=message):
            lab.add(lab.network({"type": "host-device", "kernelpath": path}), "web")
    assert lab.host.ip("link", "show", "dev", "dev7")[0]["ifname"] == "dev7"


def test_a_device_that_a_program_drives_is_not_moved(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_device, "_PCI", str(tmp_path / "pci"))
    (tmp_path / "pci" / "0000:00:07.0").mkdir(parents=True)
    (tmp_path / "pci" / "0000:00:07.0" / "driver").symlink_to("../../drivers/vfio-pci")
    network = lab.network({"type": "host-device", "pciBusID": "0000:00:07.0", "ipam": ipam(lab, "10.88.0.0/16")})
    result = lab.add(network, "web")
    assert (ip_of(result), result.interfaces) == ("10.88.0.2", [])
    lab.check(network, "web")
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def test_static_addresses_from_every_source(lab: Lab) -> None:
    plugin = {"type": "bridge", "bridge": "br0", "capabilities": {"ips": True}}
    static = {
        "type": "static",
        "addresses": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}, {"address": "fd00:9::2/64"}],
    }
    network = lab.network({**plugin, "ipam": static})
    result = lab.add(network, "one")
    assert [i["address"] for i in result.ips] == ["10.9.0.2/24", "fd00:9::2/64"]
    result = lab.add(network, "two", ips=["10.9.0.3/24"])
    assert [i["address"] for i in result.ips] == ["10.9.0.3/24"]
    base = {"cniVersion": "1.1.0", "name": "n", "ipam": static}
    asked = Request("ADD", base, args="IgnoreUnknown=1;IP=10.9.0.4/24,fd00:9::4/64;GATEWAY=10.9.0.1;X=y")
    found = invoke(asked, "static")
    assert found is not None
    assert found.ips == [{"address": "10.9.0.4/24", "gateway": "10.9.0.1"}, {"address": "fd00:9::4/64"}]
    asked = Request("ADD", {**base, "args": {"cni": {"ips": ["10.9.0.5/24"]}}}, args="IP=10.9.0.4/24")
    found = invoke(asked, "static")
    assert found is not None
    assert [i["address"] for i in found.ips] == ["10.9.0.5/24"]
    with pytest.raises(Error, match="expected to be in CIDR notation"):
        invoke(Request("ADD", base, args="IP=10.9.0.4"), "static")


def test_tuning(lab: Lab) -> None:
    tuning = {
        "type": "tuning",
        "dataDir": str(lab.directory / "tuning"),
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mtu": 1300,
        "promisc": True,
        "allmulti": True,
        "txQLen": 77,
        "capabilities": {"mac": True},
    }
    network = lab.network(lab.bridge(), tuning)
    result = lab.add(network, "web", mac="02:00:00:00:00:77")
    inside = lab.containers["web"]
    (link,) = inside.ip("link", "show", "dev", "eth0")
    assert (link["mtu"], link["address"], link["txqlen"]) == (1300, "02:00:00:00:00:77", 77)
    assert {"PROMISC", "ALLMULTI"} <= set(link["flags"])
    assert result.interfaces[2]["mac"] == "02:00:00:00:00:77"
    assert inside.sh("cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/conf/eth0/arp_filter").split() == ["500", "1"]
    lab.check(network, "web")
    inside.sh("echo 400 > /proc/sys/net/core/somaxconn")
    with pytest.raises(Error, match=r"sysctl net\.core\.somaxconn is '400', expected '500'"):
        lab.check(network, "web")
    inside.sh("echo 500 > /proc/sys/net/core/somaxconn; ip link set eth0 mtu 1200")
    with pytest.raises(Error, match="MTU of eth0 is 1200, expected 1300"):
        lab.check(network, "web")
    (kept,) = (lab.directory / "tuning").iterdir()
    assert kept.name == "web_eth0.json"
    lab.delete(network, "web")
    assert not list((lab.directory / "tuning").iterdir())
    assert lab.left() == NOTHING


def test_tuning_switches_off_as_well(lab: Lab) -> None:
    tuning = {"type": "tuning", "dataDir": str(lab.directory / "tuning")}
    on, off = {"allmulti": True, "txQLen": 77, **tuning}, {"allmulti": False, "txQLen": 0, **tuning}
    network = lab.network(lab.bridge(), on, off)
    lab.add(network, "web")
    inside = lab.containers["web"]
    (link,) = inside.ip("link", "show", "dev", "eth0")
    assert ("ALLMULTI" in link["flags"], link.get("txqlen", 0)) == (False, 0)
    with pytest.raises(Error, match="all-multicast mode of eth0 is False, expected True"):
        lab.check(network, "web")
    lab.delete(network, "web")
    assert lab.left() == NOTHING


@pytest.mark.parametrize(
    "key", ["kernel.hostname", "net.../kernel.hostname", "net/../kernel/hostname", "net..x", "vm.swappiness"]
)
def test_tuning_writes_below_net_only(lab: Lab, key: str) -> None:
    network = lab.network(lab.bridge(), {"type": "tuning", "sysctl": {key: "1"}})
    with pytest.raises(Error, match="invalid net sysctl key"):
        lab.add(network, "web")
    assert lab.left() == NOTHING


def throughput(server: Namespace, address: str, client: Namespace, size: int) -> float:
    """Mbit/s of `size` bytes from client to server."""
    listener = server.socket()
    listener.bind((address, 9))
    listener.listen()
    made = client.socket()
    made.connect((address, 9))
    accepted, _ = listener.accept()
    accepted.settimeout(60)
    made.settimeout(60)
    start = time.monotonic()
    import threading

    threading.Thread(target=lambda: (made.sendall(bytes(size)), made.shutdown(socket.SHUT_WR)), daemon=True).start()
    got = 0
    while chunk := accepted.recv(1 << 20):
        got += len(chunk)
    seconds = time.monotonic() - start
    assert got == size
    for one in (accepted, made, listener):
        one.close()
    return size * 8 / seconds / 1e6


def test_bandwidth_limits_both_directions(lab: Lab) -> None:
    limit = {"ingressRate": 40_000_000, "ingressBurst": 800_000, "egressRate": 20_000_000, "egressBurst": 800_000}
    network = lab.network(lab.bridge(), {"type": "bandwidth", "capabilities": {"bandwidth": True}})
    lab.add(network, "free")
    assert throughput(lab.containers["free"], "10.88.0.2", lab.host, 4 << 20) > 200
    result = lab.add(network, "slow", bandwidth=limit)
    assert result.interfaces[3]["name"].startswith("bwp")
    slow = lab.containers["slow"]
    assert 25 < throughput(slow, "10.88.0.3", lab.host, 3 << 20) < 50
    assert 12 < throughput(lab.host, "10.88.0.1", slow, 2 << 20) < 26
    lab.check(network, "slow")
    lab.host.sh(f"tc qdisc del dev {result.interfaces[1]['name']} root")
    with pytest.raises(Error, match=r"is without its limit of 40000000 bit/s"):
        lab.check(network, "slow")
    lab.delete(network, "slow")
    lab.delete(network, "free")
    assert lab.left() == NOTHING
    with pytest.raises(Error, match=r"unshapedSubnets .*limits hold for all addresses"):
        lab.add(network, "wrong", bandwidth={**limit, "unshapedSubnets": ["10.0.0.0/8"]})
    assert lab.left() == NOTHING
    with pytest.raises(Error, match="both must be set, or none"):
        lab.add(lab.network(lab.bridge(), {"type": "bandwidth", "ingressRate": 1}), "wrong")


@pytest.mark.parametrize("filtered", [0, 1], ids=["bridge-nf-off", "bridge-nf-on"])
def test_firewall_keeps_networks_apart(lab: Lab, filtered: int) -> None:
    def network(name: str, subnet: str, policy: str) -> Any:
        bridge = lab.bridge(subnet, bridge=f"br-{name}", hairpinMode=True)
        return lab.network(bridge, PORTMAP, {"type": "firewall", "ingressPolicy": policy}, name=name)

    lab.host.sh(f"echo {filtered} > /proc/sys/net/bridge/bridge-nf-call-iptables")
    red, blue = network("red", "10.1.0.0/24", "same-bridge"), network("blue", "10.2.0.0/24", "isolated")
    green = network("green", "10.3.0.0/24", "open")
    lab.add(red, "red1", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    lab.add(red, "red2")
    lab.add(blue, "blue1")
    lab.add(blue, "blue2")
    lab.add(green, "green1")
    addresses = {"red1": "10.1.0.2", "blue1": "10.2.0.2", "green1": "10.3.0.2"}
    for name, address in addresses.items():
        lab.serve(lab.containers[name], address, 80)
    lab.serve(lab.outside, "192.0.2.2", 80)

    def reaches(client: str, address: str, port: int = 80) -> bool:
        try:
            return ask(lab.containers[client], address, port, timeout=0.4).startswith(b"hello")
        except OSError:
            return False

    assert reaches("red2", "10.1.0.2")
    assert not reaches("blue2", "10.2.0.2")
    assert not reaches("red2", "10.2.0.2")
    assert not reaches("blue1", "10.1.0.2")
    assert reaches("green1", "10.1.0.2")  # an open network is no protected one
    assert reaches("red1", "10.3.0.2")
    # Around the bridge: by way of the gateway the isolated one isn't reached either.
    lab.containers["blue2"].sh("ip route add 10.2.0.2/32 via 10.2.0.1")
    assert not reaches("blue2", "10.2.0.2")
    for client in lab.containers:
        assert reaches(client, "192.0.2.2")
        assert reaches(client, "192.0.2.1", 8080)  # a mapped port is open to all
    for net, name in ((red, "red1"), (blue, "blue1"), (green, "green1")):
        lab.check(net, name)
    lab.host.sh("nft flush set ip ocirt members")
    with pytest.raises(Error, match="is missing in the set members"):
        lab.check(red, "red1")
    for net, name in ((red, "red1"), (red, "red2"), (blue, "blue1"), (blue, "blue2"), (green, "green1")):
        lab.delete(net, name)
    left = lab.left()
    left["links"] = [name for name in left["links"] if not name.startswith("br-")]
    assert left == NOTHING


def test_firewall_keeps_networks_without_a_bridge_apart(lab: Lab) -> None:
    def network(name: str, number: int, policy: str, kind: str = "ptp") -> Any:
        plugin = {"type": kind, "ipam": ipam(lab, f"10.{number}.0.0/24", f"fd00:{number}::/64")}
        if kind == "ptp":
            plugin["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        else:
            plugin.update(bridge="br0", isDefaultGateway=True)
        return lab.network(plugin, PORTMAP, {"type": "firewall", "ingressPolicy": policy}, name=name)

    networks = {
        "red": network("red", 1, "same-bridge"),
        "blue": network("blue", 2, "same-bridge"),
        "alone": network("alone", 3, "isolated"),
        "open": network("open", 4, "open"),
        "bridged": network("bridged", 5, "same-bridge", "bridge"),
    }
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    lab.add(networks["bridged"], "bridged1")
    # tables that were made before there was such a set get it
    lab.host.sh("for i in ip ip6; do nft delete rule $i ocirt forward handle"
                " $(nft -a list chain $i ocirt forward | sed -n 's/.*@neighbours.* handle //p');"
                " nft delete set $i ocirt neighbours; done")  # fmt: skip
    with lab.host.inside():
        lab.client.gc(networks["bridged"], [("bridged1", "eth0")])
    for name in ("red1", "red2", "blue1", "alone1", "alone2", "open1"):
        lab.add(networks[name[:-1]], name, portMappings=[port] if name == "red1" else [])
    where = {"red1": (1, 2), "blue1": (2, 2), "alone1": (3, 2), "open1": (4, 2), "bridged1": (5, 2)}
    for name, (number, last) in where.items():
        lab.serve(lab.containers[name], f"10.{number}.0.{last}", 80)
        lab.serve(lab.containers[name], f"fd00:{number}::{last}", 80)

    def reached(client: str) -> set[str]:
        found: dict[str, list[bool]] = {}
        for name, (number, last) in where.items():
            for address in (f"10.{number}.0.{last}", f"fd00:{number}::{last}"):
                try:
                    answer = ask(lab.containers[client], address, 80, timeout=0.3)
                except OSError:
                    answer = b""
                found.setdefault(name, []).append(answer.startswith(b"hello"))
        assert all(len(set(both)) == 1 for both in found.values()), found  # one family as the other
        return {name for name, both in found.items() if both[0]}

    assert reached("red2") == {"red1", "open1"}
    assert reached("blue1") == {"open1"}
    assert reached("alone2") == {"open1"}
    assert reached("bridged1") == {"open1"}
    assert reached("open1") == {"red1", "blue1", "alone1", "bridged1"}
    for client in ("blue1", "alone2", "red2", "bridged1"):
        assert ask(lab.containers[client], "192.0.2.1", 8080).startswith(b"hello")  # mapped ports are open to all
    lab.check(networks["red"], "red1")
    lab.host.sh("nft flush set ip6 ocirt neighbours")
    with pytest.raises(Error, match="is missing in the set neighbours"):
        lab.check(networks["red"], "red1")
    for name in list(lab.containers):
        lab.delete(networks[name[:-1]], name)
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


def test_spoofed_source_addresses_are_dropped(lab: Lab) -> None:
    network = lab.network(lab.bridge(macspoofchk=True))
    lab.add(network, "one")
    lab.add(network, "two")
    one, two = lab.containers["one"], lab.containers["two"]
    lab.serve(two, "10.88.0.3", 80)
    assert ask(one, "10.88.0.3", 80) == b"hello|10.88.0.2"
    mac = one.ip("link", "show", "dev", "eth0")[0]["address"]
    one.sh("ip link set eth0 address 02:00:00:00:00:99")
    with pytest.raises(OSError):
        ask(one, "10.88.0.3", 80, timeout=0.5)
    one.sh(f"ip link set eth0 address {mac}; ip route replace default via 10.88.0.1")
    assert ask(one, "10.88.0.3", 80) == b"hello|10.88.0.2"
    lab.delete(network, "one")
    lab.delete(network, "two")
    assert lab.left() == NOTHING


def test_gc_after_the_check_of_sources_was_switched_off(lab: Lab) -> None:
    lab.add(lab.network(lab.bridge(macspoofchk=True)), "one")
    for file in (lab.directory / "cache" / "results").iterdir():
        file.unlink()  # nobody knows any more what was on
    assert lab.left()["elements"] > 1
    with lab.host.inside():
        lab.client.gc(lab.network(lab.bridge()), [])
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


IPTABLES_PORT = {**PORTMAP, "backend": "iptables"}


def test_iptables_as_a_backend(lab: Lab) -> None:
    bridge = lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}, hairpinMode=True, ipMasqBackend="iptables")
    network = lab.network(bridge, IPTABLES_PORT, {"type": "firewall", "backend": "iptables"})
    lab.host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    ports = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 9000, "containerPort": 9000, "protocol": "tcp", "range": 10},
    ]
    with lab.host.inside():
        lab.client.status(network)
    lab.add(network, "web", portMappings=ports)
    lab.add(network, "other")
    web = lab.containers["web"]
    lab.serve(web, "0.0.0.0", 80)
    lab.serve(web, "0.0.0.0", 9005)
    lab.serve(web, "fd00:88::2", 80)
    lab.serve(web, "0.0.0.0", 53, socket.SOCK_DGRAM)
    lab.serve(lab.outside, "192.0.2.2", 80)
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
    assert ask(lab.outside, "2001:db8::1", 8080) == b"hello|2001:db8::2"
    assert ask(lab.outside, "192.0.2.1", 9005) == b"hello|192.0.2.2"
    assert ask_udp(lab.outside, "192.0.2.1", 5353) == b"hello|192.0.2.2"
    for client in (lab.host, lab.containers["other"], web):
        assert ask(client, "192.0.2.1", 8080).startswith(b"hello|")
    assert ask(lab.host, "127.0.0.1", 8080) == b"hello|10.88.0.1"
    assert ask(web, "192.0.2.2", 80) == b"hello|192.0.2.1"
    lab.check(network, "web")
    with pytest.raises(Error, match="host port 8080/tcp is taken by container web"):
        lab.add(network, "late", portMappings=ports[:1])
    lab.containers.pop("web").close()
    lab.delete(network, "web")
    lab.delete(network, "other")
    rules = lab.host.sh("iptables-save; ip6tables-save")
    assert "ocirt:" not in rules
    left = lab.left()
    left["elements"] = 0  # comments of the shared rules
    assert left == NOTHING


class Hosts:
    """Two hosts on one wire, each with a bridge of the same overlay."""

    def __init__(self, directory: Path, six: bool) -> None:
        self.labs = [Lab(directory / name) for name in ("a", "b")]
        one, other = (made.host for made in self.labs)
        one.sh(f"ip link add under mtu 1500 type veth peer name under netns /proc/{os.getpid()}/fd/{other.fd}")
        self.peers = directory / "peers"
        self.peers.mkdir()
        addresses = ["fd00:1::1", "fd00:1::2"] if six else ["172.16.0.1", "172.16.0.2"]
        for made, address in zip(self.labs, addresses, strict=True):
            nodad = "nodad" if six else ""
            made.host.sh(f"ip addr add {address}/{64 if six else 24} dev under {nodad}; ip link set under up")
            (self.peers / made.directory.name).write_text(f"# a host\n{address}\n")

    def close(self) -> None:
        for made in self.labs:
            made.host.run("ip", "link", "del", "ocv42", check=False)  # what watches the peers ends with it
            made.close()


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_overlay_joins_containers_of_two_hosts(tmp_path: Path, six: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(tmp_path / "run"))
    hosts = Hosts(tmp_path, six)
    networks = []
    try:
        for i, lab in enumerate(hosts.labs):
            ranges = [[{
                "subnet": "10.50.0.0/16", "rangeStart": f"10.50.{i}.2", "rangeEnd": f"10.50.{i}.250",
                "gateway": f"10.50.{i}.1",
            }]]  # fmt: skip
            plugin = {
                "type": "overlay", "vni": 42, "peers": str(hosts.peers), "isDefaultGateway": True, "ipMasq": True,
                "ipam": {"type": "host-local", "dataDir": str(lab.directory / "ipam"), "ranges": ranges},
            }  # fmt: skip
            networks.append(lab.network(plugin, PORTMAP, name="over"))
        one, two = hosts.labs
        one.add(networks[0], "one")
        two.add(networks[1], "two", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
        two.serve(two.containers["two"], "0.0.0.0", 80)
        client = one.containers["one"]
        assert client.ip("link", "show", "dev", "eth0")[0]["mtu"] == (1430 if six else 1450)
        assert ask(client, "10.50.1.2", 80) == b"hello|10.50.0.2"
        body = os.urandom(5 << 20)
        assert ask(client, "10.50.1.2", 80, body, timeout=30) == body + b"|10.50.0.2"
        assert ask(two.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
        one.check(networks[0], "one")
        # A third host comes, the second goes: the file says so, and the kernel is told at once.
        second, third = ("fd00:1::2", "fd00:1::9") if six else ("172.16.0.2", "172.16.0.9")

        def flooded() -> set[str]:
            lines = one.host.sh("bridge fdb show dev ocv42").splitlines()
            return {line.partition("dst ")[2].split()[0] for line in lines if line.startswith("00:00:00:00:00:00")}

        assert flooded() == {second}
        (hosts.peers / "c").write_text(f"{third}\n")
        assert eventually(lambda: flooded() == {second, third})
        (hosts.peers / "b").rename(tmp_path / "aside")
        assert eventually(lambda: flooded() == {third})
        (hosts.peers / "c").write_text("no address\n")  # a mistake takes nobody away
        time.sleep(0.3)
        assert flooded() == {third}
        (hosts.peers / "c").write_text(f"{third}\n")
        (tmp_path / "aside").rename(hosts.peers / "b")
        assert eventually(lambda: flooded() == {second, third})
        one.check(networks[0], "one")
        assert len(list((tmp_path / "run" / "overlays").iterdir())) == 2
        one.delete(networks[0], "one")
        two.delete(networks[1], "two")
        for lab, network in zip(hosts.labs, networks, strict=True):
            with lab.host.inside():
                lab.client.gc(network, [])
            left = lab.left()
            assert [n for n in left.pop("links") if n not in ("under", "oco42")] == []
            assert left == {k: v for k, v in NOTHING.items() if k != "links"}
        assert list((tmp_path / "run" / "overlays").iterdir()) == []
    finally:
        hosts.close()


def test_an_overlay_by_another_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(tmp_path / "run"))
    hosts = Hosts(tmp_path, six=False)
    try:
        networks = []
        for i, lab in enumerate(hosts.labs):
            addresses = {"type": "static", "addresses": [{"address": f"10.50.0.{i + 1}/24"}]}
            plugin = {"type": "overlay", "vni": 42, "port": 4790, "peers": ["172.16.0.1", "172.16.0.2"]}
            networks.append(lab.network({**plugin, "ipam": addresses}, name="over"))
            lab.add(networks[i], "web")
        one, two = hosts.labs
        two.serve(two.containers["web"], "0.0.0.0", 80)
        assert ask(one.containers["web"], "10.50.0.2", 80) == b"hello|10.50.0.1"
        (link,) = one.host.ip("link", "show", "dev", "ocv42")
        assert link["linkinfo"]["info_data"]["port"] == 4790
        for lab, network in zip(hosts.labs, networks, strict=True):
            lab.check(network, "web")
            lab.delete(network, "web")
            with lab.host.inside():
                lab.client.gc(network, [])
        for port in (0, -1, 65536):
            with pytest.raises(Error, match=f"invalid port {port}.*must be 1 to 65535"):
                one.add(one.network({"type": "overlay", "vni": 43, "port": port, "peers": []}), "web")
    finally:
        hosts.close()


UDHCPD = """
start 192.0.2.150
end 192.0.2.160
interface wire
lease_file {0}/leases
auto_time 1
pidfile {0}/pid
opt subnet 255.255.255.0
opt router 192.0.2.2
opt dns 192.0.2.53
opt domain example.org
opt lease 3600
"""


@pytest.mark.skipif(not shutil.which("busybox"), reason="busybox (for its udhcpd) is not installed")
@pytest.mark.parametrize("kind", ["macvlan", "bridge"])
def test_an_address_from_a_dhcp_server(lab: Lab, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(lab.directory / "run"))
    (lab.directory / "udhcpd.conf").write_text(UDHCPD.format(lab.directory))
    (lab.directory / "leases").touch()
    with lab.outside.inside():
        server = subprocess.Popen(
            ["busybox", "udhcpd", "-f", f"{lab.directory}/udhcpd.conf"], stderr=subprocess.DEVNULL
        )
    try:
        plugin: dict[str, Any] = {"type": "macvlan", "master": "wire"}
        if kind == "bridge":
            lab.host.sh("ip addr flush dev wire; ip link add br0 up type bridge; ip link set wire master br0")
            plugin = {"type": "bridge", "bridge": "br0"}
        network = lab.network({**plugin, "ipam": {"type": "dhcp", "timeout": 10}})
        with lab.host.inside():
            lab.client.status(network)
        result = lab.add(network, "web")
        (ip,) = result.ips
        assert 150 <= int(ip["address"].removeprefix("192.0.2.").removesuffix("/24")) <= 160
        assert result.dns == {"nameservers": ["192.0.2.53"], "domain": "example.org"}
        inside = lab.containers["web"]
        lab.serve(inside, "0.0.0.0", 80)
        assert ask(lab.outside, ip["address"].split("/")[0], 80) == b"hello|192.0.2.2"
        assert "default via 192.0.2.2" in inside.sh("ip route")
        assert len(list((lab.directory / "run" / "leases").iterdir())) == 1
        lab.check(network, "web")
        lab.delete(network, "web")
        assert list((lab.directory / "run" / "leases").iterdir()) == []
        lab.delete(network, "web")
        # What is told and asked for can be chosen.
        keys = {
            "type": "dhcp",
            "priority": 77,
            "provide": [{"option": "host-name", "value": "box"}, {"option": "60", "fromArg": "CLASS"}],
            "request": [{"skipDefault": True}, {"option": "routers"}],
        }
        result = lab.add(lab.network({**plugin, "ipam": keys}), "web")
        assert result.dns == {}
        assert [r.get("metric") for r in inside.ip("route", "show", "default")] == [77]
        assert eventually(lambda: b"box\0" in (lab.directory / "leases").read_bytes())
        lab.delete(network, "web")
        with pytest.raises(Error, match=r"ipam\.provide\[0\]\.option 50"):
            lab.add(lab.network({**plugin, "ipam": {"type": "dhcp", "provide": [{"option": 50}]}}), "web")
        # Released: the next one may have it. A server that doesn't answer is an error, and nothing stays.
        assert eventually(lambda: lab.left() == NOTHING), lab.left()
        server.terminate()
        server.wait(5)
        network = lab.network({**plugin, "ipam": {"type": "dhcp", "timeout": 1}})
        with pytest.raises(Error, match="no DHCP server has answered"):
            lab.add(network, "late")
        assert eventually(lambda: lab.left() == NOTHING), lab.left()
    finally:
        with lab.host.inside():
            lab.client.gc(
                lab.network({**plugin, "ipam": {"type": "dhcp"}}), []
            )  # a test that has failed leaves no process either
        if server.poll() is None:
            server.terminate()
            server.wait(5)

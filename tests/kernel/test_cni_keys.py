"""Keys of the plugins that no other test is about: each by what the kernel has, or the result says, afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni.invoke import invoke
from ocirt.cni.plugins import tuning
from ocirt.cni.request import Request
from ocirt.cni.result import Result
from ocirt.errors import Error
from tests.kernel.netlab import Namespace, ask
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab

PORT = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def attached(lab: Lab, *plugins: dict[str, Any], **capabilities: Any) -> Iterator[Result]:
    """Attached as `plugins` say, for the body of a `for`; then CHECK, STATUS and DEL must be content."""
    network = lab.network(*plugins)
    yield lab.add(network, "web", **capabilities)
    lab.check(network, "web")
    with lab.host.inside():
        lab.client.status(network)
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def link(namespace: Namespace, name: str) -> Any:
    (found,) = namespace.ip("link", "show", "dev", name)
    return found


def test_another_address_of_the_bridge(lab: Lab) -> None:
    lab.host.sh("ip link add br0 type bridge; ip addr add 10.5.0.1/24 dev br0; ip link set br0 up")
    with pytest.raises(Error, match=r"already has an IP address different from .*: it has 10\.5\.0\.1/24"):
        lab.add(lab.network(lab.bridge()), "web")
    assert lab.left() == NOTHING
    for _ in attached(lab, lab.bridge(forceAddress=True)):
        assert [a["local"] for a in lab.host.ip("-4", "addr", "show", "br0")[0]["addr_info"]] == ["10.88.0.1"]


def test_a_promiscuous_bridge(lab: Lab) -> None:
    for _ in attached(lab, lab.bridge(promiscMode=True)):
        assert link(lab.host, "br0")["promiscuity"] == 1


def test_an_interface_that_is_left_down(lab: Lab) -> None:
    for _ in attached(lab, {"type": "bridge", "bridge": "br0", "disableContainerInterface": True}):
        assert "UP" not in link(lab.containers["web"], "eth0")["flags"]
    with pytest.raises(Error, match="cannot use IPAM when disableContainerInterface is set"):
        lab.add(lab.network(lab.bridge(disableContainerInterface=True)), "web")


@pytest.mark.parametrize("mode", ["vepa", "passthru"])
def test_modes_of_macvlan(lab: Lab, mode: str) -> None:
    plugin = {**lab.bridge(), "type": "macvlan", "master": "wire", "mode": mode, "bcqueuelen": 2000}
    for _ in attached(lab, plugin):
        data = link(lab.containers["web"], "eth0")["linkinfo"]["info_data"]
        assert (data["mode"], data["bcqueuelen"]) == (mode, 2000)


def test_macvlan_on_an_interface_of_the_container(lab: Lab) -> None:
    inside = lab.containers["web"] = Namespace()
    inside.sh("ip link add m0 type veth peer name m1; ip link set m0 up; ip link set m1 up")
    for _ in attached(lab, {**lab.bridge(), "type": "macvlan", "master": "m0", "linkInContainer": True}):
        assert link(inside, "eth0")["link"] == "m0"


def test_the_runtimes_ranges_come_first(lab: Lab) -> None:
    plugin = lab.bridge(capabilities={"ipRanges": True})
    for result in attached(lab, plugin, ipRanges=[[{"subnet": "10.99.0.0/24"}]]):
        assert [i["address"] for i in result.ips] == ["10.99.0.2/24", "10.88.0.2/16"]


def test_what_host_local_says_besides_addresses(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 8.8.4.4\nsearch a b\noptions ndots:3\n")
    plugin = lab.bridge()
    plugin["ipam"]["resolvConf"] = str(tmp_path / "resolv.conf")
    plugin["ipam"]["routes"] = [
        {"dst": "10.200.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 77, "table": 100},
        {"dst": "10.201.0.0/16", "scope": 253},
        {"dst": "10.202.0.0/16", "gw": "10.88.0.9"},
    ]
    for result in attached(lab, plugin):
        assert result.dns == {"nameservers": ["8.8.4.4"], "search": ["a", "b"], "options": ["ndots:3"]}
        routes = lab.containers["web"].sh("ip route show table all").splitlines()
        assert [r.strip() for r in routes if r.startswith("10.20")] == [
            "10.200.0.0/16 via 10.88.0.1 dev eth0 table 100 metric 77 mtu 1300 advmss 1200",
            "10.201.0.0/16 dev eth0 scope link",
            "10.202.0.0/16 via 10.88.0.9 dev eth0",
        ]


def test_who_the_container_sees(lab: Lab) -> None:
    for keys, peer in (({"masqAll": True}, b"10.88.0.1"), ({"snat": False}, b"192.0.2.2")):
        for _ in attached(lab, lab.bridge(), {**PORTMAP, **keys}, portMappings=[PORT]):
            server = lab.serve(lab.containers["web"], "0.0.0.0", 80)
            assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|" + peer
            assert ("jump hairpin" in lab.host.sh("nft list ruleset")) == ("snat" not in keys)
            server.close()


@pytest.mark.parametrize("args", ["MAC=02:00:00:00:00:05", "IgnoreUnknown=true;MAC=02:00:00:00:00:05;K8S=1"])
def test_a_mac_by_arguments(lab: Lab, args: str) -> None:
    config = {**lab.bridge(), "cniVersion": "1.1.0", "name": "net1"}
    inside = lab.containers["web"] = Namespace()
    request = Request("ADD", config, container="web", netns=inside.path, ifname="eth0", args=args)
    with lab.host.inside():
        invoke(request)
        assert link(inside, "eth0")["address"] == "02:00:00:00:00:05"
        invoke(request.again(command="DEL"))
    assert lab.left() == NOTHING


def test_sysctls_that_are_not_on_the_list(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = tmp_path / "allowlist.conf"
    allowed.write_text("# comment\n^net\\.core\\.\n\n")
    monkeypatch.setattr(tuning, "_ALLOWLIST", str(allowed))
    for _ in attached(lab, lab.bridge(), {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}):
        pass
    network = lab.network(lab.bridge(), {"type": "tuning", "sysctl": {"net.ipv4.ip_forward": "1"}})
    with pytest.raises(Error, match=r"Sysctl net\.ipv4\.ip_forward is not allowed"):
        lab.add(network, "web")
    assert lab.left() == NOTHING

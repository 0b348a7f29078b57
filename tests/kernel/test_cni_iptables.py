"""The keys that only the backends of iptables have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni import reload
from ocirt.cni.request import DEFAULT_PATH
from ocirt.errors import Error
from tests.kernel.netlab import ask, family_of
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab

pytestmark = pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
PORT = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def gone(lab: Lab) -> bool:
    left = lab.left()
    left["elements"] = 0  # comments of the rules that all share
    return left == NOTHING and "ocirt:" not in lab.host.sh("iptables-save; ip6tables-save")


@pytest.mark.parametrize(
    ("keys", "mark"),
    [({}, "0x2000/0x2000"), ({"markMasqBit": 0}, "0x1/0x1"), ({"markMasqBit": 31}, "0x80000000/0x80000000")],
)
def test_marks_of_what_is_masqueraded(lab: Lab, keys: dict[str, Any], mark: str) -> None:
    bridge = lab.bridge(ipMasqBackend="iptables", hairpinMode=True)
    network = lab.network(bridge, {**PORTMAP, "backend": "iptables", **keys})
    lab.add(network, "web", portMappings=[PORT])
    lab.add(network, "other")
    rules = lab.host.sh("iptables-save -t nat")
    assert f"--set-xmark {mark}" in rules
    assert f"-A CNI-HOSTPORT-MASQ -m mark --mark {mark} -j MASQUERADE" in rules
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    for client in (lab.host, lab.containers["other"], lab.containers["web"]):
        assert ask(client, "192.0.2.1", 8080).startswith(b"hello|")
    lab.add(network, "again", portMappings=[{**PORT, "hostPort": 8081}])
    assert lab.host.sh("iptables-save -t nat").count(f"--set-xmark {mark}") == 1, "what is shared is made once"
    for name in ("web", "other", "again"):
        lab.delete(network, name)
    assert gone(lab)


def test_another_programs_chain_marks(lab: Lab) -> None:
    lab.host.sh("iptables -t nat -N KUBE-MARK-MASQ; ip6tables -t nat -N KUBE-MARK-MASQ")
    plugin = {**PORTMAP, "backend": "iptables", "externalSetMarkChain": "KUBE-MARK-MASQ"}
    network = lab.network(lab.bridge(ipMasqBackend="iptables"), plugin)
    lab.add(network, "web", portMappings=[PORT])
    rules = lab.host.sh("iptables-save -t nat")
    assert rules.count("-j KUBE-MARK-MASQ") == 2
    assert "SETMARK" not in rules
    lab.delete(network, "web")
    assert gone(lab)
    both = lab.network(lab.bridge(), {**plugin, "markMasqBit": 14})
    with pytest.raises(Error, match="cannot specify externalSetMarkChain and markMasqBit"):
        lab.add(both, "web", portMappings=[PORT])


def test_conditions_choose_iptables(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As configurations for the reference plugin have them, without a backend."""
    monkeypatch.setenv("OCIRT_CNI_DIRECTORY", str(lab.directory / "cache"))
    conditions = {"conditionsV4": ["!", "-s", "192.0.2.2"], "conditionsV6": ["!", "-s", "2001:db8::2"]}
    lab.outside.sh("ip addr add 192.0.2.3/24 dev wire; ip -6 addr add 2001:db8::3/64 dev wire nodad")
    network = lab.network(lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}), {**PORTMAP, **conditions})
    lab.add(network, "web", portMappings=[PORT])
    lab.serve(lab.containers["web"], "::", 80)
    for host, refused, taken in (
        ("192.0.2.1", "192.0.2.2", "192.0.2.3"),
        ("2001:db8::1", "2001:db8::2", "2001:db8::3"),
    ):
        for source in (refused, taken):
            with lab.outside.socket(family_of(host)) as client:
                client.bind((source, 0))
                assert (client.connect_ex((host, 8080)) == 0) == (source == taken), source
    with lab.host.inside():
        before = lab.host.sh("iptables-save -t nat; nft list table ip ocirt")
        assert reload.reload(str(lab.directory)) == ["net1: web eth0"]
        assert lab.host.sh("iptables-save -t nat; nft list table ip ocirt").count("8080") == before.count("8080")
    lab.check(network, "web")
    lab.delete(network, "web")
    assert gone(lab)


def test_the_administrators_chain_is_asked_first(lab: Lab) -> None:
    lab.host.sh("iptables -P FORWARD DROP")
    firewall = {"type": "firewall", "iptablesAdminChainName": "MINE"}
    network = lab.network(lab.bridge(), PORTMAP, firewall)
    lab.add(network, "web", portMappings=[PORT])
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
    lab.host.sh("iptables -A MINE -s 192.0.2.2 -j DROP")
    with pytest.raises(OSError, match="timed out"):
        ask(lab.outside, "192.0.2.1", 8080, timeout=1)
    lab.delete(network, "web")
    assert gone(lab)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            {"type": "firewall", "backend": "nftables", "iptablesAdminChainName": "MINE"},
            "iptablesAdminChainName 'MINE' needs iptables",
        ),
        ({"type": "firewall", "firewalldZone": "trusted"}, "firewalldZone 'trusted'"),
        ({"type": "firewall", "firewalldZone": "trusted", "backend": "nftables"}, "firewalldZone 'trusted'"),
        ({**PORTMAP, "backend": "proxy", "conditionsV4": ["-s", "10.0.0.0/8"]}, "conditionsV4 .* needs iptables"),
        ({**PORTMAP, "backend": "iptables", "externalSetMarkChain": "a b"}, "must be the name of a chain"),
        ({**PORTMAP, "backend": "iptables", "conditionsV4": ["-s\n-A INPUT"]}, "must be words without spaces"),
    ],
)
def test_keys_that_would_do_nothing_or_harm_are_refused(lab: Lab, plugin: dict[str, Any], message: str) -> None:
    network = lab.network(lab.bridge(), plugin)
    with pytest.raises(Error, match=message):
        lab.add(network, "web", portMappings=[PORT])
    assert gone(lab)


def test_ptp_masquerades_by_iptables(lab: Lab) -> None:
    ranges = [[{"subnet": "10.77.0.0/24"}]]
    ipam = {
        "type": "host-local",
        "dataDir": str(lab.directory / "ipam"),
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    network = lab.network({"type": "ptp", "ipMasq": True, "ipMasqBackend": "iptables", "ipam": ipam})
    lab.add(network, "web")
    lab.serve(lab.outside, "192.0.2.2", 80)
    assert ask(lab.containers["web"], "192.0.2.2", 80) == b"hello|192.0.2.1"
    assert "table ip ocirt" not in lab.host.sh("nft list ruleset")
    lab.containers.pop("web").close()
    with lab.host.inside():
        lab.client.gc(network, [])
    assert gone(lab)


@pytest.mark.parametrize("backend", ["nftables", "iptables", "proxy"])
def test_a_port_of_an_address_that_the_host_lacks(lab: Lab, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(lab.directory / "run"))
    network = lab.network(lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}), {**PORTMAP, "backend": backend})
    for address in ("198.51.100.77", "2001:db8::77"):
        text = f"host port {address}:8080/tcp: the host has no address {address}"
        with pytest.raises(Error, match=text):
            lab.add(network, "web", portMappings=[{**PORT, "hostIP": address}])
    assert gone(lab)
    lab.add(network, "web", portMappings=[{**PORT, "hostIP": a} for a in ("192.0.2.1", "127.0.0.1", "2001:db8::1")])
    lab.delete(network, "web")
    # a host that may bind to others' addresses expects them to come later
    lab.host.sh("echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind")
    lab.add(network, "web", portMappings=[{**PORT, "hostIP": "198.51.100.77"}])
    lab.delete(network, "web")
    assert gone(lab)


def test_a_zone_of_firewalld_means_nothing_to_iptables(lab: Lab) -> None:
    network = lab.network(lab.bridge(), {"type": "firewall", "backend": "iptables", "firewalldZone": "trusted"})
    lab.add(network, "web")
    lab.check(network, "web")
    lab.delete(network, "web")
    assert gone(lab)


@pytest.mark.parametrize("backend", ["nftables", "iptables", "proxy"])
def test_only_the_proxy_holds_its_ports(lab: Lab, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(lab.directory / "run"))
    network = lab.network(lab.bridge(), {**PORTMAP, "backend": backend})
    lab.add(network, "web", portMappings=[PORT])
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    if backend == "proxy":
        with lab.host.socket() as late, pytest.raises(OSError, match="in use"):
            late.bind(("0.0.0.0", 8080))
    else:
        # as docs/networking.md says: it may, and hears nothing from outside
        late_server = lab.serve(lab.host, "0.0.0.0", 8080)
        assert ask(lab.outside, "192.0.2.1", 8080).startswith(b"hello|")
        assert late_server.peers == []
    lab.delete(network, "web")
    assert gone(lab)


@pytest.mark.parametrize("first", ["nftables", "proxy", "iptables", "reference"])
@pytest.mark.parametrize("second", ["nftables", "proxy", "iptables"])
def test_a_port_is_taken_whatever_maps_it(lab: Lab, first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(lab.directory / "run"))
    backend = {} if first == "reference" else {"backend": first}
    one = lab.network(lab.bridge(), {**PORTMAP, **backend}, version="1.0.0")
    two = lab.network(lab.bridge("10.89.0.0/16", bridge="br1"), {**PORTMAP, "backend": second}, name="net2")
    if first == "reference":
        if not Path("/usr/lib/cni/portmap").exists():
            pytest.skip("containernetworking-plugins is not installed")
        lab.client.path = ("/usr/lib/cni",)
    lab.add(one, "web", portMappings=[PORT])
    lab.client.path = DEFAULT_PATH
    with pytest.raises(Error, match="host port 8080/tcp is taken by"):
        lab.add(two, "late", portMappings=[PORT])
    lab.add(two, "other", portMappings=[{**PORT, "hostPort": 8081}])
    lab.delete(two, "other")
    if first == "reference":
        lab.client.path = ("/usr/lib/cni",)
    lab.delete(one, "web")

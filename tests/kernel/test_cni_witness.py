"""pyroute2 as the witness of our own netlink: what it reads is what was asked for, and what our module reads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni.address import cidr_text, ip_text
from ocirt.linux import netlink_route as route
from tests.kernel.netlab import Namespace
from tests.kernel.test_cni_bridge import PORTMAP, Lab

pyroute2 = pytest.importorskip("pyroute2", reason="the Python package pyroute2 is not installed")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


class Witness:
    """What pyroute2 tells of a namespace."""

    def __init__(self, where: Namespace) -> None:
        with where.inside(), pyroute2.IPRoute() as ip:
            self.links: list[Any] = list(ip.get_links())
            self.addresses: list[Any] = list(ip.get_addr())
            self.routes: list[Any] = list(ip.get_routes())

    def link(self, name: str) -> Any:
        (found,) = [link for link in self.links if link.get_attr("IFLA_IFNAME") == name]
        return found


def kind(link: Any) -> str:
    return link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""


def test_what_we_make_is_what_pyroute2_sees(lab: Lab) -> None:
    routes = [{"dst": "10.1.0.0/16", "gw": "10.88.0.9", "priority": 77, "mtu": 1300, "advmss": 1200}]
    keys = {"mtu": 1400, "hairpinMode": True, "portIsolation": True, "capabilities": {"mac": True}}
    bridge = lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}, **keys)
    bridge["ipam"]["routes"] = routes
    network = lab.network(bridge, PORTMAP)
    result = lab.add(network, "web", mac="02:00:00:00:00:55")
    host, inside = Witness(lab.host), Witness(lab.containers["web"])
    names = [i["name"] for i in result.interfaces]
    br, port, eth = host.link(names[0]), host.link(names[1]), inside.link("eth0")
    assert (kind(br), kind(port), kind(eth)) == ("bridge", "veth", "veth")
    assert port.get_attr("IFLA_MASTER") == br["index"]
    assert port.get_attr("IFLA_IFALIAS") == "ocirt:net1/web/eth0"
    assert [link.get_attr("IFLA_MTU") for link in (br, port, eth)] == [1400] * 3
    assert [link.get_attr("IFLA_OPERSTATE") for link in (br, port, eth)] == ["UP"] * 3
    assert eth.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:55"
    assert [i["mac"] for i in result.interfaces] == [link.get_attr("IFLA_ADDRESS") for link in (br, port, eth)]
    slave = port.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
    assert (slave.get_attr("IFLA_BRPORT_MODE"), slave.get_attr("IFLA_BRPORT_ISOLATED")) == (1, 1)
    own = {
        f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}"
        for a in inside.addresses
        if a["index"] == eth["index"] and a["scope"] == 0
    }
    assert own == {ip["address"] for ip in result.ips} == {"10.88.0.2/16", "fd00:88::2/64"}
    gateways = {r.get_attr("RTA_GATEWAY") for r in inside.routes if r["dst_len"] == 0 and r["table"] == 254}
    assert gateways == {"10.88.0.1", "fd00:88::1"}
    (extra,) = [r for r in inside.routes if r.get_attr("RTA_DST") == "10.1.0.0"]
    assert (extra.get_attr("RTA_GATEWAY"), extra.get_attr("RTA_PRIORITY")) == ("10.88.0.9", 77)
    metrics = extra.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU"), metrics.get_attr("RTAX_ADVMSS")) == (1300, 1200)
    lab.delete(network, "web")
    assert not any(link.get_attr("IFLA_IFNAME") == names[1] for link in Witness(lab.host).links)


def test_we_read_what_pyroute2_reads(lab: Lab) -> None:
    network = lab.network(lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}), PORTMAP)
    for name in ("one", "two"):
        lab.add(network, name)
    lab.host.sh("ip route add blackhole 10.200.0.0/16; ip route add 10.201.0.0/16 via 192.0.2.9 metric 5 table 300")
    for where in (lab.host, lab.containers["one"]):
        seen = Witness(where)
        with route.open_route(where.fd) as ours:
            links, addresses, routes = route.links(ours), route.addresses(ours), route.routes(ours)
        assert {(x.index, x.name, x.mac, x.mtu, x.master, x.kind, x.up, x.alias) for x in links} == {
            (
                x["index"], x.get_attr("IFLA_IFNAME"), x.get_attr("IFLA_ADDRESS") or "", x.get_attr("IFLA_MTU"),
                x.get_attr("IFLA_MASTER") or 0, kind(x), bool(x["flags"] & 1), x.get_attr("IFLA_IFALIAS") or "",
            )
            for x in seen.links
        }  # fmt: skip
        assert {(a.index, cidr_text(a.address)) for a in addresses} == {
            (a["index"], f"{a.get_attr('IFA_LOCAL') or a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}")
            for a in seen.addresses
        }
        empty = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
        assert sorted(
            (ip_text(r.destination[1]), r.destination[2], ip_text(r.gateway) if r.gateway else "", r.index, r.table)
            for r in routes
        ) == sorted(
            (
                r.get_attr("RTA_DST") or empty[r["family"]], r["dst_len"], r.get_attr("RTA_GATEWAY") or "",
                r.get_attr("RTA_OIF") or 0, r.get_attr("RTA_TABLE") or r["table"],
            )
            for r in seen.routes
            if r["type"] == 1
        )  # fmt: skip

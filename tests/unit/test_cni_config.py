"""CNI without a kernel: configurations, names, versions, results, addresses, derived requests."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocirt.cni import address, config, protocol
from ocirt.cni.client import derive
from ocirt.cni.plugins import ranges
from ocirt.cni.plugins.host_local import _candidates
from ocirt.cni.protocol import CNIError
from ocirt.cni.result import Result
from ocirt.errors import Error, NotFound

PLUGIN = {"type": "bridge"}


def parse(**keys: Any) -> config.NetworkList:
    return config.parse(json.dumps({"name": "n", "cniVersion": "1.0.0", "plugins": [PLUGIN], **keys}).encode(), "test")


@pytest.mark.parametrize(
    ("keys", "version"),
    [
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersion": ""}, "0.1.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1"]}, "1.0.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.1.0", "9.0.0"]}, "1.1.0"),
        ({"cniVersion": "9.0.0", "cniVersions": ["0.3.1"]}, "0.3.1"),
        ({"cniVersion": "9.0.0"}, "9.0.0"),
        ({"cniVersion": "1.1.0", "cniVersions": ["0.3.1"]}, "1.1.0"),
    ],
)
def test_the_highest_known_version_is_chosen(keys: dict[str, Any], version: str) -> None:
    assert parse(**keys).version == version


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "a/b"}, "invalid network name"),
        ({"name": ""}, "invalid network name"),
        ({"name": "-a"}, "invalid network name"),
        ({"plugins": []}, "plugins must be a list that isn't empty"),
        ({"plugins": {}}, "plugins must be a list that isn't empty"),
        ({"plugins": [{}]}, r"plugins\[0\]"),
        ({"plugins": [{"type": 1}]}, r"plugins\[0\]"),
        ({"plugins": ["bridge"]}, r"plugins\[0\]"),
        ({"disableCheck": "maybe"}, "disableCheck is 'maybe'"),
        ({"cniVersions": ["one"]}, "invalid cniVersion"),
        ({"cniVersions": [1]}, "invalid cniVersion"),
        ({"cniVersions": 1}, "invalid cniVersion"),
        ({"cniVersion": "x"}, "invalid cniVersion"),
        ({"plugins": None, "loadOnlyInlinedPlugins": True}, "loadOnlyInlinedPlugins is set"),
        ({"plugins": None}, "no plugin configs found"),
    ],
)
def test_a_list_that_is_wrong_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CNIError, match=message) as caught:
        parse(**keys)
    assert caught.value.code == protocol.INVALID_CONFIG


@pytest.mark.parametrize("value", [True, "true", "TRUE", "True"])
def test_switches_are_booleans_or_words(value: object) -> None:
    assert parse(disableCheck=value, disableGC=value).disable_check
    assert parse(disableGC=value).disable_gc


def test_keys_are_found_in_any_case() -> None:
    assert protocol.get({"HostPort": 1}, "hostPort") == 1
    assert protocol.get({"hostPort": 2, "HOSTPORT": 1}, "hostPort") == 2
    assert protocol.get({"hostPort": None}, "hostPort", 7) == 7
    with pytest.raises(CNIError, match=r"invalid value of ipam.mtu: '5' must be a number"):
        protocol.integer({"MTU": "5"}, "mtu", 0, "ipam")
    with pytest.raises(CNIError):
        protocol.integer({"mtu": True}, "mtu")


def test_networks_are_found_by_name(tmp_path: Path) -> None:
    def write(name: str, content: object) -> None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    write("10-broken.conflist", "{")
    write("20-b.conflist", {"name": "b", "cniVersion": "1.0.0", "plugins": [PLUGIN]})
    write("05-a.conf", {"name": "a", "cniVersion": "0.4.0", "type": "ptp", "x": 1})
    write("30-b.conflist", {"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "late"}]})
    (tmp_path / "b").mkdir()
    write("b/20-more.conf", {"type": "portmap"})
    write("b/10-more.conf", {"type": "tuning"})
    write("b/ignored.txt", "x")
    assert [p["type"] for p in config.find("b", str(tmp_path)).plugins] == ["bridge", "tuning", "portmap"]
    single = config.find("a", str(tmp_path))
    assert (single.version, [p["type"] for p in single.plugins]) == ("0.4.0", ["ptp"])
    assert json.loads(single.data)["plugins"][0]["x"] == 1
    assert [n.name for n in config.find_all(str(tmp_path))] == ["b", "a"]
    with pytest.raises(NotFound, match="no network of the name 'c'"):
        config.find("c", str(tmp_path))
    write("20-b.conflist", {"name": "b", "cniVersion": "1.0.0", "plugins": [PLUGIN], "loadOnlyInlinedPlugins": True})
    assert [p["type"] for p in config.find("b", str(tmp_path)).plugins] == ["bridge"]


def test_the_derived_configuration() -> None:
    plugin = {
        "type": "x", "capabilities": {"a": True, "b": False, "c": True}, "runtimeConfig": {"by": "hand"},
        "cni.dev/x": 1, "prevResult": 1, "name": "other", "kept": [None],
    }  # fmt: skip
    network = config.NetworkList("n", "1.1.0", [plugin])
    previous = Result.parse({"ips": [{"address": "10.0.0.2/24"}]}, "1.1.0")
    base = {"type": "x", "kept": [None], "cniVersion": "1.1.0", "name": "n"}
    assert derive(network, plugin, {}, None) == {**base, "runtimeConfig": {"by": "hand"}}
    assert derive(network, plugin, {"a": 1, "b": 2, "d": 3}, previous) == {
        **base,
        "runtimeConfig": {"a": 1},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
    }


FULL: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01", "mtu": 1500},
        {"name": "eth0", "sandbox": "/ns", "socketPath": "/s", "pciID": "0000:00:01.0"},
    ],
    "ips": [
        {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1},
        {"address": "10.0.1.2/24"},
        {"address": "fd00::2/64", "interface": 1},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "priority": 5}, {"dst": "::/0"}],
    "dns": {"nameservers": ["10.0.0.1"], "search": ["x"]},
}


def test_results_of_every_version() -> None:
    result = Result.parse(FULL, "1.1.0")
    assert result.dump("1.1.0") == FULL
    assert result.dump("1.0.0") == {**FULL, "cniVersion": "1.0.0"}
    old = result.dump("0.4.0")
    assert old["interfaces"] == [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "sandbox": "/ns"},
    ]
    assert [(i["version"], i["address"]) for i in old["ips"]] == [
        ("4", "10.0.0.2/24"), ("4", "10.0.1.2/24"), ("6", "fd00::2/64"),
    ]  # fmt: skip
    oldest = result.dump("0.2.0")
    assert oldest == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]},
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]},
        "dns": FULL["dns"],
    }
    again = Result.parse(oldest, "")
    assert [i["address"] for i in again.ips] == ["10.0.0.2/24", "fd00::2/64"]
    assert Result.parse(old, "").dump("1.0.0")["ips"] == FULL["ips"]
    with pytest.raises(CNIError, match="no valid IP addresses"):
        Result().dump("0.2.0")
    assert Result().dump("1.1.0") == {"cniVersion": "1.1.0"}
    assert Result.parse({"ips": [{"address": "10.0.0.2/24"}]}, "0.4.0").dump("0.4.0")["dns"] == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"cniVersion": "2.0.0"},
        {"ips": [{"address": "10.0.0.2"}]},
        {"ips": [{}]},
        {"ips": ["10.0.0.2/24"]},
        {"routes": [{"dst": "default"}]},
        {"interfaces": 1},
        {"ips": [{"address": "10.0.0.2/24", "interface": "x"}]},
    ],
)
def test_a_result_that_is_wrong_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(CNIError):
        Result.parse(wrong, "1.1.0")


def test_the_addresses_of_an_interface() -> None:
    result = Result.parse(FULL, "1.1.0")
    assert [i["address"] for i in result.container_ips("eth0")] == ["10.0.0.2/24", "10.0.1.2/24", "fd00::2/64"]
    assert [i["address"] for i in result.container_ips("eth1")] == ["10.0.1.2/24"]


@given(st.ip_addresses(), st.integers(0, 128))
def test_addresses_agree_with_the_standard_library(ip: Any, bits: int) -> None:
    bits = min(bits, ip.max_prefixlen)
    if getattr(ip, "ipv4_mapped", None):
        return  # Go's, and so ours, are IPv4
    text = f"{ip}/{bits}"
    network = ipaddress.ip_network(text, strict=False)
    parsed = address.parse_cidr(text)
    assert address.parse_cidr(address.cidr_text(parsed)) == parsed
    assert ipaddress.ip_address(address.ip_text(parsed[1])) == ip
    first, last = address.bounds(parsed)
    assert (first, last) == (int(network[0]), int(network[-1]))
    assert ipaddress.ip_network(address.cidr_text(address.network_of(parsed))) == network


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0/8", "fd00::/129", "010.0.0.1/8", "a/8", "10.0.0.1/８"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        address.parse_cidr(text)


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({}, "no IP ranges specified"),
        ({"subnet": "10.0.0.1/24"}, "host bits set"),
        ({"subnet": "10.0.0.0/31"}, "too small"),
        ({"subnet": "fd00::/127"}, "too small"),
        ({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}, "rangeStart is not in network"),
        ({"subnet": "10.0.0.0/24", "gateway": "fd00::1"}, "another family"),
        ({"ranges": [[]]}, "empty range set"),
        ({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}, "mixed address families"),
        ({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}, "range set 1 overlaps with 0"),
        ({"ranges": [{"subnet": "10.0.0.0/24"}]}, r"ipam.ranges\[0\] must be a list"),
    ],
)
def test_ranges_that_are_wrong_are_named(ipam: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        ranges.parse(ipam, [])


def test_every_address_of_a_set_is_tried_once_from_the_last_one_on() -> None:
    (found,) = ranges.parse(
        {
            "ranges": [
                [{"subnet": "10.0.0.0/29"}, {"subnet": "10.0.1.0/29", "rangeStart": "10.0.1.4", "rangeEnd": "10.0.1.5"}]
            ]
        },
        [],
    )
    everything = [f"10.0.0.{i}" for i in range(2, 7)] + ["10.0.1.4", "10.0.1.5"]
    assert [address.ip_text(ip) for ip in _candidates(found, b"")] == everything
    assert ranges.count(found) == len(everything)
    for i, last in enumerate(everything):
        rest = everything[i + 1 :] + everything[: i + 1]
        assert [address.ip_text(ip) for ip in _candidates(found, address.parse_ip(last)[1])] == rest


@pytest.mark.parametrize(
    ("name", "valid"), [("a", True), ("A0_.-", True), ("", False), (".a", False), ("a/b", False), ("ä", False)]
)
def test_names(name: str, valid: bool) -> None:
    assert protocol.valid_name(name) is valid


@pytest.mark.parametrize(
    ("name", "valid"),
    [("eth0", True), ("a" * 15, True), ("a" * 16, False), ("", False), (".", False), ("..", False), ("a b", False),
     ("a:b", False), ("a/b", False), ("a\u3000b", False), ("äääääää", True), ("ääääääää", False)],
)  # fmt: skip
def test_interface_names(name: str, valid: bool) -> None:
    assert protocol.valid_ifname(name) is valid

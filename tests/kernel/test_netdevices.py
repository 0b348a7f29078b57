"""Network devices of runtime-spec 1.3, in namespaces of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ocirt.errors import Error, InvalidConfig
from ocirt.netdevices import move
from tests.kernel.netlab import Namespace


@pytest.fixture
def host() -> Iterator[Namespace]:
    made = Namespace()
    made.sh(
        """
        ip link add eth7 mtu 1400 type veth peer name far7
        ip link set eth7 address 02:00:00:00:00:07
        ip addr add 10.1.2.3/24 brd + dev eth7
        ip addr add 10.1.2.9/32 peer 10.9.9.9 dev eth7 label eth7:x
        ip addr add 169.254.7.7/16 scope link dev eth7
        ip addr add 10.7.7.7/24 dev eth7 valid_lft 1000 preferred_lft 1000
        ip -6 addr add fd00::5/64 dev eth7 nodad
        ip link set eth7 up
        ip link set far7 up
        ip link add eth8 type veth peer name far8
        """
    )
    yield made
    made.close()


@pytest.fixture
def inside() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


def addresses(namespace: Namespace, name: str) -> set[str]:
    (link,) = namespace.ip("addr", "show", "dev", name)
    return {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"}


def test_a_device_moves_with_its_addresses_and_is_up(host: Namespace, inside: Namespace) -> None:
    with host.inside():
        move(inside.fd, {"eth7": {"name": "net0"}, "eth8": {}})
    (link,) = inside.ip("addr", "show", "dev", "net0")
    assert (link["mtu"], link["address"]) == (1400, "02:00:00:00:00:07")
    assert "UP" in link["flags"]
    assert "UP" in inside.ip("link", "show", "dev", "eth8")[0]["flags"]
    # Permanent and of global scope only: neither the link-scope address nor the one with a lifetime.
    assert addresses(inside, "net0") == {"10.1.2.3/24", "10.1.2.9/32", "fd00::5/64"}
    by_address = {a["local"]: a for a in link["addr_info"]}
    assert by_address["10.1.2.3"]["broadcast"] == "10.1.2.255"
    assert by_address["10.1.2.9"]["address"] == "10.9.9.9"
    assert by_address["10.1.2.9"]["label"] == "net0:x"
    assert {link["ifname"] for link in host.ip("link")} == {"lo", "far7", "far8"}


def test_a_template_gets_a_free_name(host: Namespace, inside: Namespace) -> None:
    inside.sh("ip link add net0 type veth peer name other")
    with host.inside():
        move(inside.fd, {"eth7": {"name": "net%d"}})
    (name,) = {link["ifname"] for link in inside.ip("link")} - {"lo", "net0", "other"}
    assert name.startswith("net")
    assert addresses(inside, name) == {"10.1.2.3/24", "10.1.2.9/32", "fd00::5/64"}


def test_the_own_name_may_be_taken_inside_if_another_is_asked_for(host: Namespace, inside: Namespace) -> None:
    inside.sh("ip link add eth7 type veth peer name other")
    with host.inside():
        move(inside.fd, {"eth7": {"name": "net0"}})
    assert addresses(inside, "net0") == {"10.1.2.3/24", "10.1.2.9/32", "fd00::5/64"}


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ({"eth7": {"name": "net0"}, "nope": {}}, "no such network device on the host: nope"),
        ({"eth7": {"name": "net0"}, "eth8": {"name": "taken"}}, "has a device of the name taken already"),
        ({"eth7": {"name": "net0"}, "eth8": {"name": "net0"}}, "has a device of the name net0 already"),
        ({"eth7": {"name": "taken%d"}, "lo": {"name": "lo7"}}, "invalid argument"),
    ],
)
def test_what_was_moved_comes_back_if_another_cannot(
    host: Namespace, inside: Namespace, devices: dict[str, dict[str, str]], reason: str
) -> None:
    inside.sh("ip link add taken type veth peer name other")
    before = addresses(host, "eth7")
    with host.inside(), pytest.raises(Error) as caught:
        move(inside.fd, devices)
    assert reason in str(caught.value)
    assert "move network devices: linux.netDevices[" in str(caught.value)
    (link,) = host.ip("addr", "show", "dev", "eth7")
    assert "UP" in link["flags"]
    assert addresses(host, "eth7") == before - {"10.7.7.7/24"}
    assert {link["ifname"] for link in inside.ip("link")} == {"lo", "taken", "other"}


def test_the_runtimes_own_namespace_is_refused(host: Namespace) -> None:
    with host.inside(), pytest.raises(InvalidConfig, match="own network namespace"):
        move(host.fd, {"eth7": {}})
    assert addresses(host, "eth7")


def test_nothing_to_move_asks_nothing() -> None:
    read, write = os.pipe()
    try:
        move(read, {})
    finally:
        os.close(read)
        os.close(write)

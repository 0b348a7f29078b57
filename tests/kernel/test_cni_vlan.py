"""bridge's VLANs, where the kernel has them; hack/test runs this in the test VM, whose kernel does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni.plugins import bridge_ports
from ocirt.errors import Error
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace
from tests.kernel.test_cni_bridge import NOTHING, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def has_vlans() -> bool:
    """Can a bridge of this kernel filter VLANs?"""
    here = Namespace()
    found = here.run("ip", "link", "add", "name", "br0", "type", "bridge", "vlan_filtering", "1", check=False)
    here.close()
    return found.returncode == 0


needs_vlans = pytest.mark.skipif(
    not has_vlans(), reason="the kernel has no CONFIG_BRIDGE_VLAN_FILTERING (hack/vm's has)"
)


def answers(client: Namespace, address: str) -> bool:
    return client.run("busybox", "ping", "-c1", "-W2", address, check=False).returncode == 0


def names(lab: Lab) -> list[str]:
    """Interfaces that attachments leave on the host, without those that stay with the bridge."""
    return [name for name in lab.left()["links"] if not name.startswith(("br0.", "oc"))]


@needs_vlans
def test_containers_of_one_vlan_reach_each_other_and_their_gateway(lab: Lab) -> None:
    red = lab.network(lab.bridge("10.10.0.0/24", vlan=10), name="red")
    blue = lab.network(lab.bridge("10.20.0.0/24", vlan=20), name="blue")
    result = lab.add(red, "r1")
    assert result.interfaces[3]["name"] == "br0.10"
    lab.add(red, "r2")
    lab.add(blue, "b1")
    r1, r2, b1 = (lab.containers[name] for name in ("r1", "r2", "b1"))
    assert answers(r1, "10.10.0.3")
    assert answers(r1, "10.10.0.1")
    assert answers(b1, "10.20.0.1")
    assert lab.host.ip("addr", "show", "br0.20")[0]["addr_info"][0]["local"] == "10.20.0.1"
    # the host routes between them, and to the outside
    assert answers(r2, "10.20.0.2")
    assert answers(r2, "192.0.2.2")
    # frames don't cross: an address of the other VLAN on one's own wire is found by nobody
    b1.sh("ip addr add 10.10.0.77/24 dev eth0")
    assert not answers(b1, "10.10.0.3")
    for network, name in ((red, "r1"), (red, "r2"), (blue, "b1")):
        lab.check(network, name)
        lab.delete(network, name)
    assert names(lab) == []
    assert lab.left()["addresses"] == []


@needs_vlans
def test_a_trunk_carries_its_vlans_only(lab: Lab) -> None:
    plain: dict[str, Any] = {"isDefaultGateway": False, "ipMasq": False}
    red = lab.network(lab.bridge("10.10.0.0/24", vlan=10, **plain), name="red")
    trunk = lab.network(
        lab.bridge("10.99.0.0/24", vlanTrunk=[{"minID": 10, "maxID": 11, "id": 30}], **plain), name="trunk"
    )
    lab.add(red, "r1")
    lab.add(trunk, "t")
    inside = lab.containers["t"]
    for vlan in (10, 20):
        inside.sh(
            f"ip link add link eth0 name eth0.{vlan} type vlan id {vlan}; ip link set eth0.{vlan} up;"
            f"ip addr add 10.10.0.{vlan * 4}/24 dev eth0.{vlan}"
        )
    assert eventually(
        lambda: inside.run("busybox", "ping", "-c1", "-W2", "-I", "eth0.10", "10.10.0.2", check=False).returncode == 0
    )
    assert inside.run("busybox", "ping", "-c1", "-W2", "-I", "eth0.20", "10.10.0.2", check=False).returncode != 0
    port = lab.host.sh("bridge vlan show")
    assert "\t 30\n" in port or " 30" in port
    lab.delete(red, "r1")
    lab.delete(trunk, "t")
    assert lab.left() == NOTHING


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"id": 30}, [(30, 30)]),
        ({"minID": 10, "maxID": 11}, [(10, 11)]),
        ({"MinID": 10, "maxid": 11, "id": 30}, [(10, 11), (30, 30)]),
        ({"minID": 10, "maxID": 20, "id": 15}, [(10, 20), (15, 15)]),
    ],
)
def test_what_a_trunk_may_say(item: dict[str, int], expected: list[tuple[int, int]]) -> None:
    assert bridge_ports.Port({"vlanTrunk": [item]}).trunk == expected


@pytest.mark.parametrize(
    "item",
    [{}, {"id": 0}, {"id": 4095}, {"minID": 1}, {"maxID": 7}, {"minID": 7, "maxID": 6}, {"minID": 7, "id": 8},
     {"minID": 1, "maxID": 2, "id": 0}],
)  # fmt: skip
def test_what_a_trunk_may_not_say(item: dict[str, int]) -> None:
    with pytest.raises(Error, match=r"invalid vlanTrunk\[0\]: .*, 1 to 4094, in order"):
        bridge_ports.Port({"vlanTrunk": [item]})


@pytest.mark.skipif(has_vlans(), reason="the kernel has CONFIG_BRIDGE_VLAN_FILTERING: there is nothing to refuse")
def test_a_kernel_without_vlans_is_named(lab: Lab) -> None:
    network = lab.network(lab.bridge(vlan=10, isDefaultGateway=False, ipMasq=False))
    with pytest.raises(Error, match="CONFIG_BRIDGE_VLAN_FILTERING"):
        lab.add(network, "web")
    assert lab.left() == NOTHING
    with lab.host.inside(), pytest.raises(Error, match="CONFIG_BRIDGE_VLAN_FILTERING") as caught:
        lab.client.status(network)
    assert getattr(caught.value, "code", 0) == 50

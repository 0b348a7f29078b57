"""ocirt-proxy: docker-proxy's command line, and the backend of portmap."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.errors import Error
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, Server, ask, ask_udp
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom ocirt.proxy.main import launch\nlaunch()\n"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(tmp_path / "run"))
    made = Lab(tmp_path)
    yield made
    with made.host.inside():
        made.client.gc(made.network(made.bridge(), PROXY), [])
    made.close()


PROXY = {**PORTMAP, "backend": "proxy"}


def proxies(lab: Lab) -> list[int]:
    """Pids of the processes with a socket listening in the host's namespace."""
    out = lab.host.sh("ss -Htlnup; ss -Htlnp")
    return sorted({int(part.split(",")[0]) for part in out.split("pid=")[1:]} - {os.getpid()})


class Proxy:
    """ocirt-proxy by docker-proxy's command line, with its status pipe."""

    def __init__(self, host: Namespace, *arguments: str, listener: socket.socket | None = None) -> None:
        heard, told = os.pipe()
        passed = [told] + ([listener.fileno()] if listener else [])

        def give() -> None:
            # both first to numbers that can't collide
            high = [os.dup2(fd, 100 + i) for i, fd in enumerate(passed)]
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)

        with host.inside():
            self.process = subprocess.Popen(
                ["/usr/bin/python3", "-IS", "-c", PROGRAM, *arguments],
                preexec_fn=give,  # noqa: PLW1509
                close_fds=False,
            )
        os.close(told)
        with open(heard, "rb", buffering=0) as file:
            self.status = b""
            while not self.status.startswith(b"0\n"):
                part = file.read(1000)
                if not part:
                    break
                self.status += part

    def close(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(5)


Start = Callable[..., Proxy]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Proxy] = []

    def one(*arguments: Any, **more: Any) -> Proxy:
        made.append(Proxy(*arguments, **more))
        return made[-1]

    yield one
    for proxy in made:
        if proxy.process.poll() is None:
            proxy.close()


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """A host with 10.0.0.1 and fd00::1, and a container with 10.0.0.2 and fd00::2 on its wire."""
    host, container = Namespace(), Namespace()
    host.sh(
        f"""
        ip link set lo up
        ip link add c type veth peer name eth0 netns /proc/{os.getpid()}/fd/{container.fd}
        ip addr add 10.0.0.1/24 dev c; ip -6 addr add fd00::1/64 dev c nodad; ip link set c up
        """
    )
    container.sh(
        """
        ip link set lo up
        ip addr add 10.0.0.2/24 dev eth0
        ip -6 addr add fd00::2/64 dev eth0 nodad
        ip link set eth0 up
        """
    )
    yield host, container
    container.close()
    host.close()


def arguments(proto: str, host_ip: str, port: int, container_ip: str, inside: int) -> list[str]:
    return ["-proto", proto, "-host-ip", host_ip, "-host-port", str(port), "-container-ip", container_ip,
            "-container-port", str(inside)]  # fmt: skip


@pytest.mark.parametrize(
    ("host_ip", "client", "container_ip"),
    [("0.0.0.0", "127.0.0.1", "10.0.0.2"), ("::", "::1", "10.0.0.2"), ("::", "::1", "fd00::2")],
)
def test_tcp_with_half_close_and_large_bodies(
    pair: tuple[Namespace, Namespace], host_ip: str, client: str, container_ip: str, start: Start
) -> None:
    host, container = pair
    server = Server(container, container_ip, 80)
    proxy = start(host, *arguments("tcp", host_ip, 8080, container_ip, 80))
    assert proxy.status == b"0\n"
    # The server answers when the client has ended its half: without half-close there would be no answer.
    assert ask(host, client, 8080).startswith(b"hello|")
    body = os.urandom(20 << 20)
    assert ask(host, client, 8080, body, timeout=30).startswith(body)
    assert ask(host, client, 8080, b"").startswith(b"|")
    assert proxy.close() == 0
    server.close()


def test_many_connections_at_once(pair: tuple[Namespace, Namespace], start: Start) -> None:
    host, container = pair
    server = Server(container, "10.0.0.2", 80)
    proxy = start(host, *arguments("tcp", "127.0.0.1", 8080, "10.0.0.2", 80))
    connections = []
    for _ in range(200):
        made = host.socket()
        made.connect(("127.0.0.1", 8080))
        connections.append(made)
    for i, made in enumerate(connections):
        made.sendall(b"%d" % i)
        made.shutdown(socket.SHUT_WR)
    for i, made in enumerate(connections):
        assert made.recv(100) == b"%d|10.0.0.1" % i
        made.close()
    fds = f"/proc/{proxy.process.pid}/fd"
    assert eventually(lambda: len(os.listdir(fds)) < 20), os.listdir(fds)
    proxy.close()
    server.close()


def first_byte(host: Namespace) -> bytes:
    """Connect and read. (`ask` would write by another thread, and that one would be told of a reset.)"""
    with host.socket() as client:
        client.connect(("127.0.0.1", 8080))
        return client.recv(1)


def test_a_server_that_refuses_or_resets_is_seen_by_the_client(pair: tuple[Namespace, Namespace], start: Start) -> None:
    host, container = pair
    proxy = start(host, *arguments("tcp", "127.0.0.1", 8080, "10.0.0.2", 80))
    with pytest.raises(ConnectionResetError):
        first_byte(host)
    listener = container.socket()
    listener.bind(("10.0.0.2", 80))
    listener.listen()
    client = host.socket()
    client.connect(("127.0.0.1", 8080))
    served, _ = listener.accept()
    served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    served.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    listener.close()
    proxy.close()


def threads(proxy: Proxy) -> int:
    return len(os.listdir(f"/proc/{proxy.process.pid}/task"))


def accepted(container: Namespace, host: Namespace) -> tuple[socket.socket, socket.socket]:
    """A client of port 8080 of the host, and the container's end of its connection."""
    with container.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("10.0.0.2", 80))
        listener.listen()
        client = host.socket()
        client.connect(("127.0.0.1", 8080))
        server, _ = listener.accept()
        server.settimeout(10)
        return client, server


def feed(client: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=client.sendall, args=(data,), daemon=True)
    thread.start()
    return thread


def receive(server: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := server.recv(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def test_what_goes_on_moving_is_carried_by_threads_until_it_falls_silent(
    pair: tuple[Namespace, Namespace], start: Start
) -> None:
    host, container = pair
    proxy = start(host, *arguments("tcp", "0.0.0.0", 8080, "10.0.0.2", 80))
    client, server = accepted(container, host)
    data = os.urandom(1 << 20) * 24
    with client, server:
        for _ in range(2):  # there and back, twice
            sender = feed(client, data)
            most = 1
            parts: list[bytes] = []
            while sum(map(len, parts)) < len(data):
                parts.append(receive(server, 1 << 20))
                most = max(most, threads(proxy))
            sender.join(10)
            assert b"".join(parts) == data
            assert most == 3
            assert eventually(lambda: threads(proxy) == 1, 10)
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert receive(server, 1000) == b"last words"
        sender = feed(server, data)  # the other half goes on
        assert receive(client, len(data)) == data
        sender.join(10)
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_a_reset_of_what_threads_carry_is_seen_by_the_client(pair: tuple[Namespace, Namespace], start: Start) -> None:
    host, container = pair
    proxy = start(host, *arguments("tcp", "0.0.0.0", 8080, "10.0.0.2", 80))
    client, server = accepted(container, host)
    with client, server:
        server.sendall(b"so far so good")
        assert client.recv(100) == b"so far so good"
        with contextlib.suppress(OSError):
            client.settimeout(0.2)
            while True:  # more than all the buffers on the way hold
                client.send(bytes(1 << 20))
                if threads(proxy) < 3:
                    receive(server, 1 << 19)
        assert threads(proxy) == 3
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        assert eventually(lambda: threads(proxy) == 1)


def test_more_bulk_than_there_are_threads(pair: tuple[Namespace, Namespace], start: Start) -> None:
    host, container = pair
    proxy = start(host, *arguments("tcp", "0.0.0.0", 8080, "10.0.0.2", 80))
    server = Server(container, "10.0.0.2", 80, answer=lambda data, peer: hashlib.sha256(data).digest())
    data = os.urandom(1 << 20) * 5
    answers: list[bytes] = []
    clients = [
        threading.Thread(target=lambda: answers.append(ask(host, "127.0.0.1", 8080, data, timeout=60)))
        for _ in range(40)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    server.close()
    assert answers == [hashlib.sha256(data).digest()] * 40
    assert eventually(lambda: threads(proxy) == 1, 10)


@pytest.mark.parametrize(
    ("host_ip", "client", "container_ip"),
    [("0.0.0.0", "10.0.0.1", "10.0.0.2"), ("0.0.0.0", "127.0.0.1", "10.0.0.2"), ("::", "fd00::1", "10.0.0.2")],
)
def test_udp_sessions(
    pair: tuple[Namespace, Namespace], host_ip: str, client: str, container_ip: str, start: Start
) -> None:
    host, container = pair
    proxy = start(host, *arguments("udp", host_ip, 5353, container_ip, 53))
    with pytest.raises(OSError):
        ask_udp(host, client, 5353, timeout=0.3)  # nobody is there yet; the proxy goes on
    server = Server(container, container_ip, 53, socket.SOCK_DGRAM)
    # A connected socket takes answers from the address that it sent to, and no other.
    for size in (0, 1, 1400, 60000):
        assert ask_udp(host, client, 5353, b"x" * size) == b"x" * size + b"|10.0.0.1"
    clients = []
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    for i in range(50):
        made = host.socket(family, socket.SOCK_DGRAM)
        made.connect((client, 5353))
        made.send(b"%d" % i)
        clients.append(made)
    for i, made in enumerate(clients):
        assert made.recv(100) == b"%d|10.0.0.1" % i
        made.close()
    proxy.close()
    server.close()


def test_a_socket_that_is_handed_over_and_a_port_that_is_taken(pair: tuple[Namespace, Namespace], start: Start) -> None:
    host, container = pair
    server = Server(container, "10.0.0.2", 80)
    listener = host.socket()
    listener.bind(("127.0.0.1", 8080))
    listener.listen()
    proxy = start(host, *arguments("tcp", "127.0.0.1", 8080, "10.0.0.2", 80), "-use-listen-fd", listener=listener)
    assert proxy.status == b"0\n"
    other = start(host, *arguments("tcp", "127.0.0.1", 8080, "10.0.0.2", 80))
    assert other.status.startswith(b"1\n")
    assert b"listen tcp 127.0.0.1:8080: Address already in use" in other.status
    assert other.process.wait(5) == 1
    listener.close()
    assert ask(host, "127.0.0.1", 8080) == b"hello|10.0.0.1"
    proxy.close()
    server.close()


def test_bad_arguments_are_named() -> None:
    for wrong, word in ((["-proto", "sctp"], "sctp"), (["-nope"], "-nope"), (["-host-port"], "-host-port")):
        done = subprocess.run(
            [sys.executable, "-IS", "-c", PROGRAM, *wrong], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode != 0
        assert word in done.stderr


def test_one_process_for_all_ports_of_a_container(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PROXY)
    mappings = [{"hostPort": 8000 + i, "containerPort": 80, "protocol": "tcp"} for i in range(20)]
    mappings.append({"hostPort": 5353, "containerPort": 53, "protocol": "udp"})
    lab.add(network, "web", portMappings=mappings)
    lab.add(network, "neighbour")
    web = lab.containers["web"]
    lab.serve(web, "0.0.0.0", 80)
    lab.serve(web, "0.0.0.0", 53, socket.SOCK_DGRAM)
    (pid,) = proxies(lab)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nUid:\t65534\t65534\t65534\t65534" in status
    assert "\nCapEff:\t0000000000000000" in status
    for client, address in (
        (lab.outside, "192.0.2.1"),
        (lab.outside, "2001:db8::1"),  # the host has IPv6, the container hasn't
        (lab.host, "127.0.0.1"),
        (lab.host, "::1"),
        (lab.containers["neighbour"], "192.0.2.1"),
        (web, "192.0.2.1"),
    ):
        assert ask(client, address, 8007) == b"hello|10.88.0.1"
        assert ask_udp(client, address, 5353) == b"hello|10.88.0.1"
    body = os.urandom(20 << 20)
    assert ask(lab.outside, "192.0.2.1", 8019, body, timeout=30) == body + b"|10.88.0.1"
    lab.check(network, "web")
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not proxies(lab))
    with pytest.raises(Error, match="ocirt-proxy is not running"):
        lab.check(network, "web")
    lab.delete(network, "neighbour")
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def test_delete_ends_the_proxy_and_frees_the_ports(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PROXY)
    port = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    lab.add(network, "web", portMappings=port)
    with pytest.raises(Error, match=r"host port 8080/tcp is taken by \S+ \(pid \d+\)"):
        lab.add(network, "late", portMappings=port)
    nftables = lab.network(lab.bridge(), PORTMAP)
    with pytest.raises(Error, match=r"host port 8080/tcp is taken by \S+ \(pid \d+\)"):
        lab.add(nftables, "late", portMappings=port)
    lab.containers.pop("web").close()
    lab.delete(network, "web")
    assert not proxies(lab)
    assert lab.left() == NOTHING
    assert not list((lab.directory / "run" / "proxies").iterdir())
    # The other way round: what the maps have, the proxy doesn't take.
    lab.add(nftables, "web", portMappings=port)
    with pytest.raises(Error, match="is taken by container web"):
        lab.add(network, "late", portMappings=port)


def test_gc_ends_proxies_of_containers_that_are_gone(lab: Lab) -> None:
    network = lab.network(lab.bridge(), PROXY)
    for i, name in enumerate(("keep", "lost")):
        lab.add(network, name, portMappings=[{"hostPort": 8080 + i, "containerPort": 80, "protocol": "tcp"}])
    assert len(proxies(lab)) == 2
    (lab.directory / "cache" / "results" / "net1-lost-eth0").unlink()
    with lab.host.inside():
        lab.client.gc(network, [("keep", "eth0")])
    assert len(proxies(lab)) == 1
    lab.check(network, "keep")
    time.sleep(0)

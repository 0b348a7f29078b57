"""Network namespaces for tests: an outer "host", containers, neighbours, and real traffic between them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from ocirt.linux import libc
from ocirt.linux.netlink import CLONE_NEWNET, Inside


class Namespace:
    """A network namespace that lives as long as its descriptor (or something inside) does."""

    def __init__(self) -> None:
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.call("unshare", CLONE_NEWNET)
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            libc.call("setns", back, CLONE_NEWNET)
            os.close(back)

    @property
    def path(self) -> str:
        """A path that any process may open while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Let it go; the kernel takes it away with the last one who is inside."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def inside(self) -> Inside:
        """This thread in the namespace, for a `with`."""
        return Inside(self.fd)

    def run(self, *command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return what it printed."""
        with self.inside():
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **{k: v for k, v in more.items() if k != "input"},
            )
        out, err = process.communicate(more.get("input"), timeout=60)
        assert not check or process.returncode == 0, f"{command}: {process.returncode}: {out}{err}"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def sh(self, script: str) -> str:
        """Run a shell script inside (stops at the first error)."""
        return self.run("sh", "-ec", script).stdout

    def ip(self, *arguments: str) -> list[dict[str, Any]]:
        """`ip -j -d …` as data: an independent witness of what the kernel has."""
        out = self.run("ip", "-j", "-d", *arguments).stdout
        return json.loads(out) if out.strip() else []

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket that lives inside."""
        with self.inside():
            made = socket.socket(family, kind)
        made.settimeout(5)
        return made


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Server:
    """A server inside a namespace that answers each request by `answer(data, peer)`; a thread of this process."""

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int,
        kind: int = socket.SOCK_STREAM,
        answer: Callable[[bytes, str], bytes] | None = None,
    ) -> None:
        self.peers: list[str] = []
        self._answer = answer or (lambda data, peer: data + b"|" + peer.encode())
        self.listener = namespace.socket(family_of(address), kind)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.settimeout(0.2)
        self._stop = False
        if kind == socket.SOCK_STREAM:
            self.listener.listen(1024)
        self._thread = threading.Thread(target=self._tcp if kind == socket.SOCK_STREAM else self._udp, daemon=True)
        self._thread.start()

    def _tcp(self) -> None:
        while not self._stop:
            try:
                connection, peer = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, peer[0]), daemon=True).start()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        """Read to the end of the request (half-close), then answer and close."""
        self.peers.append(peer)
        with connection:
            connection.settimeout(10)
            parts: list[bytes] = []
            try:
                while data := connection.recv(1 << 16):
                    parts.append(data)
                connection.sendall(self._answer(b"".join(parts), peer))
            except OSError:
                return

    def _udp(self) -> None:
        while not self._stop:
            try:
                data, peer = self.listener.recvfrom(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                return
            self.peers.append(peer[0])
            self.listener.sendto(self._answer(data, peer[0]), peer)

    def close(self) -> None:
        """Stop and wait for the thread."""
        self._stop = True
        self.listener.close()
        self._thread.join(5)


def ask(namespace: Namespace, address: str, port: int, data: bytes = b"hello", *, timeout: float = 5) -> bytes:
    """Send `data` by TCP from the namespace, close that half, return the whole answer."""
    with namespace.socket(family_of(address)) as made:
        made.settimeout(timeout)
        made.connect((address, port))
        # sending and receiving at once: an answer may come before the request is through
        sender = threading.Thread(target=_send_all, args=(made, data), daemon=True)
        sender.start()
        parts: list[bytes] = []
        while chunk := made.recv(1 << 16):
            parts.append(chunk)
        sender.join(timeout)
        return b"".join(parts)


def _send_all(made: socket.socket, data: bytes) -> None:
    try:
        made.sendall(data)
        made.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the receiving side sees it


def ask_udp(namespace: Namespace, address: str, port: int, data: bytes = b"hello", *, timeout: float = 2) -> bytes:
    """Send one datagram from the namespace and return the answer."""
    with namespace.socket(family_of(address), socket.SOCK_DGRAM) as made:
        made.settimeout(timeout)
        made.connect((address, port))
        made.send(data)
        return made.recv(1 << 16)

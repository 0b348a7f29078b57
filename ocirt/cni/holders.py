"""Is a port of the host free, and who has it if not."""

from __future__ import annotations

import _socket
import os

from ocirt.cni import protocol
from ocirt.cni.address import ip_text
from ocirt.cni.protocol import CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocirt.cni.ports import PortMapping

_EADDRINUSE, _EADDRNOTAVAIL, _EAFNOSUPPORT = 98, 99, 97
_LISTEN, _UNCONNECTED = "0A", "07"


def check_addresses(mappings: Iterable[PortMapping]) -> None:
    """CNIError for a mapping of an address that no program could bind to (with ip_nonlocal_bind there is none)."""
    for m in {m.address: m for m in mappings if m.address}.values():
        family = _socket.AF_INET if len(m.address) == 4 else _socket.AF_INET6
        try:
            made = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            try:
                made.bind((ip_text(m.address), 0))
            finally:
                made.close()
        except OSError as error:
            if error.errno in (_EADDRNOTAVAIL, _EAFNOSUPPORT):
                text = f"host port {m}: the host has no address {ip_text(m.address)}"
                raise CNIError(protocol.INTERNAL, text) from error
            # anything else is for whoever uses the port to say


def check_free(mappings: Iterable[PortMapping], families: Iterable[int] = (2, 10)) -> None:
    """CNIError that names the program if one on this host listens on one of the ports.

    Tried by binding, without listening: the kernel's answer is the right one
    for every mix of addresses and families.
    """
    for m in mappings:
        if m.protocol not in ("tcp", "udp"):
            continue
        for family in families:
            if m.address and len(m.address) != (4 if family == _socket.AF_INET else 16):
                continue
            for port in range(m.host, m.host + m.count):
                if not _is_free(m.protocol, family, m.address, port):
                    where = f"{ip_text(m.address)}:" if m.address else ""
                    raise CNIError(
                        protocol.INTERNAL,
                        f"host port {where}{port}/{m.protocol} is taken by {program_on(m.protocol, port)}",
                    )


def _is_free(kind: str, family: int, address: bytes, port: int) -> bool:
    stream = kind == "tcp"
    try:
        made = _socket.socket(family, (_socket.SOCK_STREAM if stream else _socket.SOCK_DGRAM) | _socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == _EAFNOSUPPORT:
            return True
        raise
    try:
        if family == _socket.AF_INET6:
            made.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if stream:
            # connections that were closed a moment ago don't count, listeners do
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        made.bind((ip_text(address) if address else "", port))
    except OSError as error:
        if error.errno == _EADDRINUSE:
            return False
        if error.errno != _EADDRNOTAVAIL:
            raise
    finally:
        made.close()
    return True


def program_on(kind: str, port: int) -> str:
    """The program on this host that has the port, in words."""
    inodes = _inodes(kind, port)
    for pid in _pids():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                return f"{_name(pid)} (pid {pid})"
    return "a program on the host"


def _inodes(kind: str, port: int) -> set[str]:
    state = _LISTEN if kind == "tcp" else _UNCONNECTED
    found: set[str] = set()
    others: set[str] = set()  # connections that have the port on this side
    for suffix in ("", "6"):
        try:
            with open(f"/proc/thread-self/net/{kind}{suffix}", encoding="ascii") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if int(words[1].rpartition(":")[2], 16) == port:
                (found if words[3] == state else others).add(words[9])
    return found or others


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a program"

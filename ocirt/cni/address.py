"""IP addresses and networks as (family, bytes, prefix length): what `ipaddress` does, without its import."""

from __future__ import annotations

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.linux.netlink_route import Address

AF_INET, AF_INET6 = 2, 10
_FAMILY_BY_SIZE = {4: AF_INET, 16: AF_INET6}


def parse_ip(text: str) -> tuple[int, bytes]:
    """(family, bytes) of `10.0.0.1` or `fd00::1`; raises ValueError. `::ffff:10.0.0.1` is IPv4, as in Go."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        data = _socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no IP address") from None
    if data[:12] == b"\0" * 10 + b"\xff\xff":
        return AF_INET, data[12:]
    return family, data


def parse_cidr(text: str) -> Address:
    """(family, bytes, prefix length) of `10.0.0.1/24`, host bits kept; raises ValueError."""
    ip, slash, bits = text.partition("/")
    family, data = parse_ip(ip)
    if not slash or not bits.isascii() or not bits.isdigit() or int(bits) > len(data) * 8:
        raise ValueError(f"{text!r} is no address in CIDR notation, like 10.0.0.1/24")
    return family, data, int(bits)


def ip_text(data: bytes) -> str:
    """An address's bytes as text, the way Go prints them."""
    return _socket.inet_ntop(_FAMILY_BY_SIZE[len(data)], data)


def cidr_text(address: Address) -> str:
    """`10.0.0.1/24`."""
    return f"{ip_text(address[1])}/{address[2]}"


def number(data: bytes) -> int:
    """The address as a number."""
    return int.from_bytes(data, "big")


def from_number(value: int, size: int) -> bytes:
    """The address of `size` bytes with this number."""
    return value.to_bytes(size, "big")


def bounds(network: Address) -> tuple[int, int]:
    """First and last number of the network that the address lies in."""
    _, data, prefix = network
    host = (1 << (len(data) * 8 - prefix)) - 1
    first = number(data) & ~host
    return first, first | host


def network_of(address: Address) -> Address:
    """The network of an address: host bits cleared."""
    family, data, prefix = address
    return family, from_number(bounds(address)[0], len(data)), prefix


def contains(network: Address, data: bytes) -> bool:
    """Is the address (bytes) in the network?"""
    first, last = bounds(network)
    return len(data) == len(network[1]) and first <= number(data) <= last


def overlap(one: Address, other: Address) -> bool:
    """Do the networks share an address?"""
    if one[0] != other[0]:
        return False
    (a, b), (c, d) = bounds(one), bounds(other)
    return a <= d and c <= b


def next_ip(data: bytes) -> bytes:
    """The address after this one."""
    return from_number(number(data) + 1, len(data))

"""The ranges of addresses that host-local gives from."""

from __future__ import annotations

from ocirt.cni import protocol
from ocirt.cni.address import bounds, cidr_text, from_number, ip_text, network_of, number, overlap, parse_cidr, parse_ip
from ocirt.cni.protocol import INVALID_CONFIG, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.linux.netlink_route import Address


class Range:
    """A part of a subnet: `first` to `last` as numbers, and the gateway (bytes), which is never given away."""

    __slots__ = ("first", "gateway", "last", "subnet")

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        try:
            self.subnet: Address = parse_cidr(protocol.string(config, "subnet", "", where))
            if network_of(self.subnet) != self.subnet:
                raise ValueError(f"Network has host bits set. For a subnet mask of length {self.subnet[2]} "
                                 f"the network address is {cidr_text(network_of(self.subnet))}")  # fmt: skip
            size = len(self.subnet[1])
            if self.subnet[2] > size * 8 - 2:
                raise ValueError(f"Network {cidr_text(self.subnet)} too small to allocate from")
            low, high = bounds(self.subnet)
            gateway = self._ip(config, "gateway", where)
            self.gateway = gateway or from_number(low + 1, size)
            start = self._ip(config, "rangeStart", where)
            end = self._ip(config, "rangeEnd", where)
            self.first = number(start) if start else low + 1
            # IPv4's last address is for broadcast
            self.last = number(end) if end else high - (size == 4)
            for name, value in (("rangeStart", self.first), ("rangeEnd", self.last)):
                if not low <= value <= high:
                    raise ValueError(f"{name} is not in network {cidr_text(self.subnet)}")
        except ValueError as error:
            raise CNIError(INVALID_CONFIG, f"invalid range {where}", str(error)) from error

    def _ip(self, config: Mapping[str, Any], key: str, where: str) -> bytes:
        text = protocol.string(config, key, "", where)
        if not text:
            return b""
        family, data = parse_ip(text)
        if family != self.subnet[0]:
            raise ValueError(f"{key} {text} is of another family than the subnet")
        return data

    def contains(self, ip: bytes) -> bool:
        """May the address be given from this range?"""
        return len(ip) == len(self.subnet[1]) and self.first <= number(ip) <= self.last


RangeSet = list[Range]


def parse(ipam: Mapping[str, Any], runtime: list[Any]) -> list[RangeSet]:
    """The range sets of `ipam`, each giving one address: the runtime's first, then the flat keys, then `ranges`."""
    sets: list[RangeSet] = []
    if protocol.get(ipam, "subnet"):
        sets.append([Range(ipam, "ipam")])
    for where, outer in (("runtimeConfig.ipRanges", runtime), ("ipam.ranges", protocol.array(ipam, "ranges", "ipam"))):
        made: list[RangeSet] = []
        for i, inner in enumerate(outer):
            listed = [protocol.mapping(r) for r in protocol.listing(inner) or ()]
            if protocol.listing(inner) is None or None in listed:
                raise CNIError(INVALID_CONFIG, f"{where}[{i}] must be a list of ranges", repr(inner))
            made.append([Range(r or {}, f"{where}[{i}][{j}]") for j, r in enumerate(listed)])
        sets = made + sets if outer is runtime else sets + made
    if not sets:
        raise CNIError(INVALID_CONFIG, "no IP ranges specified", "ipam needs ranges or subnet")
    for i, one in enumerate(sets):
        _check(one, i)
        for j, other in enumerate(sets[:i]):
            if any(overlap(a.subnet, b.subnet) and a.first <= b.last and b.first <= a.last for a in one for b in other):
                raise CNIError(INVALID_CONFIG, f"range set {i} overlaps with {j}")
    return sets


def _check(ranges: RangeSet, index: int) -> None:
    if not ranges:
        raise CNIError(INVALID_CONFIG, f"empty range set {index}")
    if len({r.subnet[0] for r in ranges}) > 1:
        raise CNIError(INVALID_CONFIG, f"mixed address families in range set {index}")
    for i, a in enumerate(ranges):
        for b in ranges[:i]:
            if a.first <= b.last and b.first <= a.last:
                raise CNIError(INVALID_CONFIG, f"subnets {show([a])} and {show([b])} of range set {index} overlap")


def find(ranges: RangeSet, ip: bytes) -> Range | None:
    """The range of the set that has the address."""
    return next((r for r in ranges if r.contains(ip)), None)


def count(ranges: RangeSet) -> int:
    """How many addresses the set can give."""
    return sum(r.last - r.first + 1 - (bool(r.gateway) and r.contains(r.gateway)) for r in ranges)


def show(ranges: RangeSet) -> str:
    """The set as `10.1.0.1-10.1.0.254`."""
    size = len(ranges[0].subnet[1])
    return ",".join(f"{ip_text(from_number(r.first, size))}-{ip_text(from_number(r.last, size))}" for r in ranges)

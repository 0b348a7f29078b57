"""The result of ADD and its forms from CNI 0.1.0 to 1.1.0 (SPEC.md, section 5)."""

from __future__ import annotations

from ocirt.cni.address import parse_cidr
from ocirt.cni.protocol import DECODING_FAILURE, INCOMPATIBLE_VERSION, VERSIONS, CNIError, at_least, get

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_INTERFACE_1_1 = ("mtu", "socketPath", "pciID")
_ROUTE_KEYS = ("gw", "mtu", "advmss", "priority", "table", "scope")
_DNS_KEYS = ("nameservers", "domain", "search", "options")


class Result:
    """What an attachment has made, in the form of 1.1.0 whatever the version it came in.

    interfaces  [{name, mac?, mtu?, sandbox?, socketPath?, pciID?}]
    ips         [{address in CIDR notation, gateway?, interface? (index into interfaces)}]
    routes      [{dst, gw?, mtu?, advmss?, priority?, table?, scope?}]
    dns         {nameservers?, domain?, search?, options?}
    """

    __slots__ = ("dns", "interfaces", "ips", "routes")

    def __init__(self) -> None:
        self.interfaces: list[dict[str, Any]] = []
        self.ips: list[dict[str, Any]] = []
        self.routes: list[dict[str, Any]] = []
        self.dns: dict[str, Any] = {}

    @classmethod
    def parse(cls, data: Mapping[str, Any], version: str) -> Result:
        """Read a result; `version` is what it is in if it doesn't say so. Raises CNIError."""
        version = get(data, "cniVersion", "") or version
        if version not in VERSIONS:
            raise CNIError(INCOMPATIBLE_VERSION, "incompatible CNI versions", f"the result is of version {version!r}")
        made = cls()
        try:
            if at_least(version, "0.3.0"):
                made._read(data)
            else:
                made._read_old(data)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise CNIError(DECODING_FAILURE, "could not parse result", str(error)) from error
        return made

    def _read(self, data: Mapping[str, Any]) -> None:
        for item in get(data, "interfaces", ()):
            found = {"name": get(item, "name", "")}
            for key in ("mac", "mtu", "sandbox", "socketPath", "pciID"):
                if get(item, key):
                    found[key] = get(item, key)
            self.interfaces.append(found)
        for item in get(data, "ips", ()):
            found = {"address": get(item, "address")}
            parse_cidr(found["address"])
            if get(item, "gateway"):
                found["gateway"] = get(item, "gateway")
            if get(item, "interface") is not None:
                found["interface"] = int(get(item, "interface"))
            self.ips.append(found)
        self.routes += [_route(item) for item in get(data, "routes", ())]
        self.dns = _dns(get(data, "dns", {}))

    def _read_old(self, data: Mapping[str, Any]) -> None:
        for key in ("ip4", "ip6"):
            item = get(data, key)
            if not item:
                continue
            found = {"address": get(item, "ip")}
            parse_cidr(found["address"])
            if get(item, "gateway"):
                found["gateway"] = get(item, "gateway")
            self.ips.append(found)
            self.routes += [_route(r) for r in get(item, "routes", ())]
        self.dns = _dns(get(data, "dns", {}))

    def dump(self, version: str) -> dict[str, Any]:
        """The result as an object of `version`; CNIError if it can't be said in it."""
        if version in ("0.1.0", "0.2.0"):
            return self._dump_old(version)
        modern = at_least(version, "1.0.0")
        made: dict[str, Any] = {"cniVersion": version}
        if self.interfaces:
            drop = () if modern else _INTERFACE_1_1
            made["interfaces"] = [{k: v for k, v in i.items() if k not in drop} for i in self.interfaces]
        if self.ips:
            made["ips"] = [dict(i) if modern else {"version": _version(i), **i} for i in self.ips]
        if self.routes:
            made["routes"] = [dict(r) for r in self.routes]
        made["dns"] = dict(self.dns)
        if not self.dns and modern:
            del made["dns"]
        return made

    def _dump_old(self, version: str) -> dict[str, Any]:
        made: dict[str, Any] = {"cniVersion": version}
        for item in self.ips:
            key = f"ip{_version(item)}"
            if key in made:
                continue  # it knows one address of each family
            made[key] = {"ip": item["address"]}
            if "gateway" in item:
                made[key]["gateway"] = item["gateway"]
            routes = [
                {k: r[k] for k in ("dst", "gw") if k in r} for r in self.routes if (":" in r["dst"]) == (key == "ip6")
            ]
            if routes:
                made[key]["routes"] = routes
        if len(made) == 1:
            raise CNIError(INCOMPATIBLE_VERSION, "cannot convert: no valid IP addresses")
        made["dns"] = dict(self.dns)
        return made

    def copy(self) -> Result:
        """A result that can be changed without this one."""
        made = Result()
        made.interfaces = [dict(i) for i in self.interfaces]
        made.ips = [dict(i) for i in self.ips]
        made.routes = [dict(r) for r in self.routes]
        made.dns = dict(self.dns)
        return made

    def container_ips(self, ifname: str) -> list[dict[str, Any]]:
        """The addresses of the container's interface `ifname`, and those that name no interface."""
        found: list[dict[str, Any]] = []
        for item in self.ips:
            index: int | None = item.get("interface")
            if index is None:
                found.append(item)
            elif 0 <= index < len(self.interfaces):
                interface: dict[str, Any] = self.interfaces[index]
                if interface.get("sandbox") and interface["name"] == ifname:
                    found.append(item)
        return found


def _version(ip: Mapping[str, Any]) -> str:
    return "6" if ":" in ip["address"] else "4"


def _route(item: Mapping[str, Any]) -> dict[str, Any]:
    found = {"dst": get(item, "dst")}
    parse_cidr(found["dst"])
    for key in _ROUTE_KEYS:
        if get(item, key) not in (None, ""):
            found[key] = get(item, key)
    return found


def _dns(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: get(item, key) for key in _DNS_KEYS if get(item, key)}

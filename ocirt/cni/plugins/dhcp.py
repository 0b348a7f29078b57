"""dhcp: an address from the network's DHCP server (IPv4), kept by a process for as long as the attachment lives.

The reference plugin's keys, by dhcpd's names of options or their numbers:

    provide    [{option, value or fromArg}]: host-name (12), vendor-class-identifier (60), dhcp-client-identifier (61)
    request    [{skipDefault, option}]: which options to ask for, beside or in place of the usual ones
    priority   metric of the routes that the server tells

and `timeout`, in seconds. There is no daemon: daemonSocketPath is passed over.
"""

from __future__ import annotations

from ocirt.cni import protocol, services, table
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, NOT_AVAILABLE, UNSUPPORTED_FIELD, VERSIONS, CNIError
from ocirt.cni.result import Result
from ocirt.jsontext import parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.request import Request

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_KIND = "leases"
_TIMEOUT = 15
# RFC 2132
_OPTIONS = {
    "subnet-mask": 1,
    "routers": 3,
    "domain-name-servers": 6,
    "host-name": 12,
    "domain-name": 15,
    "interface-mtu": 26,
    "vendor-class-identifier": 60,
    "dhcp-client-identifier": 61,
    "domain-search": 119,
}
_HOST_NAME, _VENDOR, _CLIENT_ID = 12, 60, 61
_USUAL = (1, 3, 6, 15, 119, 26)
_NEEDED = (51, 58, 59)  # how long the lease is, and when to renew it


def _option(item: dict[str, Any], where: str) -> int:
    value = protocol.get(item, "option")
    number = _OPTIONS.get(value, -1) if isinstance(value, str) else value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        number = int(value)
    if type(number) is not int or not 1 <= number <= 254:
        known = ", ".join(_OPTIONS)
        raise CNIError(INVALID_CONFIG, f"{where}.option is {value!r}", f"must be 1 to 254 or one of {known}")
    return number


def _objects(ipam: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for i, raw in enumerate(protocol.array(ipam, key, "ipam")):
        item = protocol.mapping(raw)
        if item is None:
            raise CNIError(INVALID_CONFIG, f"ipam.{key}[{i}] must be an object", repr(raw))
        found.append((f"ipam.{key}[{i}]", item))
    return found


def _provided(request: Request, ipam: dict[str, Any]) -> dict[int, str]:
    """{option: value} that the server is told."""
    arguments = protocol.parse_args(request.args)
    found = {
        # as the reference plugin's daemon; the server tells containers on one wire apart by it
        _CLIENT_ID: f"{request.container}/{request.network}/{request.ifname}",
        _HOST_NAME: arguments.get("K8S_POD_NAME", ""),
        _VENDOR: "ocirt",
    }
    for where, item in _objects(ipam, "provide"):
        number = _option(item, where)
        if number not in found:
            raise CNIError(
                UNSUPPORTED_FIELD, f"{where}.option {protocol.get(item, 'option')!r}", "only 12, 60 and 61 are provided"
            )
        name = protocol.string(item, "fromArg", "", where)
        value = arguments.get(name, "") if name else protocol.string(item, "value", "", where)
        if value:
            found[number] = value
    return found


def _requested(ipam: dict[str, Any]) -> list[int]:
    items = _objects(ipam, "request")
    usual = () if any(protocol.truth(item, "skipDefault", False, where) for where, item in items) else _USUAL
    wanted = [_option(item, where) for where, item in items if protocol.get(item, "option") is not None]
    return list(dict.fromkeys([1, *usual, *wanted, *_NEEDED]))


def _comment(request: Request) -> str:
    return links.owner(request).comment


def add(request: Request) -> Result:
    """Ask for a lease on the container's interface, which must be there and up."""
    ipam = protocol.table(request.config, "ipam")
    comment = _comment(request)
    provided = _provided(request, ipam)
    services.stop(_KIND, comment)
    description = {
        "comment": comment,
        "interface": request.ifname,
        "client_id": provided[_CLIENT_ID],
        "host_name": provided[_HOST_NAME],
        "vendor_id": provided[_VENDOR],
        "requested": _requested(ipam),
        "timeout": protocol.integer(ipam, "timeout", _TIMEOUT, "ipam"),
    }
    service = services.Service(_KIND, comment, {})
    try:
        with request.sandbox() as sandbox:
            service.spawn("ocirt.cni.lease:launch", (), description, [sandbox.fd])
    except BaseException:
        service.abandon()
        raise
    service.close()
    return _result(_lease(comment), ipam)


def _lease(comment: str) -> dict[str, Any]:
    path = services.path_of(_KIND, comment)
    with open(path, "rb") as file:
        data: Any = parse_json(file.read(1 << 20), path)
    lease: dict[str, Any] = data["lease"]
    return lease


def _result(lease: dict[str, Any], ipam: dict[str, Any]) -> Result:
    ip = {"address": lease["address"]}
    routes = list(protocol.array(ipam, "routes", "ipam"))
    priority = protocol.integer(ipam, "priority", 0, "ipam")
    asked = _requested(ipam)  # servers tell other things as well
    if lease.get("routers") and 3 in asked:
        ip["gateway"] = lease["routers"][0]
        if not any(protocol.get(r, "dst") == "0.0.0.0/0" for r in routes):
            routes.append({"dst": "0.0.0.0/0", "gw": ip["gateway"]})
            if priority:
                routes[-1]["priority"] = priority
    dns: dict[str, Any] = {}
    if lease.get("name_servers") and 6 in asked:
        dns["nameservers"] = lease["name_servers"]
    if lease.get("domain_name") and 15 in asked:
        dns["domain"] = lease["domain_name"]
    if lease.get("domain_search") and 119 in asked:
        dns["search"] = lease["domain_search"]
    return Result.parse({"ips": [ip], "routes": routes, "dns": dns}, protocol.CURRENT)


def check(request: Request) -> None:
    """CNIError if nobody keeps the lease, or it is of another address by now."""
    comment = _comment(request)
    if not services.is_running(_KIND, comment):
        raise CNIError(INTERNAL, f"dhcp: nobody keeps the lease of container {request.container}")
    assert request.previous is not None
    address = _lease(comment)["address"]
    if request.previous.ips and address not in [ip["address"] for ip in request.previous.ips]:
        raise CNIError(INTERNAL, f"dhcp: the lease is of {address} by now")


def delete(request: Request) -> None:
    """Release the lease."""
    services.stop(_KIND, _comment(request))


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Release what belongs to no valid attachment of this network."""
    belongs = table.of_network(request.network)
    keep = frozenset(table.Owner(request.network, *pair).comment for pair in valid)
    services.collect(_KIND, lambda comment: belongs(comment) and comment not in keep)


def status(request: Request) -> None:
    """CNIError (50) if pyroute2 with its DHCP client is missing; another one for a key that isn't right."""
    ipam = protocol.table(request.config, "ipam")
    _provided(request, ipam)
    _requested(ipam)
    from importlib.util import find_spec

    if find_spec("pyroute2") is None or find_spec("pyroute2.dhcp") is None:
        raise CNIError(NOT_AVAILABLE, "pyroute2 is not installed, or is older than its DHCP client (0.8)")

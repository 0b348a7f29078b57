"""dhcp: an address from the network's DHCP server (IPv4), kept by a process for as long as the attachment lives."""

from __future__ import annotations

from ocirt.cni import protocol, services, table
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, NOT_AVAILABLE, VERSIONS, CNIError
from ocirt.cni.result import Result
from ocirt.jsontext import parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.request import Request

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_KIND = "leases"
_TIMEOUT = 15
_CLIENT_ID = 61  # RFC 2132, 9.14


def _comment(request: Request) -> str:
    return links.owner(request).comment


def add(request: Request) -> Result:
    """Ask for a lease on the container's interface, which must be there and up."""
    ipam = protocol.table(request.config, "ipam")
    comment = _comment(request)
    services.stop(_KIND, comment)
    description = {
        "comment": comment,
        "interface": request.ifname,
        # as the reference plugin's daemon; the server tells containers on one wire apart by it
        "client_id": f"{request.container}/{request.network}/{request.ifname}",
        "host_name": protocol.parse_args(request.args).get("K8S_POD_NAME", ""),
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
    if lease.get("routers"):
        ip["gateway"] = lease["routers"][0]
        if not any(protocol.get(r, "dst") == "0.0.0.0/0" for r in routes):
            routes.append({"dst": "0.0.0.0/0", "gw": ip["gateway"]})
    dns: dict[str, Any] = {}
    if lease.get("name_servers"):
        dns["nameservers"] = lease["name_servers"]
    if lease.get("domain_name"):
        dns["domain"] = lease["domain_name"]
    if lease.get("domain_search"):
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
    """CNIError (50) if pyroute2 with its DHCP client is missing."""
    from importlib.util import find_spec

    if find_spec("pyroute2") is None or find_spec("pyroute2.dhcp") is None:
        raise CNIError(NOT_AVAILABLE, "pyroute2 is not installed, or is older than its DHCP client (0.8)")

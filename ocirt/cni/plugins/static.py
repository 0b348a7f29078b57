"""static: the addresses that the configuration says."""

from __future__ import annotations

from ocirt.cni import protocol
from ocirt.cni.address import parse_cidr, parse_ip
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, VERSIONS, CNIError
from ocirt.cni.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.request import Request

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]


def _addresses(request: Request) -> list[dict[str, Any]]:
    """[{address, gateway?}]: runtimeConfig.ips, or args.cni.ips, or CNI_ARGS IP and GATEWAY, or ipam.addresses."""
    ipam = protocol.table(request.config, "ipam")
    if not ipam:
        raise CNIError(INVALID_CONFIG, "IPAM config missing 'ipam' key")
    listed = protocol.array(request.runtime, "ips", "runtimeConfig") or protocol.array(
        request.cni_args, "ips", "args.cni"
    )
    plain = request.environment_args("IP", "GATEWAY", "MAC")
    if listed:
        found = [{"address": text} for text in listed]
    elif plain.get("IP"):
        found = [{"address": text} for text in plain["IP"].split(",")]
        for gateway in plain["GATEWAY"].split(",") if plain.get("GATEWAY") else ():
            item = next((f for f in found if "gateway" not in f and (":" in f["address"]) == (":" in gateway)), None)
            if item is None:
                raise CNIError(INVALID_CONFIG, f"GATEWAY {gateway} has no address of its family")
            item["gateway"] = gateway
    else:
        found = [
            {k: protocol.string(a, k, "", f"ipam.addresses[{i}]") for k in ("address", "gateway") if protocol.get(a, k)}
            for i, a in enumerate(protocol.array(ipam, "addresses", "ipam"))
        ]
    for item in found:
        try:
            parse_cidr(str(item.get("address", "")))
            if "gateway" in item:
                parse_ip(item["gateway"])
        except ValueError as error:
            raise CNIError(
                INVALID_CONFIG, "the 'address' field is expected to be in CIDR notation", str(error)
            ) from error
    return found


def add(request: Request) -> Result:
    """The addresses as they are."""
    result = Result()
    ipam = protocol.table(request.config, "ipam")
    result.ips = _addresses(request)
    found = {
        "ips": result.ips,
        "routes": protocol.array(ipam, "routes", "ipam"),
        "dns": protocol.table(ipam, "dns", "ipam"),
    }
    return Result.parse(found, protocol.CURRENT)


def check(request: Request) -> None:
    """CNIError if an address isn't in the previous result."""
    assert request.previous is not None
    there = {parse_cidr(ip["address"]) for ip in request.previous.ips}
    for item in _addresses(request):
        if parse_cidr(item["address"]) not in there:
            raise CNIError(INTERNAL, f"static: {item['address']} is not in prevResult")


def delete(request: Request) -> None:
    """Nothing is kept."""


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Nothing is kept."""


def status(request: Request) -> None:
    """It works if the configuration is right."""
    _addresses(request)

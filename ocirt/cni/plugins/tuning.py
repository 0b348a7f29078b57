"""tuning: sysctls of the container's namespace and properties of its interface."""

from __future__ import annotations

import os

from ocirt.cni import protocol
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, INVALID_CONFIG, VERSIONS, CNIError
from ocirt.errors import Error
from ocirt.jsontext import dump_json, parse_json
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import Inside, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.request import Request
    from ocirt.cni.result import Result
    from ocirt.linux.netlink_route import Link

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_DATA_DIR = "/run/cni/tuning"
_ALLOWLIST = "/etc/cni/tuning/allowlist.conf"


class _Config:
    """The plugin's keys; args.cni outranks runtimeConfig (mac only), CNI_ARGS (MAC only), the configuration."""

    __slots__ = ("allmulti", "directory", "mac", "mtu", "promiscuous", "sysctl", "txqlen")

    def __init__(self, request: Request) -> None:
        config, args = request.config, request.cni_args
        self.directory = protocol.string(config, "dataDir") or _DATA_DIR
        self.mac = protocol.string(args, "mac") or request.wanted_mac()
        self.mtu = protocol.integer(args, "mtu") or links.wanted_mtu(request)
        # as in the reference plugin, false leaves this one as it is, and only this one
        self.promiscuous: bool | None = _either(args, config, "promisc", bool) or None
        self.allmulti: bool | None = _either(args, config, "allmulti", bool)
        self.txqlen: int | None = _either(args, config, "txQLen", int)
        self.sysctl = _sysctls({**protocol.table(config, "sysctl"), **protocol.table(args, "sysctl")}, request.ifname)

    @property
    def changes_link(self) -> bool:
        """Is there anything to do to the interface?"""
        return bool(self.mac or self.mtu) or any(v is not None for v in (self.promiscuous, self.allmulti, self.txqlen))


def _either(args: dict[str, Any], config: dict[str, Any], key: str, kind: type) -> Any:
    value = protocol.typed(args, key, kind, None, "args.cni")
    if value is None:
        value = protocol.typed(config, key, kind, None)
    return value


def _sysctls(wanted: dict[str, Any], ifname: str) -> dict[str, str]:
    """{path below /proc/sys: value}; CNIError for a key that isn't below net or not on the allow list."""
    found: dict[str, str] = {}
    allowed = _allowlist() if wanted else None
    for key, value in wanted.items():
        if not isinstance(value, str):
            raise CNIError(INVALID_CONFIG, f"invalid value of sysctl.{key}", f"{value!r} must be a string")
        if allowed is not None and not any(_matches(pattern, key) for pattern in allowed):
            raise CNIError(
                INVALID_CONFIG, f"Sysctl {key} is not allowed. Only the following sysctls are allowed: {allowed}"
            )
        # as sysctl(8): the first separator says which one separates
        slash = "/" in key and ("." not in key or key.index("/") < key.index("."))
        parts = key.split("/") if slash else [p.replace("/", ".") for p in key.split(".")]
        parts = [ifname if p == "IFNAME" else p for p in parts]
        if parts[0] != "net" or any(p in ("", ".", "..") or "/" in p for p in parts):
            raise CNIError(INVALID_CONFIG, f"invalid net sysctl key: {key!r}")
        path = "/".join(parts)
        if path in found:
            raise CNIError(INVALID_CONFIG, f"sysctl {key!r} is set twice")
        found[path] = value
    return found


def _allowlist() -> list[str] | None:
    try:
        with open(_ALLOWLIST, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        return None
    return [line for line in lines if line and not line.startswith("#")]


def _matches(pattern: str, key: str) -> bool:
    import re

    try:
        return re.search(pattern, key) is not None
    except re.error as error:
        raise CNIError(INVALID_CONFIG, f"{_ALLOWLIST}: invalid pattern {pattern!r}", str(error)) from error


def add(request: Request) -> Result:
    """Write the sysctls and change the interface; what it was is kept for DEL."""
    config = _Config(request)
    result = request.needs_previous()
    with request.sandbox() as sandbox:
        with Inside(sandbox.fd):
            for path, value in config.sysctl.items():
                links.write_sysctl(path, value)
        if not config.changes_link:
            return result
        with route.open_route(sandbox.fd) as inside:
            link = route.link(inside, request.ifname)
            if link is None:
                raise CNIError(INTERNAL, f"interface {request.ifname} does not exist in the container")
            _keep(request, config, link)
            inside.request(route.set_link(_change(config), request.ifname, link.index))
    for item in result.interfaces:
        if item["name"] == request.ifname and item.get("sandbox") == request.netns:
            if config.mac:
                item["mac"] = config.mac.lower()
            if config.mtu:
                item["mtu"] = config.mtu
    return result


def _change(config: _Config) -> route.Change:
    change = route.Change().mac(config.mac).mtu(config.mtu)
    if config.promiscuous is not None:
        change.flag(route.IFF_PROMISC, config.promiscuous)
    if config.allmulti is not None:
        change.flag(route.IFF_ALLMULTI, config.allmulti)
    if config.txqlen is not None:
        change.attribute(u32(route.IFLA_TXQLEN, config.txqlen))
    return change


def _file(request: Request, directory: str) -> str:
    return f"{directory}/{request.container}_{request.ifname}.json"


def _keep(request: Request, config: _Config, link: Link) -> None:
    """Write what the interface was, in the reference plugin's form; a file that is there is from before and stays."""
    # the reference plugin's keys, and one that it passes over: without it GC couldn't tell whose the file is
    old: dict[str, Any] = {"ocirt": request.network}
    if config.mac:
        old["mac"] = link.mac
    if config.mtu:
        old["mtu"] = link.mtu
    if config.promiscuous is not None:
        old["promisc"] = bool(link.flags & route.IFF_PROMISC)
    if config.allmulti is not None:
        old["allmulti"] = bool(link.flags & route.IFF_ALLMULTI)
    if config.txqlen is not None:
        old["txQLen"] = link.txqlen
    os.makedirs(config.directory, 0o700, exist_ok=True)
    path = _file(request, config.directory)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return
    with open(fd, "wb") as file:
        file.write(dump_json(old))


def delete(request: Request) -> None:
    """Make the interface what it was, if it is there, and forget it."""
    directory = protocol.string(request.config, "dataDir") or _DATA_DIR
    path = _file(request, directory)
    try:
        with open(path, "rb") as file:
            old = protocol.mapping(parse_json(file.read(1 << 20), path))
    except FileNotFoundError:
        return
    except Error:
        old = None  # torn: nothing to go back to
    sandbox = request.sandbox_if_there()
    if sandbox is not None and old is not None:
        with sandbox, route.open_route(sandbox.fd) as inside:
            link = route.link(inside, request.ifname)
            if link is not None:
                inside.request(route.set_link(_restored(old), request.ifname, link.index), accept=(16, 22))
    os.unlink(path)


def _restored(old: dict[str, Any]) -> route.Change:
    change = route.Change().mac(old.get("mac") or "").mtu(old.get("mtu") or 0)
    for key, flag in (("promisc", route.IFF_PROMISC), ("allmulti", route.IFF_ALLMULTI)):
        if old.get(key) is not None:
            change.flag(flag, bool(old[key]))
    if old.get("txQLen") is not None:
        change.attribute(u32(route.IFLA_TXQLEN, int(old["txQLen"])))
    return change


def check(request: Request) -> None:
    """CNIError if a sysctl or a property isn't what the configuration says."""
    config = _Config(request)
    with request.sandbox() as sandbox:
        with Inside(sandbox.fd):
            for path, value in config.sysctl.items():
                found = links.read_sysctl(path)
                if found.split() != value.split():
                    raise CNIError(INTERNAL, f"sysctl {path.replace('/', '.')} is {found!r}, expected {value!r}")
        with route.open_route(sandbox.fd) as inside:
            link = route.link(inside, request.ifname)
    if link is None:
        raise CNIError(INTERNAL, f"interface {request.ifname} does not exist in the container")
    properties: tuple[tuple[str, object, object], ...] = (
        ("MAC", config.mac.lower() or None, link.mac),
        ("MTU", config.mtu or None, link.mtu),
        ("promiscuous mode", config.promiscuous, bool(link.promiscuity)),
        ("all-multicast mode", config.allmulti, bool(link.flags & route.IFF_ALLMULTI)),
        ("transmit queue length", config.txqlen, link.txqlen),
    )
    for name, wanted, there in properties:
        if wanted is not None and wanted != there:
            raise CNIError(INTERNAL, f"{name} of {request.ifname} is {there}, expected {wanted}")


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Forget what interfaces of this network were whose attachment isn't valid; files of the reference plugin stay."""
    directory = protocol.string(request.config, "dataDir") or _DATA_DIR
    keep = {f"{container}_{ifname}.json" for container, ifname in valid}
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".json") and name not in keep]
    except FileNotFoundError:
        return
    for name in names:
        path = f"{directory}/{name}"
        try:
            with open(path, "rb") as file:
                data = protocol.mapping(parse_json(file.read(1 << 20), path))
        except FileNotFoundError:
            continue
        except Error:
            data = None
        # one that is torn says of no network; after DEL, which removes it without reading, nobody asks for it
        if data is not None and data.get("ocirt") == request.network:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def status(request: Request) -> None:
    """CNIError if the configuration can't be applied anywhere."""
    _sysctls(protocol.table(request.config, "sysctl"), "eth0")

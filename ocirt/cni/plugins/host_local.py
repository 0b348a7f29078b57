"""host-local: addresses from ranges, reserved by files on this host.

The store is the reference plugin's, so that both can work on one network:

    <dataDir>/<network>/lock                  flock around every change
    <dataDir>/<network>/<address>             `<container>\\r\\n<ifname>`, mode 0600
    <dataDir>/<network>/last_reserved_ip.<n>  where range set n goes on

Ours adds to a file, as an extended attribute that the other one doesn't see,
the boot in which it was reserved: after a reboot no container of the old boot
exists, and its address is free.
"""

from __future__ import annotations

import fcntl
import os

from ocirt.cni import protocol
from ocirt.cni.address import cidr_text, from_number, ip_text, number, parse_ip
from ocirt.cni.cache import write_all
from ocirt.cni.plugins import ranges as _ranges
from ocirt.cni.protocol import INVALID_CONFIG, NOT_AVAILABLE, VERSIONS, CNIError
from ocirt.cni.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any, Self

    from ocirt.cni.plugins.ranges import RangeSet
    from ocirt.cni.request import Request

__all__ = ["VERSIONS", "add", "check", "delete", "gc", "status"]

_DATA_DIR = "/var/lib/cni/networks"
_BOOT = "user.ocirt.boot"
_LAST = "last_reserved_ip."
_LINE = "\r\n"


class Store:
    """The reservations of one network, locked while the `with` lasts."""

    __slots__ = ("_boot", "_lock", "directory")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._boot = b""
        self._lock = -1

    @property
    def boot(self) -> bytes:
        """Which boot this is."""
        if not self._boot:
            with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
                self._boot = file.read().strip()
        return self._boot

    def __enter__(self) -> Self:
        path = f"{self.directory}/lock"
        flags = os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._lock = os.open(path, flags, 0o750)
        except FileNotFoundError:
            os.makedirs(self.directory, 0o755, exist_ok=True)
            self._lock = os.open(path, flags, 0o750)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def take(self, candidates: Iterable[bytes], holder: str) -> bytes:
        """Reserve the first address that is nobody's, b"" if there is none. What an earlier boot left is nobody's.

        The file appears whole or not at all: a torn one would be nobody's for
        ever, since releasing compares the content.
        """
        try:
            fd = os.open(self.directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError:
            return self._take_plainly(candidates, holder)
        try:
            write_all(fd, holder.encode())
            self._mark(fd)
            for ip in candidates:
                path = f"{self.directory}/{ip_text(ip)}"
                try:
                    _give_name(fd, path)
                except FileExistsError:
                    if not self._is_stale(path):
                        continue
                    os.unlink(path)
                    _give_name(fd, path)
                return ip
            return b""
        finally:
            os.close(fd)

    def _take_plainly(self, candidates: Iterable[bytes], holder: str) -> bytes:
        """For file systems without nameless files."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        for ip in candidates:
            path = f"{self.directory}/{ip_text(ip)}"
            try:
                fd = os.open(path, flags, 0o600)
            except FileExistsError:
                if not self._is_stale(path):
                    continue
                os.unlink(path)
                fd = os.open(path, flags, 0o600)
            try:
                write_all(fd, holder.encode())
                self._mark(fd)
            except OSError:
                os.unlink(path)
                raise
            finally:
                os.close(fd)
            return ip
        return b""

    def _mark(self, fd: int) -> None:
        try:
            os.setxattr(fd, _BOOT, self.boot)
        except OSError:
            pass  # without extended attributes a reboot is cleaned up by GC only

    def _is_stale(self, path: str) -> bool:
        """Is the reservation from another boot, or a file that says nobody (torn by a crash)?"""
        try:
            if os.stat(path).st_size == 0:
                return True
            return os.getxattr(path, _BOOT) != self.boot
        except OSError:
            return False

    def addresses(self) -> Iterator[tuple[str, str]]:
        """(file name, content) of every reservation."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return
        for name in names:
            if name == "lock" or name.startswith(_LAST):
                continue
            try:
                parse_ip(name)
                with open(f"{self.directory}/{name}", "rb", buffering=0) as file:
                    yield name, file.read(4096).decode("utf-8", "replace").strip()
            except (OSError, ValueError):
                continue

    def holder(self, ip: str) -> str:
        """Who has the address, "" if nobody."""
        try:
            with open(f"{self.directory}/{ip}", "rb", buffering=0) as file:
                return file.read(4096).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def release(self, mine: Callable[[str], bool], hint: list[str]) -> None:
        """Give back every address whose holder is `mine`; those of `hint` are looked at first.

        If one of the hint was his, it is taken for all that he has, and the
        others need not be read.
        """
        found = [ip for ip in hint if mine(self.holder(ip))]
        for ip in found or [name for name, content in self.addresses() if mine(content)]:
            try:
                os.unlink(f"{self.directory}/{ip}")
            except FileNotFoundError:
                pass

    def last(self, index: int) -> bytes:
        """The address that range set `index` gave last, b"" if none."""
        try:
            with open(f"{self.directory}/{_LAST}{index}", "rb", buffering=0) as file:
                return parse_ip(file.read(64).decode("ascii").strip())[1]
        except (OSError, ValueError):
            return b""

    def set_last(self, index: int, ip: bytes) -> None:
        """Remember it."""
        fd = os.open(
            f"{self.directory}/{_LAST}{index}",
            os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o644,
        )
        write_all(fd, ip_text(ip).encode())
        os.close(fd)


def forget(directory: str, network: str) -> None:
    """Remove the store of a network that is gone, unless somebody still has an address of it."""
    store = Store(f"{directory or _DATA_DIR}/{network}")
    if not os.path.isdir(store.directory):
        return
    with store:
        if any(True for _ in store.addresses()):
            return
        for name in os.listdir(store.directory):
            if name == "lock" or name.startswith(_LAST):
                os.unlink(f"{store.directory}/{name}")
    try:
        os.rmdir(store.directory)
    except OSError:
        pass  # another program keeps something there


def _give_name(fd: int, path: str) -> None:
    """Link a nameless file; FileExistsError."""
    # with a directory, Python calls linkat(AT_SYMLINK_FOLLOW); link(2) would not follow
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def _holder(request: Request) -> str:
    return f"{request.container}{_LINE}{request.ifname}"


def _is_holder(request: Request) -> Callable[[str], bool]:
    """Is a file's content this attachment? Old files hold the container's id alone."""
    mine = (_holder(request), request.container)
    return lambda content: content in mine


class _Config:
    """The `ipam` part of the configuration, checked."""

    __slots__ = ("dns", "ranges", "routes", "store", "wanted")

    def __init__(self, request: Request, *, with_args: bool = True) -> None:
        ipam = protocol.table(request.config, "ipam")
        if not ipam:
            raise CNIError(INVALID_CONFIG, "IPAM config missing 'ipam' key")
        directory = protocol.string(ipam, "dataDir", "", "ipam") or _DATA_DIR
        self.store = Store(f"{directory}/{request.network}")
        self.routes = protocol.array(ipam, "routes", "ipam")
        self.dns = _resolv_conf(protocol.string(ipam, "resolvConf", "", "ipam"))
        self.wanted: list[bytes] = _wanted(request) if with_args else []
        self.ranges: list[RangeSet] = _ranges.parse(ipam, protocol.array(request.runtime, "ipRanges", "runtimeConfig"))


def _wanted(request: Request) -> list[bytes]:
    """The addresses asked for: CNI_ARGS, args.cni.ips and runtimeConfig.ips together."""
    texts: list[Any] = []
    structured = protocol.array(request.cni_args, "ips", "args.cni")
    plain = request.environment_args("IP", "MAC", "GATEWAY").get("IP", "")
    if plain and not structured:
        texts += plain.split(",")
    texts += structured
    texts += protocol.array(request.runtime, "ips", "runtimeConfig")
    found: list[bytes] = []
    for text in texts:
        try:
            ip = parse_ip(str(text).split("/", 1)[0])[1]
        except ValueError as error:
            raise CNIError(INVALID_CONFIG, "invalid requested IP", str(error)) from error
        if ip not in found:
            found.append(ip)
    return found


def _resolv_conf(path: str) -> dict[str, Any]:
    """The dns part of a result out of a resolv.conf."""
    if not path:
        return {}
    found: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError as error:
        raise CNIError(protocol.IO_FAILURE, f"failed to read ipam.resolvConf {path!r}", error.strerror or "") from error
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            found.setdefault("nameservers", []).append(words[1])
        elif words[0] == "domain":
            found["domain"] = words[1]
        elif words[0] in ("search", "options"):
            found.setdefault(words[0], []).extend(words[1:])
    return found


def add(request: Request) -> Result:
    """Reserve one address of each range set; CNIError if a pool is exhausted or a wanted address can't be had."""
    config = _Config(request)
    result = Result()
    wanted = list(config.wanted)
    holder = _holder(request)
    with config.store as store:
        taken: list[bytes] = []
        try:
            for index, ranges in enumerate(config.ranges):
                requested = next((ip for ip in wanted if _ranges.find(ranges, ip)), b"")
                if requested:
                    wanted.remove(requested)
                ip = _reserve(store, index, ranges, requested, holder)
                taken.append(ip)
                result.ips.append(_described(ranges, ip))
            if wanted:
                names = ", ".join(ip_text(ip) for ip in wanted)
                raise CNIError(INVALID_CONFIG, f"failed to allocate all requested IPs: {names}")
        except BaseException:
            for ip in taken:
                os.unlink(f"{store.directory}/{ip_text(ip)}")
            raise
    result.routes = [dict(r) for r in config.routes]
    result.dns = config.dns
    return Result.parse({"ips": result.ips, "routes": result.routes, "dns": result.dns}, protocol.CURRENT)


def _described(ranges: RangeSet, ip: bytes) -> dict[str, Any]:
    found = _ranges.find(ranges, ip)
    assert found is not None
    described: dict[str, Any] = {"address": cidr_text((found.subnet[0], ip, found.subnet[2]))}
    if found.gateway:
        described["gateway"] = ip_text(found.gateway)
    return described


def _reserve(store: Store, index: int, ranges: RangeSet, requested: bytes, holder: str) -> bytes:
    if requested:
        gateway = next((r for r in ranges if r.gateway == requested), None)
        if gateway is not None:
            raise CNIError(INVALID_CONFIG, f"requested IP {ip_text(requested)} is the subnet's gateway")
        if not store.take([requested], holder):
            who = store.holder(ip_text(requested)).replace(_LINE, " ")
            raise CNIError(
                protocol.INTERNAL,
                f"requested IP address {ip_text(requested)} is not available in range set {_ranges.show(ranges)}",
                f"reserved by container {who}",
            )
        return requested
    ip = store.take(_candidates(ranges, store.last(index)), holder)
    if ip:
        store.set_last(index, ip)
        return ip
    raise CNIError(NOT_AVAILABLE, f"no IP addresses available in range set: {_ranges.show(ranges)}")


def _candidates(ranges: RangeSet, last: bytes) -> Iterator[bytes]:
    """Every address of the set once, from the one after `last` on, around to it; no gateway."""
    start, first = 0, None
    for i, r in enumerate(ranges):
        if last and r.contains(last):
            start, first = i, number(last) + 1
    for i in [*range(start, len(ranges)), *range(start)]:
        begin = first if i == start and first is not None else ranges[i].first
        yield from _addresses(ranges[i], begin, ranges[i].last)
    if first is not None:
        yield from _addresses(ranges[start], ranges[start].first, first - 1)


def _addresses(r: _ranges.Range, first: int, last: int) -> Iterator[bytes]:
    size = len(r.subnet[1])
    for value in range(first, last + 1):
        ip = from_number(value, size)
        if ip != r.gateway:
            yield ip


def check(request: Request) -> None:
    """Is there a reservation for this attachment?"""
    config = _Config(request, with_args=False)
    mine = _is_holder(request)
    hint = [i["address"].split("/", 1)[0] for i in request.previous.ips] if request.previous else []
    if any(mine(config.store.holder(ip)) for ip in hint):
        return
    if not any(mine(content) for _, content in config.store.addresses()):
        raise CNIError(protocol.INTERNAL, f"host-local: Failed to find address added by container {request.container}")


def delete(request: Request) -> None:
    """Release what the attachment has; nothing reserved is fine."""
    config = _Config(request, with_args=False)
    if not os.path.isdir(config.store.directory):
        return
    hint = [i["address"].split("/", 1)[0] for i in request.previous.ips] if request.previous else []
    with config.store as store:
        store.release(_is_holder(request), hint if request.complete else [])


def gc(request: Request, valid: frozenset[tuple[str, str]]) -> None:
    """Release what no valid attachment has."""
    config = _Config(request, with_args=False)
    if not os.path.isdir(config.store.directory):
        return
    keep = {f"{container}{_LINE}{ifname}" for container, ifname in valid} | {container for container, _ in valid}
    with config.store as store:
        store.release(lambda content: content not in keep, [])


def status(request: Request) -> None:
    """CNIError (50) if a pool has no free address."""
    config = _Config(request, with_args=False)
    store = config.store
    reserved = {parse_ip(name)[1] for name, _ in store.addresses() if not store._is_stale(f"{store.directory}/{name}")}
    for ranges in config.ranges:
        if _ranges.count(ranges) <= sum(1 for ip in reserved if _ranges.find(ranges, ip)):
            raise CNIError(NOT_AVAILABLE, f"no IP addresses available in range set: {_ranges.show(ranges)}")

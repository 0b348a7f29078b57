"""The names of a network's containers: a directory for each network, in it a file for each attachment."""

from __future__ import annotations

import os

from ocirt.cni import protocol, services
from ocirt.cni.address import ip_text, parse_ip
from ocirt.errors import Error
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KIND = "names"


def directory(network: str) -> str:
    """Where the names of a network's containers are."""
    return f"{services.directory(_KIND)}/{network}"


def publish(network: str, container: str, ifname: str, names: Iterable[str], addresses: Iterable[str]) -> None:
    """Tell the others of the network by which names and addresses this one is found."""
    path = directory(network)
    os.makedirs(path, 0o755, exist_ok=True)
    temporary = f"{path}/.{container}-{ifname}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb", buffering=0) as file:
        file.write(dump_json({"names": list(names), "addresses": [a.partition("/")[0] for a in addresses]}))
    os.rename(temporary, f"{path}/{container}-{ifname}")


def withdraw(network: str, container: str, ifname: str) -> None:
    """Take it back; nothing there is fine."""
    for name in (f".{container}-{ifname}", f"{container}-{ifname}"):
        try:
            os.unlink(f"{directory(network)}/{name}")
        except FileNotFoundError:
            pass
    try:
        os.rmdir(directory(network))
    except OSError:
        pass  # there are others


def collect(network: str, valid: Iterable[tuple[str, str]]) -> None:
    """Take back what belongs to no attachment in `valid`."""
    keep = {f"{container}-{ifname}" for container, ifname in valid}
    try:
        stale = [name for name in os.listdir(directory(network)) if name not in keep]
    except FileNotFoundError:
        return
    for name in stale:
        container, _, ifname = name.lstrip(".").rpartition("-")
        withdraw(network, container, ifname)


class Names:
    """What a resolver knows of the networks in `directories`: read again when one of them has changed.

    They are opened once, by a process that may: it reads them when it is nobody.
    They stay as long as the container is in them.
    """

    __slots__ = ("_addresses", "_changed", "_directories", "_names")

    def __init__(self, directories: list[str]) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._directories = [(os.path.basename(path), os.open(path, flags)) for path in directories]
        self._changed: list[int] = []
        self._names: dict[str, list[str]] = {}
        self._addresses: dict[bytes, str] = {}

    def lookup(self, name: str) -> list[str] | None:
        """The addresses of a name (`web`, or `web.NETWORK`), None if it is none of ours."""
        self._refresh()
        return self._names.get(name)

    def reverse(self, name: str) -> str:
        """The name for `2.0.88.10.in-addr.arpa`, "" if the address is none of ours."""
        self._refresh()
        try:
            if name.endswith(".in-addr.arpa"):
                data = parse_ip(".".join(reversed(name.removesuffix(".in-addr.arpa").split("."))))[1]
            else:
                data = bytes.fromhex("".join(reversed(name.removesuffix(".ip6.arpa").split("."))))
        except ValueError:
            return ""
        return self._addresses.get(data, "")

    def _refresh(self) -> None:
        changed = [os.fstat(fd).st_mtime_ns for _, fd in self._directories]
        if changed == self._changed:
            return
        self._names, self._addresses = {}, {}
        for network, directory in self._directories:
            for names, addresses in _read(directory):
                for name in names:
                    for form in (name.lower(), f"{name.lower()}.{network.lower()}"):
                        self._names.setdefault(form, []).extend(addresses)
                for address in addresses:
                    self._addresses.setdefault(parse_ip(address)[1], f"{names[0]}.{network}" if names else address)
        self._changed = changed


def _opener(directory: int) -> Callable[[str, int], int]:
    return lambda name, flags: os.open(name, flags, dir_fd=directory)


def _read(directory: int) -> list[tuple[list[str], list[str]]]:
    found: list[tuple[list[str], list[str]]] = []
    try:
        files = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError:
        return found
    for name in files:
        try:
            with open(name, "rb", opener=_opener(directory)) as file:
                data = protocol.mapping(parse_json(file.read(1 << 20), name))
            if data is not None:
                addresses = [ip_text(parse_ip(a)[1]) for a in data["addresses"]]
                found.append(([str(n) for n in data["names"]], addresses))
        except (OSError, Error, KeyError, ValueError, TypeError):
            continue  # it is being taken back, or torn
    return found

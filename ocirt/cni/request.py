"""What a plugin is asked: the command, its parameters and the plugin's configuration (SPEC.md, sections 2 and 3)."""

from __future__ import annotations

import os

from ocirt.cni import protocol
from ocirt.cni.protocol import CNIError
from ocirt.cni.result import Result
from ocirt.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from ocirt.linux.netlink import Socket

#: Where plugins are looked for when nothing says it: ours, then where distributions and engines put theirs.
BUILTIN = "@ocirt"
DEFAULT_PATH = (
    BUILTIN,
    "/opt/cni/bin",
    "/usr/local/libexec/cni",
    "/usr/libexec/cni",
    "/usr/local/lib/cni",
    "/usr/lib/cni",
)


class Sockets:
    """The sockets that the plugins of a chain share.

    Closing a nfnetlink socket waits until what was deleted is gone, a grace
    period of the kernel: one socket, closed last, has nothing left to wait for
    when an interface was deleted meanwhile.
    """

    __slots__ = ("_nft",)

    def __init__(self) -> None:
        self._nft: Socket | None = None

    @property
    def nft(self) -> Socket:
        """A nfnetlink socket in the namespace of the first who asked for it, the host's."""
        if self._nft is None:
            from ocirt.linux.netlink_nft import open_nft

            self._nft = open_nft()
        return self._nft

    def descriptors(self) -> list[int]:
        """Those that are open."""
        return [] if self._nft is None else [self._nft.fileno()]

    def close(self) -> None:
        """Close what was opened."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    __del__ = close


class Borrowed:
    """A socket for a `with` that doesn't close it."""

    __slots__ = ("_socket",)

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def __enter__(self) -> Socket:
        return self._socket

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it open for the next."""


class Request:
    """One call of a plugin.

    command    ADD, DEL, CHECK, GC or STATUS
    container, netns, ifname   CNI_CONTAINERID, CNI_NETNS (a path, "" if it is gone), CNI_IFNAME; "" for GC and STATUS
    args       CNI_ARGS as it came
    path       directories of plugins; BUILTIN stands for those of this package
    config     the plugin's configuration as on its standard input
    version    config's cniVersion
    network    config's name
    sockets    to the kernel, shared by the plugins of a chain
    complete   does `previous` tell all that the attachment has? Our client made it by one ADD and kept it; of another
               runtime there may have been an ADD before, which was killed
    previous   the result of the plugin before (ADD) or of the whole ADD (CHECK, DEL); None without one
    """

    __slots__ = (
        "args",
        "command",
        "complete",
        "config",
        "container",
        "ifname",
        "netns",
        "network",
        "path",
        "previous",
        "sockets",
        "version",
    )

    def __init__(
        self,
        command: str,
        config: dict[str, Any],
        *,
        container: str = "",
        netns: str = "",
        ifname: str = "",
        args: str = "",
        path: tuple[str, ...] = DEFAULT_PATH,
        sockets: Sockets | None = None,
        complete: bool = False,
    ) -> None:
        self.command = command
        self.complete = complete
        self.sockets = sockets or Sockets()
        self.config = config
        self.container = container
        self.netns = netns
        self.ifname = ifname
        self.args = args
        self.path = path
        self.version = protocol.string(config, "cniVersion") or "0.1.0"
        self.network = protocol.string(config, "name")
        previous = protocol.table(config, "prevResult")
        self.previous = Result.parse(previous, self.version) if previous else None

    def again(self, *, command: str = "", config: dict[str, Any] | None = None) -> Request:
        """The same request with another command or configuration."""
        return Request(
            command or self.command,
            self.config if config is None else config,
            container=self.container,
            netns=self.netns,
            ifname=self.ifname,
            args=self.args,
            path=self.path,
            sockets=self.sockets,
            complete=self.complete,
        )

    def nft(self) -> Borrowed:
        """The nfnetlink socket: `with request.nft() as nft: …`."""
        return Borrowed(self.sockets.nft)

    @property
    def runtime(self) -> dict[str, Any]:
        """runtimeConfig: what the runtime gave for the capabilities."""
        return protocol.table(self.config, "runtimeConfig")

    @property
    def cni_args(self) -> dict[str, Any]:
        """args.cni of the configuration: the structured form of CNI_ARGS, which outranks it."""
        return protocol.table(protocol.table(self.config, "args"), "cni")

    def environment_args(self, *known: str) -> dict[str, str]:
        """CNI_ARGS as a dict; CNIError (4) for a key that isn't `known`, unless IgnoreUnknown is set."""
        found = protocol.parse_args(self.args)
        if found.get("IgnoreUnknown", "").lower() not in ("1", "true"):
            unknown = [k for k in found if k not in known and k != "IgnoreUnknown"]
            if unknown:
                raise CNIError(protocol.INVALID_ENVIRONMENT, f"ARGS: unknown args {unknown}")
        return found

    def wanted_mac(self) -> str:
        """The hardware address asked for: runtimeConfig, args.cni, CNI_ARGS, then the plugin's own key."""
        from ocirt.linux.netlink_route import mac_bytes

        mac = (
            protocol.string(self.runtime, "mac")
            or protocol.string(self.cni_args, "mac")
            or self.environment_args("MAC", "IP", "GATEWAY").get("MAC", "")
            or protocol.string(self.config, "mac")
        )
        if mac:
            try:
                mac_bytes(mac)
            except ValueError:
                raise CNIError(
                    protocol.INVALID_CONFIG, f"invalid MAC address {mac!r}", "must be like 02:42:ac:11:00:02"
                ) from None
        return mac

    def needs_previous(self) -> Result:
        """A copy of prevResult; CNIError (7) without one: the plugin must be chained after another."""
        if self.previous is None:
            kind = protocol.string(self.config, "type")
            raise CNIError(protocol.INVALID_CONFIG, f"{kind}: missing prevResult: must be called as a chained plugin")
        return self.previous.copy()

    def sandbox(self) -> Sandbox:
        """The container's network namespace, opened; CNIError (8) if it isn't one or is the host's own."""
        return Sandbox(self.netns)

    def sandbox_if_there(self) -> Sandbox | None:
        """The same for DEL, None if the namespace is gone: that is no error there."""
        if not self.netns:
            return None
        try:
            return Sandbox(self.netns)
        except CNIError:
            return None


class Sandbox:
    """A network namespace by path: `fd` while the `with` lasts."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            theirs, ours = os.fstat(self.fd), os.stat("/proc/thread-self/ns/net")
        except OSError as error:
            self.close()
            raise CNIError(protocol.INVALID_NETNS, f"failed to open netns {path!r}", error.strerror or "") from error
        if theirs.st_dev != ours.st_dev:
            self.close()
            raise CNIError(protocol.INVALID_NETNS, f"{path!r} is no network namespace")
        if theirs.st_ino == ours.st_ino and os.environ.get("CNI_NETNS_OVERRIDE", "").lower() not in ("1", "true"):
            self.close()
            raise CNIError(
                protocol.INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same", path
            )

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Attachment:
    """What all calls for one interface of one container have in common.

    container, netns, ifname   as in Request
    args           CNI_ARGS as pairs
    capabilities   {name: value}: what the runtime offers for runtimeConfig
    """

    __slots__ = ("args", "capabilities", "container", "ifname", "netns")

    def __init__(
        self,
        container: str,
        netns: str,
        ifname: str,
        args: tuple[tuple[str, str], ...] = (),
        capabilities: dict[str, Any] | None = None,
    ) -> None:
        self.container = container
        self.netns = netns
        self.ifname = ifname
        self.args = args
        self.capabilities: dict[str, Any] = capabilities or {}

    @property
    def args_text(self) -> str:
        """CNI_ARGS."""
        return ";".join(f"{k}={v}" for k, v in self.args)


def valid_attachments(request: Request) -> frozenset[tuple[str, str]]:
    """(container, ifname) of what GC must leave alone; CNIError (7) if the list is malformed.

    Without the list nothing is valid: SPEC.md demands it, but libcni leaves it
    out when its caller knows of no attachment (`cnitool gc`), and has deleted
    all that it knows of by then.
    """
    listed = protocol.get(request.config, "cni.dev/valid-attachments")
    if listed is None:
        listed = protocol.get(request.config, "cni.dev/attachments", [])
    found = protocol.listing(listed)
    if found is None:
        raise CNIError(protocol.INVALID_CONFIG, "cni.dev/valid-attachments must be a list", repr(listed))
    try:
        return frozenset((protocol.get(a, "containerID", ""), protocol.get(a, "ifname", "")) for a in found)
    except (AttributeError, TypeError) as error:
        raise CNIError(protocol.INVALID_CONFIG, "invalid cni.dev/valid-attachments", str(error)) from error


def run_all(*steps: Callable[[], object]) -> None:
    """Run every step, whatever the others raise; then raise the first Error with the others as notes."""
    errors: list[Error] = []
    for step in steps:
        try:
            step()
        except Error as error:
            errors.append(error)
    join_errors(errors)


def join_errors(errors: list[Error]) -> None:
    """Raise the first of the errors with the others as notes; nothing if there is none."""
    if errors:
        for other in errors[1:]:
            errors[0].note(str(other))
        raise errors[0]

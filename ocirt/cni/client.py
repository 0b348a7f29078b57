"""The runtime's side of CNI: a network's plugins, one after the other (SPEC.md, section 3)."""

from __future__ import annotations

import fcntl
import os

from ocirt.cni import cache, invoke, protocol
from ocirt.cni.protocol import CNIError
from ocirt.cni.request import DEFAULT_PATH, Attachment, Request, Sockets, join_errors
from ocirt.cni.result import Result
from ocirt.errors import Error, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any, Self

    from ocirt.cni.config import NetworkList


class Client:
    """Runs plugin chains.

    path       where plugins are (CNI_PATH); BUILTIN stands for those of this package
    directory  of the cache
    """

    __slots__ = ("_sockets", "directory", "path")

    def __init__(self, path: tuple[str, ...] = DEFAULT_PATH, directory: str = cache.DIRECTORY) -> None:
        self.path = path
        self.directory = directory
        self._sockets = Sockets()

    def add(self, network: NetworkList, attachment: Attachment) -> Result:
        """Attach the container; the result of the last plugin.

        If a plugin fails, what the others have made is taken back before its
        CNIError is raised.
        """
        protocol.check_names(network.name, attachment.container, attachment.ifname)
        with doing(f"attach to network {network.name}"), self._lock(network.name):
            before = cache.load(self.directory, network.name, attachment)
            if before is not None:
                if before.result is not None and before.is_alive():
                    raise CNIError(
                        protocol.INTERNAL,
                        f"container {attachment.container} has interface {attachment.ifname} in {network.name} already",
                    )
                self._delete(before.network or network, before.attachment, before.parsed())
            cache.save(self.directory, network, attachment, None)
            result: Result | None = None
            try:
                for plugin in network.plugins:
                    result = self._call("ADD", network, plugin, attachment, result)
            except BaseException as error:
                self._take_back(network, attachment, error)
                raise
            made = result or Result()
            cache.save(self.directory, network, attachment, made.dump(network.version))
            return made

    def _take_back(self, network: NetworkList, attachment: Attachment, error: BaseException) -> None:
        try:
            self._delete(network, attachment, None, refused=error)
        except Error as failure:
            if isinstance(error, Error):
                error.note_undoing(failure)

    def check(self, network: NetworkList, attachment: Attachment) -> None:
        """CNIError if the attachment isn't as ADD left it."""
        if not protocol.at_least(network.version, protocol.SINCE["CHECK"]):
            raise CNIError(
                protocol.INCOMPATIBLE_VERSION, f"configuration version {network.version} does not support CHECK command"
            )
        if network.disable_check:
            return
        entry = cache.load(self.directory, network.name, attachment)
        result = entry.parsed() if entry else None
        if entry is None or result is None:
            raise CNIError(
                protocol.UNKNOWN_CONTAINER,
                f"container {attachment.container} is not attached to network {network.name} by {attachment.ifname}",
            )
        for plugin in network.plugins:
            self._call("CHECK", network, plugin, entry.attachment, result)

    def delete(self, network: NetworkList | None, attachment: Attachment, name: str = "") -> None:
        """Take the attachment back; one that isn't there is fine.

        What was true at ADD is taken from the cache: configuration, arguments,
        namespace. `network` is only for attachments that aren't in it; `name`
        is enough to find one that is.
        """
        name = network.name if network else name
        with doing(f"detach from network {name}"), self._lock(name):
            entry = cache.load(self.directory, name, attachment)
            if entry is not None and entry.network is not None:
                known = entry.attachment
                if attachment.netns:
                    known.netns = attachment.netns
                self._delete(entry.network, known, entry.parsed())
            elif network is not None:
                self._delete(network, attachment, None)
            elif entry is not None:
                cache.remove(self.directory, name, attachment)

    def _delete(
        self,
        network: NetworkList,
        attachment: Attachment,
        result: Result | None,
        *,
        refused: BaseException | None = None,
    ) -> None:
        """DEL to every plugin. `refused`: why ADD failed; a plugin that says just that again has made nothing."""
        if not protocol.at_least(network.version, protocol.SINCE["CHECK"]):
            result = None
        errors: list[Error] = []
        for plugin in reversed(network.plugins):
            try:
                self._call("DEL", network, plugin, attachment, result)
            except Error as error:
                if _is_same(error, refused):
                    continue
                # the spec stops here; going on leaves less behind, and the next DEL begins again anyway
                errors.append(error)
        join_errors(errors)
        cache.remove(self.directory, network.name, attachment)

    def gc(
        self, network: NetworkList, valid: Iterable[tuple[str, str]] | Callable[[], Iterable[tuple[str, str]]]
    ) -> None:
        """Take back what belongs to no attachment (container, ifname) in `valid`; no ADD or DEL runs meanwhile.

        A `valid` that was made before may miss who has just come: a function is
        called when nobody can come any more.
        """
        if network.disable_gc:
            return
        errors: list[Error] = []
        with doing(f"collect the garbage of network {network.name}"), self._lock(network.name, exclusive=True):
            keep = set(valid() if callable(valid) else valid)
            cache.remove_torn(self.directory)
            for entry in list(cache.entries(self.directory, network=network.name)):
                if (entry.attachment.container, entry.attachment.ifname) in keep:
                    continue
                try:
                    self._delete(entry.network or network, entry.attachment, entry.parsed())
                except Error as error:
                    errors.append(error)
            if protocol.at_least(network.version, protocol.SINCE["GC"]):
                listed = [{"containerID": container, "ifname": ifname} for container, ifname in sorted(keep)]
                extra = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
                for plugin in network.plugins:
                    try:
                        self._call("GC", network, plugin, None, None, extra)
                    except Error as error:
                        errors.append(error)
            join_errors(errors)

    def forget(self, network: str) -> None:
        """The network is gone: so is its lock."""
        try:
            os.unlink(f"{self.directory}/locks/{network}")
        except FileNotFoundError:
            pass

    def status(self, network: NetworkList) -> None:
        """CNIError (50, 51) of the first plugin that can't take an ADD."""
        if not protocol.at_least(network.version, protocol.SINCE["STATUS"]):
            return
        for plugin in network.plugins:
            self._call("STATUS", network, plugin, None, None)

    def versions(self, type: str) -> tuple[str, ...]:
        """The CNI versions that a plugin takes."""
        return invoke.versions(type, self.path)

    def _call(
        self,
        command: str,
        network: NetworkList,
        plugin: dict[str, Any],
        attachment: Attachment | None,
        previous: Result | None,
        extra: dict[str, Any] | None = None,
    ) -> Result | None:
        """One plugin, with the configuration derived for it (SPEC.md, section 3)."""
        config = derive(network, plugin, attachment.capabilities if attachment else {}, previous)
        if extra:
            config.update(extra)
        if attachment is None:
            return invoke.invoke(Request(command, config, path=self.path, sockets=self._sockets))
        request = Request(
            command,
            config,
            container=attachment.container,
            netns=attachment.netns,
            ifname=attachment.ifname,
            args=attachment.args_text,
            path=self.path,
            sockets=self._sockets,
            complete=previous is not None,
        )
        return invoke.invoke(request)

    def _lock(self, network: str, *, exclusive: bool = False) -> _Lock:
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        return _Lock(f"{self.directory}/locks", network, how, self._sockets)


def _is_same(error: Error, other: BaseException | None) -> bool:
    return (
        isinstance(error, CNIError)
        and isinstance(other, CNIError)
        and (error.code, error.msg) == (other.code, other.msg)
    )


def derive(
    network: NetworkList, plugin: dict[str, Any], capabilities: dict[str, Any], previous: Result | None
) -> dict[str, Any]:
    """The configuration that a plugin is called with: its own, with what the list and the runtime add."""
    reserved = ("capabilities", "prevresult")
    config = {k: v for k, v in plugin.items() if k.casefold() not in reserved and not k.startswith("cni.dev/")}
    config["cniVersion"] = network.version
    config["name"] = network.name
    offered = protocol.table(plugin, "capabilities")
    wanted = {k: v for k, v in capabilities.items() if offered.get(k) is True}
    if wanted:
        config = {k: v for k, v in config.items() if k.casefold() != "runtimeconfig"}
        config["runtimeConfig"] = wanted
    if previous is not None:
        config["prevResult"] = previous.dump(network.version)
    return config


class _Lock:
    """GC of a network excludes its ADD and DEL, which don't exclude each other; sockets are closed at the end."""

    __slots__ = ("_directory", "_fd", "_how", "_name", "_sockets")

    def __init__(self, directory: str, name: str, how: int, sockets: Sockets) -> None:
        self._sockets = sockets
        self._directory = directory
        self._name = name
        self._how = how
        self._fd = -1

    def __enter__(self) -> Self:
        path = f"{self._directory}/{self._name}"
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            self._fd = os.open(path, flags, 0o600)
        fcntl.flock(self._fd, self._how)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._sockets.close()

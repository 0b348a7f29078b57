"""The network of a container that has no engine: what lifecycle calls (docs/networking.md).

networking = wanted(config, flags)            None for nearly every container
networking.prepare(container)                 before init exists: files, mounts, the record
networking.attach(container)                  when its namespace does
detach(id, record, alive)                     at delete, however much of this has happened
"""

from __future__ import annotations

import os

from ocirt import log
from ocirt.errors import Error, InvalidConfig, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ocirt.cni.attach import Wish
    from ocirt.container import Container
    from ocirt.spec import Config

#: The annotations begin with this; nothing of CNI is imported for a container without one.
PREFIX = "org.ocirt.network"
RECORD = "network"
_FILES = ("hosts", "resolv.conf")


def wanted(config: Config, flags: dict[str, Any] | None, pid_of: Callable[[str], int]) -> Networking | None:
    """What flags or annotations ask for, None if nothing; flags take the place of all annotations.

    flags   the keyword arguments of ocirt.cni.attach.parse, with the networks as `wanted`
    pid_of  gives the init of a running container of this runtime, or raises

    Changes the network namespace in `config` accordingly. Raises InvalidConfig.
    """
    annotations = config.get("annotations") or {}
    from ocirt.cni import attach

    with doing("choose the network"):
        wish = attach.parse(**flags) if flags else attach.wish_of(annotations)
        if wish is None:
            return None
        if wish.places and os.geteuid() != 0:
            raise InvalidConfig(
                f"network {wish.places[0].name!r} is made on the host, which needs root "
                "(without it: none, host or container:ID)"
            )
        attach.adapt(config, wish, pid_of)  # type: ignore[arg-type]
    return Networking(config, wish)


class Networking:
    """The network of one container on its way into being."""

    __slots__ = ("_config", "_mounted", "wish")

    def __init__(self, config: Config, wish: Wish) -> None:
        self._config = config
        self._mounted: list[str] = []
        self.wish = wish

    def prepare(self, container: Container) -> None:
        """Note in the record what there will be to take back, and mount hosts and resolv.conf.

        A mount of the configuration's own at their place stays what it is.
        """
        from ocirt.cni import attach

        texts = dict.fromkeys(_FILES, b"")
        if self.wish.places:
            container.record[RECORD] = attach.record_of(self.wish)
        elif self.wish.joined:
            texts = _texts_of(f"{os.path.dirname(container.directory)}/{self.wish.joined}")
        else:
            return
        if not _has_own_mounts(self._config):
            return
        mounts: list[Any] = self._config.setdefault("mounts", [])
        taken = {os.path.normpath(mount["destination"]) for mount in mounts}
        for name, text in texts.items():
            if f"/etc/{name}" in taken:
                continue
            container.write(name, text)
            os.chmod(f"{container.directory}/{name}", 0o644)  # everybody in the container reads it
            source = f"{container.directory}/{name}"
            mounts.append(
                {"destination": f"/etc/{name}", "source": source, "type": "bind", "options": ["bind", "rprivate"]}
            )
            self._mounted.append(name)

    def attach(self, container: Container) -> None:
        """Attach init's namespace to the networks and write what the container reads about them."""
        if not self.wish.places:
            return
        from ocirt.cni import attach, files

        name = self._config.get("hostname") or container.id
        record = attach.attach(container.id, self._namespace(container.pid), self.wish, hostname=name)
        record["names"] = list(dict.fromkeys([container.id, name, *self.wish.aliases]))
        attach.publish(container.id, record)
        self._start_resolver(container, record)
        container.record[RECORD] = record
        container.save()
        texts = {"hosts": files.hosts(record), "resolv.conf": files.resolv_conf(record, self.wish.dns)}
        for file in self._mounted:
            # in place: the mount shows this very file
            with open(f"{container.directory}/{file}", "w", encoding="utf-8") as opened:
                opened.write(texts[file])

    def _start_resolver(self, container: Container, record: dict[str, Any]) -> None:
        """Start the resolver; a host without the library for it has its own servers in resolv.conf instead."""
        from ocirt.cni import attach, files, resolvers

        wanted = self.wish.dns.get("servers") or files.servers(record)
        try:
            with doing("start the container's resolver"):
                names = [item["name"] for item in record["networks"]]
                resolvers.start(
                    attach.cni_id(container.id), self._namespace(container.pid), container.pid, names, wanted
                )
        except Error as error:
            log.warning(f"names of other containers don't resolve in {container.id}: {error}")
        else:
            record["resolver"] = resolvers.ADDRESS

    def _namespace(self, pid: int) -> str:
        """The path of init's network namespace; init itself may not have entered yet one that it joins."""
        for space in self._config["linux"]["namespaces"]:
            if space["type"] == "network" and space.get("path"):
                return space["path"]
        return f"/proc/{pid}/ns/net"


def _texts_of(directory: str) -> dict[str, bytes]:
    """What the container whose network another one joins reads about it: the other reads the same."""
    found: dict[str, bytes] = {}
    for name in _FILES:
        try:
            with open(f"{directory}/{name}", "rb") as file:
                found[name] = file.read()
        except FileNotFoundError:
            pass  # it has mounts of its own there, or its network is an engine's
    return found


def _has_own_mounts(config: Config) -> bool:
    """Has the container a mount namespace? Without one the files would be mounted over the host's."""
    spaces = (config.get("linux") or {}).get("namespaces") or []
    return any(space["type"] == "mount" for space in spaces)


def detach(id: str, record: dict[str, Any], pid: int) -> None:
    """Take the container out of its networks. `pid`: of init if it is still there, 0 otherwise."""
    from ocirt.cni import attach

    attach.detach(id, record.get(RECORD), f"/proc/{pid}/ns/net" if pid else "")

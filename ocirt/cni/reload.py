"""Telling the kernel again what it should have: after a flushed ruleset, or with other hosts of an overlay."""

from __future__ import annotations

import os
import select

from ocirt import log
from ocirt.cni import cache, networks, ports, protocol, table
from ocirt.cni.address import parse_cidr
from ocirt.cni.attach import default_client
from ocirt.cni.config import CONFIG_DIRECTORY
from ocirt.cni.request import join_errors
from ocirt.errors import Error
from ocirt.linux import libc
from ocirt.linux import netlink_nft as nft

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.result import Result
    from ocirt.linux.netlink import Socket

_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_IN_CHANGES = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # modify, close_write, moved, create, delete
_IN_FLAGS = 0o2000000 | 0o4000


def reload(directory: str = CONFIG_DIRECTORY) -> list[str]:
    """Put back the nftables elements of every attachment, and the peers of every overlay; what was looked at."""
    errors: list[Error] = []
    done: list[str] = []
    for network in networks.find_all(directory):
        for plugin in network.plugins:
            if plugin.get("type") == "overlay":
                from ocirt.cni.plugins import overlay

                try:
                    overlay.sync(plugin)
                    done.append(f"{network.name}: peers")
                except Error as error:
                    errors.append(error)
    with nft.open_nft() as socket:
        for entry in cache.entries(default_client().directory):
            result = entry.parsed()
            if entry.network is None or result is None or not entry.is_alive():
                continue
            owner = table.Owner(entry.network.name, entry.attachment.container, entry.attachment.ifname)
            try:
                for plugin in entry.network.plugins:
                    _restore(socket, plugin, owner, result, entry.attachment.capabilities)
                done.append(f"{owner.network}: {owner.container} {owner.ifname}")
            except Error as error:
                errors.append(error)
    join_errors(errors)
    return done


def _restore(
    socket: Socket, plugin: dict[str, Any], owner: table.Owner, result: Result, capabilities: dict[str, Any]
) -> None:
    """The elements that a plugin of ours makes for an attachment; those that are there are left alone."""
    addresses = [parse_cidr(ip["address"]) for ip in result.container_ips(owner.ifname)]
    kind = plugin.get("type")
    if kind in ("bridge", "ptp", "overlay") and plugin.get("ipMasq") and plugin.get("ipMasqBackend") != "iptables":
        for address in addresses:
            table.add_address(socket, "outgoing", address, owner)
    elif kind == "portmap" and plugin.get("backend", "nftables") == "nftables":
        mappings = ports.parse(capabilities.get("portMappings") or ())
        containers: dict[int, bytes] = {}
        for family, data, _ in addresses:
            containers.setdefault(family, data)
        if mappings:
            ports.remove(socket, mappings, owner)
            ports.add(socket, mappings, containers, owner)
            if protocol.get(plugin, "snat", True):
                for address in addresses:
                    table.add_address(socket, "hairpin", address, owner)
    elif kind == "firewall" and plugin.get("ingressPolicy") in ("same-bridge", "isolated"):
        from ocirt.cni.plugins import firewall

        firewall.restore(socket, owner, result, plugin["ingressPolicy"])


def watch(directory: str = CONFIG_DIRECTORY) -> None:
    """Reload now, and again whenever our tables go away or a file of networks or peers changes; never returns."""
    while True:
        changes = _Changes(directory)
        try:
            try:
                for what in reload(directory):
                    log.info(f"reloaded {what}")
            except Error as error:
                log.warning(str(error))
            changes.wait()
        finally:
            changes.close()


class _Changes:
    """What is waited for: an inotify descriptor and the news of nftables."""

    __slots__ = ("_files", "_rules")

    def __init__(self, directory: str) -> None:
        self._rules = nft.open_nft()
        self._rules.join(_NFT_GROUP)
        self._files = libc.call("inotify_init1", _IN_FLAGS)
        for path in {directory, *_peer_paths(directory)}:
            if os.path.exists(path):
                libc.call("inotify_add_watch", self._files, path.encode(), _IN_CHANGES)

    def wait(self) -> None:
        """Until a file has changed or a table of ours is gone."""
        while True:
            readable, _, _ = select.select([self._files, self._rules.fileno()], [], [])
            if self._files in readable:
                select.select([], [], [], 0.05)  # an editor writes, renames and removes: once for all of it
                return
            if self._rules.fileno() in readable:
                try:
                    list(self._rules.receive())
                except OSError:
                    return  # more news than the queue holds
                with nft.open_nft() as socket:
                    if not nft.has_table(socket, nft.IP, table.NAME):
                        return

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._files)
        self._rules.close()


def _peer_paths(directory: str) -> list[str]:
    found: list[str] = []
    for network in networks.find_all(directory):
        for plugin in network.plugins:
            peers = plugin.get("peers")
            if plugin.get("type") == "overlay" and isinstance(peers, str):
                found.append(peers if os.path.isdir(peers) else os.path.dirname(peers))
    return found

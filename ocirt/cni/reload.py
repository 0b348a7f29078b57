"""Telling the kernel again what it should have: after a flushed ruleset, or with other hosts of an overlay."""

from __future__ import annotations

import os
import select

from ocirt import log
from ocirt.cni import cache, networks, ports, protocol, table, watching
from ocirt.cni.address import parse_cidr
from ocirt.cni.attach import default_client
from ocirt.cni.config import CONFIG_DIRECTORY
from ocirt.cni.plugins import portmap
from ocirt.cni.request import join_errors
from ocirt.errors import Error, doing
from ocirt.linux import netlink_nft as nft

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.result import Result
    from ocirt.linux.netlink import Socket

_NFT_GROUP = 7  # NFNLGRP_NFTABLES


def reload(directory: str = CONFIG_DIRECTORY) -> list[str]:
    """Put back the nftables elements of every attachment, and the peers of every overlay; what was looked at."""
    errors: list[Error] = []
    done: list[str] = []
    for network in networks.find_all(directory):
        for plugin in network.plugins:
            if protocol.get(plugin, "type") == "overlay":
                from ocirt.cni.plugins import overlay

                try:
                    with doing(f"reload network {network.name}"):
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
    kind = protocol.get(plugin, "type")
    if kind in ("bridge", "ptp", "overlay"):
        if protocol.get(plugin, "ipMasq") and protocol.get(plugin, "ipMasqBackend") != "iptables":
            for address in addresses:
                table.add_address(socket, "outgoing", address, owner)
        if kind != "ptp" and protocol.get(plugin, "macspoofchk"):
            from ocirt.cni.plugins import bridge_ports

            bridge_ports.restore(socket, owner, result)
    elif kind == "portmap" and portmap.backend_of(plugin) == "nftables":
        mappings = ports.parse(protocol.get(capabilities, "portMappings") or ())
        containers: dict[int, bytes] = {}
        for family, data, _ in addresses:
            containers.setdefault(family, data)
        if mappings:
            ports.remove(socket, mappings, owner)
            ports.add(socket, mappings, containers, owner)
            sets = (("hairpin", protocol.get(plugin, "snat", True)), ("everyone", protocol.get(plugin, "masqAll")))
            for name in [name for name, on in sets if on]:
                for address in addresses:
                    table.add_address(socket, name, address, owner)
    elif kind == "firewall" and protocol.get(plugin, "ingressPolicy") in ("same-bridge", "isolated"):
        from ocirt.cni.plugins import firewall

        firewall.restore(socket, owner, result, protocol.get(plugin, "ingressPolicy"))


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
        self._files = watching.changes([directory, *_peer_paths(directory)])

    def wait(self) -> None:
        """Until a file has changed or a table of ours is gone."""
        while True:
            readable, _, _ = select.select([self._files, self._rules.fileno()], [], [])
            if self._files in readable:
                watching.settle()
                return
            if self._rules.fileno() in readable:
                try:
                    if any(
                        nft.is_table_gone(kind, payload, table.NAME) for kind, _, _, payload in self._rules.receive()
                    ):
                        return
                except OSError:
                    return  # more news than the queue holds

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._files)
        self._rules.close()


def _peer_paths(directory: str) -> list[str]:
    found: list[str] = []
    for network in networks.find_all(directory):
        for plugin in network.plugins:
            peers = protocol.get(plugin, "peers")
            if protocol.get(plugin, "type") == "overlay" and isinstance(peers, str):
                found.append(peers)
    return found

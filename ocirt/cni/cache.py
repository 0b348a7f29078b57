"""What is known about attachments between ADD and DEL, in libcni's files.

`<directory>/results/<network>-<container>-<ifname>`, mode 0600. The name is
ambiguous, since all parts may hold `-`: only the fields are believed. A file
is written before ADD begins, without a result: whatever ADD has made when it
is killed is found by that, and a file is never torn, since it is renamed into
place.
"""

from __future__ import annotations

import fcntl
import os
import time
from binascii import a2b_base64, b2a_base64

from ocirt import log
from ocirt.cni import config, protocol
from ocirt.cni.request import Attachment
from ocirt.cni.result import Result
from ocirt.errors import Error
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DIRECTORY = "/var/lib/cni"
_KIND = "cniCacheV1"
_WRITTEN = 60  # seconds after which whoever wrote a file is through


class Entry:
    """An attachment as cached; its netns is "" unless that is still the namespace that was attached.

    network   its configuration at ADD, None if the file has none
    result    as the last plugin gave it, None before ADD is through
    boot      of the host in which it was written, "" if another program wrote it
    """

    __slots__ = ("attachment", "boot", "network", "network_name", "path", "result")

    def __init__(self, data: dict[str, Any], path: str) -> None:
        self.path = path
        self.network_name: str = data.get("networkName") or ""
        self.attachment = Attachment(
            data.get("containerId") or "",
            data.get("netns") or "",
            data.get("ifName") or "",
            tuple((str(k), str(v)) for k, v in data.get("cniArgs") or ()),
            data.get("capabilityArgs") or {},
        )
        ours: dict[str, Any] = data.get("ocirt") or {}
        self.boot: str = ours.get("boot", "")
        there = identity(self.attachment.netns)
        if not there or (ours and (self.boot, ours.get("namespace")) != (boot_id(), there)):
            # A path by a pid or a name may lead to another container's namespace by now: DEL would take that
            # one's interface away.
            self.attachment.netns = ""
        self.network: config.NetworkList | None = None
        if data.get("config"):
            self.network = config.parse(a2b_base64(data["config"]), f"the configuration in {path}")
        self.result: dict[str, Any] | None = data.get("result") or None

    def is_alive(self) -> bool:
        """Is the namespace that was attached still there?"""
        return bool(self.attachment.netns)

    def parsed(self) -> Result | None:
        """The result, None if there is none or it can't be read."""
        if self.result is None:
            return None
        try:
            return Result.parse(self.result, self.network.version if self.network else protocol.CURRENT)
        except Error as error:
            log.warning(f"{self.path}: {error}")
            return None


def _path(directory: str, network: str, attachment: Attachment) -> str:
    return f"{directory}/results/{network}-{attachment.container}-{attachment.ifname}"


def save(directory: str, network: config.NetworkList, attachment: Attachment, result: dict[str, Any] | None) -> None:
    """Write the entry; the file is whole or not there."""
    path = _path(directory, network.name, attachment)
    data: dict[str, Any] = {
        "kind": _KIND,
        "containerId": attachment.container,
        "config": b2a_base64(network.data or _as_list(network), newline=False).decode("ascii"),
        "ifName": attachment.ifname,
        "networkName": network.name,
        "netns": attachment.netns,
        "ocirt": {"boot": boot_id(), "namespace": identity(attachment.netns)},
    }
    if attachment.args:
        data["cniArgs"] = [list(pair) for pair in attachment.args]
    if attachment.capabilities:
        data["capabilityArgs"] = attachment.capabilities
    if result is not None:
        data["result"] = result
    parent = os.path.dirname(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    temporary = _temporary(path)
    try:
        fd = os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(parent, 0o700, exist_ok=True)
        fd = os.open(temporary, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # so that remove_torn knows that somebody is at it
        write_all(fd, dump_json(data))
        os.rename(temporary, path)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: a disk that becomes full takes a part first, and says so the second time only."""
    while data:
        data = data[os.write(fd, data) :]


def _temporary(path: str) -> str:
    """Where the file is written: always the same place, since one attachment has one operation at a time."""
    directory, _, name = path.rpartition("/")
    return f"{directory}/.{name}"


def _as_list(network: config.NetworkList) -> bytes:
    return dump_json({"cniVersion": network.version, "name": network.name, "plugins": network.plugins})


def load(directory: str, network: str, attachment: Attachment) -> Entry | None:
    """The entry of an attachment, None if there is none or it is torn (that is logged)."""
    entry = _load(_path(directory, network, attachment))
    if entry is None or (entry.attachment.container, entry.attachment.ifname) != (
        attachment.container,
        attachment.ifname,
    ):
        return None
    return entry


def _load(path: str) -> Entry | None:
    try:
        with open(path, "rb", buffering=0) as file:
            data = protocol.mapping(parse_json(file.read(64 << 20), path))
        if data is None:
            raise Error(f"{path} holds no object")
        if data.get("kind") != _KIND:
            return None  # a bare result, from before libcni 0.8: its name alone says whose
        return Entry(data, path)
    except FileNotFoundError:
        return None
    except (Error, OSError, ValueError, AttributeError, TypeError) as error:
        log.warning(f"cached attachment {path} can't be read: {error}")
        return None


def remove(directory: str, network: str, attachment: Attachment) -> None:
    """Remove the entry; none there is fine."""
    path = _path(directory, network, attachment)
    for name in (_temporary(path), path):
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


def entries(directory: str, *, network: str = "", container: str = "") -> Iterator[Entry]:
    """The entries of a network, a container, or all; what can't be read is logged and left out."""
    try:
        names = sorted(os.listdir(f"{directory}/results"))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.startswith("."):
            continue
        entry = _load(f"{directory}/results/{name}")
        if entry is None or (network and entry.network_name != network):
            continue
        if not container or entry.attachment.container == container:
            yield entry


def remove_torn(directory: str) -> None:
    """Remove temporary files of writers that are gone, and files that a crash of the host has torn."""
    try:
        names = os.listdir(f"{directory}/results")
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        path = f"{directory}/results/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if name.startswith(".") or _is_torn(fd):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
        except OSError:
            continue
        finally:
            os.close(fd)


def _is_torn(fd: int) -> bool:
    """Is the file empty, or no JSON for so long that nobody can be writing it (libcni doesn't by renaming)?"""
    found = os.fstat(fd)
    if found.st_size == 0:
        return True
    if time.time() - found.st_mtime < _WRITTEN:
        return False
    try:
        return protocol.mapping(parse_json(os.pread(fd, 64 << 20, 0), "")) is None
    except Error:
        return True


def identity(netns: str) -> str:
    """Device and inode of a namespace, "" if it isn't there."""
    try:
        found = os.stat(netns)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def boot_id() -> str:
    """Which boot of the host this is."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
            return file.read(64).decode("ascii").strip()
    except OSError:
        return ""

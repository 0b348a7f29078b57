"""Probes of other programs and of the kernel's network parts."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

from ocirt import userns
from ocirt.check.finding import MISSING, OK, PARTLY, Probe, amount

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _id_helpers() -> tuple[str, str]:
    found: list[str] = []
    lacking: list[str] = []
    for name in ("newuidmap", "newgidmap"):
        path = userns.find_helper(name)
        if not path:
            lacking.append(name)
        elif not _privileged(path):
            lacking.append(f"{path} (it has neither the setuid bit nor a capability)")
        else:
            found.append(path)
    return amount(found, lacking)


def _privileged(path: str) -> bool:
    if os.stat(path).st_mode & stat.S_ISUID:
        return True
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _criu() -> tuple[str, str]:
    from ocirt.criu import find, version

    path = find()
    if not path:
        return MISSING, "criu is not installed: no checkpoint, no restore"
    told = f"{path} {version(path)}"
    wrong = _refused(path)
    return (PARTLY, f"{told} can't save containers here: {wrong}") if wrong else (OK, told)


def _refused(path: str) -> str:
    """What `criu check` has against this kernel, "" if nothing: CRIU tells its version also where it can do no more."""
    command = [path, "check"]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
    if result.returncode == 0:
        return ""
    lines = (result.stderr + result.stdout).strip().splitlines() or [f"`criu check` gives {result.returncode}"]
    line = next((line for line in lines if line.startswith("Error")), lines[0])
    return line.partition("): ")[2] or line


def _nftables() -> tuple[str, str]:
    from ocirt.linux import netlink_nft

    with netlink_nft.open_nft() as socket:
        netlink_nft.has_table(socket, 2, "ocirt")
    return OK, "the kernel answers"


def _iptables() -> tuple[str, str]:
    path = shutil.which("iptables", path=PATH)
    return (OK, path) if path else (PARTLY, "iptables is not installed")


PROBES = (
    Probe("tools", "newuidmap", _id_helpers, "apt-get install uidmap: without it a user's container has one id"),
    Probe("tools", "criu", _criu, "install criu, of a version that knows this kernel: `criu check` must be content"),
    Probe("network", "nftables", _nftables, "modprobe nf_tables; port forwarding falls back to iptables or a proxy"),
    Probe("network", "iptables", _iptables, "only needed where nftables is not there"),
)

"""Probes of how the host is set up: cgroups, privilege, limits, users' ids, devices."""

from __future__ import annotations

import os
import resource

from ocirt.cgroups import host
from ocirt.check.finding import MISSING, OK, PARTLY, Probe, amount, read
from ocirt.linux.capability import NAMES

CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
#: What v1 calls a controller of v2.
_ON_V1 = {"io": "blkio"}

#: SECBIT_*: capabilities(7).
SECUREBITS = ("noroot", "noroot-locked", "no-setuid-fixup", "no-setuid-fixup-locked", "keep-caps", "keep-caps-locked")


def _hierarchies() -> tuple[str, str]:
    found = host.hierarchies()
    if not found:
        return MISSING, "no cgroup file system is mounted"
    if host.unified():
        return OK, f"cgroup v2 on {host.MOUNTPOINT}"
    kind = "hybrid: v1 controllers, and v2" if any(not names for names, _ in found) else "v1"
    return OK, f"{kind}, {len(found)} hierarchies"


def _controllers() -> tuple[str, str]:
    on_v1 = {name for names, _ in host.hierarchies() for name in names.split(",")}
    on_v2 = set(read(f"{host.MOUNTPOINT}/cgroup.controllers").split())
    wanted = {name: name in on_v2 or _ON_V1.get(name, name) in on_v1 for name in CONTROLLERS}
    return amount([name for name, has in wanted.items() if has], [name for name, has in wanted.items() if not has])


def _delegation() -> tuple[str, str]:
    """Of an ordinary user: what may be used below the own cgroup."""
    if os.geteuid() == 0:
        return OK, "root needs none"
    if not host.unified():
        return MISSING, "cgroup v1 is never delegated: containers of users have no limits"
    own = host.own().get("", "/")
    directory = host.MOUNTPOINT + own
    if not os.access(f"{directory}/cgroup.procs", os.W_OK):
        return MISSING, f"{directory} is not ours"
    have = read(f"{directory}/cgroup.controllers").split()
    return amount([n for n in CONTROLLERS if n in have], [n for n in CONTROLLERS if n not in have])


def _systemd() -> tuple[str, str]:
    if not os.path.isdir("/run/systemd/system"):
        return PARTLY, "systemd does not run here: --systemd-cgroup is not possible"
    bus = "/run/systemd/private" if os.geteuid() == 0 else f"/run/user/{os.geteuid()}/systemd/private"
    return (OK, "runs, and can be asked for scopes") if os.path.exists(bus) else (PARTLY, f"{bus} is not there")


def _capabilities() -> tuple[str, str]:
    """What can be given to containers at all: the bounding set."""
    import prctl  # type: ignore[import-not-found,import-untyped,unused-ignore]  # pyright: ignore

    lacking: list[str] = []
    for name in NAMES:
        short = name.removeprefix("CAP_").lower()
        if getattr(prctl.capbset, short, True) is False:  # pyright: ignore
            lacking.append(name)
    bits = int(prctl.get_securebits())  # pyright: ignore
    locked = [name for bit, name in enumerate(SECUREBITS) if bits >> bit & 1]
    notes = f"; securebits {' '.join(locked)}" if locked else ""
    if prctl.get_no_new_privs():  # pyright: ignore
        notes += "; no_new_privs is set: newuidmap can't work"
    if lacking:
        return PARTLY, f"not in the bounding set: {' '.join(lacking)}{notes}"
    return (PARTLY if notes else OK), f"all {len(NAMES)} in the bounding set{notes}"


def _open_files() -> tuple[str, str]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 65536:
        return PARTLY, f"at most {hard} open files a process: a configuration that asks for more fails"
    return OK, "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"


def _subordinate_ids() -> tuple[str, str]:
    from ocirt import rootless

    uid = os.geteuid()
    if uid == 0:
        return OK, "root maps any"
    found = {file: sum(n for _, n in rootless.subordinate(file, uid)) for file in ("/etc/subuid", "/etc/subgid")}
    if all(count >= 65536 for count in found.values()):
        return OK, f"{min(found.values())} ids"
    return PARTLY, ", ".join(f"{file}: {count} ids" for file, count in found.items())


def _devices() -> tuple[str, str]:
    names = ("/dev/net/tun", "/dev/fuse")
    usable = [name for name in names if os.access(name, os.R_OK | os.W_OK)]
    return amount(usable, [name for name in names if name not in usable])


def _memfd() -> tuple[str, str]:
    level = read("/proc/sys/vm/memfd_noexec") or "0"
    if level == "2":
        return PARTLY, "vm.memfd_noexec is 2: programs are started through a sealed interpreter, which is slower"
    return OK, "programs can be started from sealed memory"


def _resctrl() -> tuple[str, str]:
    return (OK, "mounted") if os.path.exists("/sys/fs/resctrl/schemata") else (PARTLY, "not mounted or not there")


PROBES = (
    Probe("cgroups", "kind", _hierarchies, "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    Probe("cgroups", "controllers", _controllers, "boot without cgroup_disable=, and let v1 go for all of v2"),
    Probe(
        "cgroups",
        "delegation",
        _delegation,
        "Delegate=cpu cpuset io memory pids in user@.service, and containers below the user's own systemd",
    ),
    Probe("cgroups", "systemd", _systemd, "--cgroup-manager cgroupfs works everywhere"),
    Probe("cgroups", "resctrl", _resctrl, "mount -t resctrl resctrl /sys/fs/resctrl on a CPU that has Intel RDT"),
    Probe("privilege", "capabilities", _capabilities, "start the engine with them: CapabilityBoundingSet= of its unit"),
    Probe("privilege", "open files", _open_files, "LimitNOFILE= of the engine's unit, or default_ulimits of podman"),
    Probe("privilege", "subordinate ids", _subordinate_ids, "usermod --add-subuids 100000-165535 --add-subgids … USER"),
    Probe("privilege", "devices", _devices, "chmod 666: slirp4netns and fuse-overlayfs of ordinary users need them"),
    Probe("privilege", "sealed programs", _memfd, "sysctl -w vm.memfd_noexec=1"),
)

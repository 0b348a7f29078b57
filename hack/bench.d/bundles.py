"""The containers that are measured: one root file system, two configurations."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import host

_DEFAULT_MOUNTS = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)
_MASKED = (
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def make_rootfs(path: str) -> None:
    """busybox and the directories that mounts want."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        os.makedirs(f"{path}/{name}")
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if not busybox:
        raise SystemExit("bench: install busybox-static")
    shutil.copy2(busybox, f"{path}/bin/busybox")
    for name in ("sh", "sleep", "true"):
        os.symlink("busybox", f"{path}/bin/{name}")


def plain(rootfs: str, cgroup: str, *args: str) -> dict[str, Any]:
    """About what `runc spec` writes."""
    capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs, "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": where, "type": kind, "source": source, **({"options": list(options)} if options else {})}
            for where, kind, source, options in _DEFAULT_MOUNTS
        ],
        "linux": {
            "cgroupsPath": f"/{cgroup}",
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
        },
    }


def full(rootfs: str, cgroup: str, profile: host.Profile, *args: str) -> dict[str, Any]:
    """What an engine asks for: Docker's seccomp profile, three limits, a cgroup namespace."""
    config = plain(rootfs, cgroup, *args)
    linux = config["linux"]
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), host.CAPABILITIES)
    linux["seccomp"] = profile.filter
    linux["namespaces"].append({"type": "cgroup"})
    linux["resources"].update(
        memory={"limit": 256 << 20}, cpu={"shares": 512, "quota": 50000, "period": 100000}, pids={"limit": 100}
    )
    return config


def write(directory: str, config: dict[str, Any]) -> None:
    """Make a bundle."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)

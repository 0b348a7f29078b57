"""The configuration to start from: what `ocirt spec` writes."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config, Mount, NamespaceType

#: The version of the specification whose keys the template uses.
VERSION = "1.3.0"

_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_NAMESPACES: tuple[NamespaceType, ...] = ("pid", "network", "ipc", "uts", "mount", "cgroup")
_SAFE = ("nosuid", "noexec", "nodev")

#: destination, type, source, options (config-linux.md, Default Filesystems)
_MOUNTS = (
    ("/proc", "proc", "proc", _SAFE),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", _SAFE),
    ("/sys", "sysfs", "sysfs", (*_SAFE, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_SAFE, "relatime", "ro")),
)

#: What a container has no business to read: kernel memory, key rings, timings and power figures of others.
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def default(rootless: bool = False) -> Config:
    """A configuration that runs a shell on a terminal in namespaces of its own.

    With `rootless`, for the calling user: root of a user namespace that maps only that user.
    """
    config: Config = {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": list(_CAPABILITIES),
                "effective": list(_CAPABILITIES),
                "permitted": list(_CAPABILITIES),
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "ocirt",
        "mounts": [
            {"destination": destination, "type": kind, "source": source, "options": list(options)}
            for destination, kind, source, options in _MOUNTS
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
        },
    }
    return _rootless(config) if rootless else config


def _rootless(config: Config) -> Config:
    """The same without what only root can have: a network, a cgroup, more than one ID.

    Sysfs can only be mounted by the owner of the network namespace, so the host's is bound.
    """
    linux = config.get("linux") or {}
    linux["namespaces"] = [{"type": kind} for kind in _NAMESPACES if kind not in ("network", "cgroup")]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    del linux["resources"]
    mounts: list[Mount] = []
    for mount in config.get("mounts") or ():
        if mount["destination"] == "/sys/fs/cgroup":
            continue
        if mount["destination"] == "/sys":
            mount["type"], mount["source"] = "none", "/sys"
            mount["options"] = ["rbind", *_SAFE, "ro"]
        mount["options"] = [o for o in mount.get("options") or () if not o.startswith(("gid=", "uid="))]
        mounts.append(mount)
    config["mounts"] = mounts
    return config

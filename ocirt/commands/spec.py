"""ocirt spec"""

from __future__ import annotations

import os

from ocirt.commands import Options, indented
from ocirt.commands.version import SPEC
from ocirt.errors import AlreadyExists, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
MASKED = (
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
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def run(options: Options) -> int:
    """Write a config.json to start from."""
    path = options.file or os.path.join(options.bundle, "config.json")
    text = indented(rootless(template()) if options.rootless else template()) + "\n"
    with doing("write a configuration"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise AlreadyExists(f"File {os.path.basename(path)} exists. Remove it first", 17) from None
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


def template() -> dict[str, Any]:
    """A configuration that runs a shell on a terminal in namespaces of its own."""
    return {
        "ociVersion": SPEC,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "ocirt",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READONLY),
        },
    }


def mounts() -> list[dict[str, Any]]:
    """The file systems that Linux programs expect (config-linux.md, Default Filesystems)."""
    safe = ["nosuid", "noexec", "nodev"]
    rows: tuple[tuple[str, str, str, list[str]], ...] = (
        ("/proc", "proc", "proc", safe),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", safe),
        ("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    )
    return [
        {"destination": destination, "type": kind, "source": source, "options": options}
        for destination, kind, source, options in rows
    ]


def rootless(config: dict[str, Any]) -> dict[str, Any]:
    """The same for a user other than root: root of a user namespace that maps only that user, no cgroup.

    The host's network is shared, because nobody could connect another one to it; sysfs can only be mounted by
    the owner of the network namespace, so the host's is bound.
    """
    linux = config["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] not in ("network", "cgroup")] + [
        {"type": "user"}
    ]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    del linux["resources"]
    config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/sys")]
    for mount in config["mounts"]:
        mount["options"] = [o for o in mount["options"] if not o.startswith(("gid=", "uid="))]
    config["mounts"].append(
        {
            "destination": "/sys",
            "type": "none",
            "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
        }
    )
    return config

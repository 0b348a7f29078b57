"""A busybox bundle: a root filesystem of its own and a config.json that is a dict until it is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
DIRECTORIES = ("bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:A user:/home/user:/bin/sh\n"
GROUP = "root:x:0:\nuser:x:1000:\nmore:x:2000:user\n"
PATH = "PATH=/bin:/usr/bin"

#: What Docker and podman grant by default.
CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]


@cache
def applets() -> list[str]:
    """Names of busybox's applets."""
    return subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()


def make_rootfs(root: Path) -> None:
    """A small root filesystem: busybox, its applets as symlinks, passwd and group."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    shutil.copy2(BUSYBOX, root / "bin/busybox")
    for name in applets():
        if name != "busybox":
            os.symlink("busybox", root / "bin" / name)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)


def default_mounts() -> list[dict[str, Any]]:
    """The mounts that every engine asks for."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
    ]


def default_config(id: str) -> dict[str, Any]:
    """A config.json as an engine would write it; its cgroup has the container's own name."""
    capabilities = {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": [PATH, "TERM=dumb"],
            "cwd": "/",
            "capabilities": capabilities,
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": default_mounts(),
        "linux": {
            "cgroupsPath": f"/{id}",
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


class Bundle:
    """A directory with rootfs/ and, from `write` on, config.json."""

    def __init__(self, path: Path, id: str) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        self.config: dict[str, Any] = default_config(id)
        make_rootfs(self.rootfs)

    @property
    def process(self) -> dict[str, Any]:
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        linux: dict[str, Any] = self.config["linux"]
        return linux

    @property
    def mounts(self) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = self.config["mounts"]
        return mounts

    def mount(
        self, destination: str, type: str = "tmpfs", source: str | None = None, options: list[str] | None = None
    ) -> dict[str, Any]:
        """Add a mount; it is returned for more."""
        entry: dict[str, Any] = {"destination": destination, "type": type, "source": source or type}
        if options is not None:
            entry["options"] = options
        self.mounts.append(entry)
        return entry

    def bind(self, source: Path | str, destination: str, *options: str) -> dict[str, Any]:
        """Add a bind mount (rbind unless an option says bind)."""
        kind = () if "bind" in options or "rbind" in options else ("rbind",)
        return self.mount(destination, "none", str(source), [*kind, *options])

    def namespace(self, type: str, path: str | Path | None = None, *, remove: bool = False) -> None:
        """Ask for a namespace, new or joined at `path`, or for none of this type."""
        kept = [n for n in self.linux["namespaces"] if n["type"] != type]
        if not remove:
            kept.append({"type": type, "path": str(path)} if path else {"type": type})
        self.linux["namespaces"] = kept

    def args(self, *args: str) -> None:
        self.process["args"] = list(args)

    def sh(self, script: str) -> None:
        """Run a shell script as the container's process."""
        self.args("/bin/sh", "-c", script)

    def capabilities(self, *names: str, kinds: tuple[str, ...] = ("bounding", "effective", "permitted")) -> None:
        """Add capabilities to the named sets."""
        for kind in kinds:
            held = self.process["capabilities"].setdefault(kind, [])
            held += [n for n in names if n not in held]

    def add_user_namespace(self, host: int = 100000, size: int = 65536) -> None:
        """A user namespace whose ids start at `host`, with a root filesystem that belongs to it."""
        self.namespace("user")
        self.linux["uidMappings"] = [{"containerID": 0, "hostID": host, "size": size}]
        self.linux["gidMappings"] = [{"containerID": 0, "hostID": host, "size": size}]
        for top, directories, files in os.walk(self.rootfs):
            for name in (".", *directories, *files):
                path = os.path.join(top, name)
                status = os.lstat(path)
                if status.st_uid < host:
                    os.lchown(path, status.st_uid + host, status.st_gid + host)

    def write(self, path: Path | None = None) -> None:
        """Write config.json."""
        (path or self.path / "config.json").write_text(json.dumps(self.config, indent=1))

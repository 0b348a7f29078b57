"""What this runtime is and can do (features.md of the specification), and which version it is."""

from __future__ import annotations

import os

import ocirt
from ocirt import hooks, namespaces
from ocirt.identity import scheduling
from ocirt.identity.seccomp import arches, names
from ocirt.linux.capability import NAMES
from ocirt.rootfs import options as mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The newest version of the runtime specification that ocirt follows
SPEC = "1.3.0"

#: What of config.json's annotations changes what ocirt does; a final dot makes a prefix of it.
UNSAFE_ANNOTATIONS = ("org.criu.", "org.ocirt.network", "org.ocirt.network.", "org.systemd.property.", "run.oci.")


def features() -> dict[str, Any]:
    """The features structure: names come from the tables that the runtime itself works by (features.md).

    It says what ocirt can do, not what this host can; only supportedFlags asks the kernel, as features-linux.md
    wants it.
    """
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC,
        "hooks": list(hooks.KINDS),
        "mountOptions": list(mount_options.NAMES),
        "linux": {
            "namespaces": sorted(namespaces.TYPES),
            "capabilities": list(NAMES),
            "cgroup": dict.fromkeys(("v1", "v2", "systemd", "systemdUser", "rdma"), True),
            "seccomp": {
                "enabled": True,
                "actions": sorted(names.ACTIONS),
                "operators": sorted(names.OPERATORS),
                "archs": sorted(arches.NAMES),
                "knownFlags": list(names.FLAGS),
                "supportedFlags": names.supported_flags(),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "memoryPolicy": {"modes": list(scheduling.MEMORY_MODES), "flags": list(scheduling.MEMORY_FLAGS)},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": about(),
        "potentiallyUnsafeConfigAnnotations": list(UNSAFE_ANNOTATIONS),
    }


def about() -> dict[str, str]:
    """What engines ask about a runtime beyond the specification."""
    found = {"io.github.ocirt.version": ocirt.__version__}
    if commit():
        found["io.github.ocirt.commit"] = commit()
    # the key that engines look for, whatever the runtime
    found["org.opencontainers.runc.checkpoint.enabled"] = "true"
    return found


def commit() -> str:
    """The package's commit, as hack/install noted it there or as the checkout's .git has it; "" if unknown."""
    package = os.path.dirname(os.path.abspath(ocirt.__file__))
    git = os.path.join(os.path.dirname(package), ".git")
    found = _line(os.path.join(package, "COMMIT")) or _line(os.path.join(git, "HEAD"))
    if found.startswith("ref: "):
        return _line(os.path.join(git, found[5:]))
    return found


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""

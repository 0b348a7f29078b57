"""Rules about kernel parameters: only those that the container has for itself."""

from __future__ import annotations

import os

from ocirt.validation.found import key as at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config
    from ocirt.validation.found import Found, Rule

#: Parameters of the IPC namespace, apart from fs.mqueue.*: namespaces(7), ipc_namespaces(7).
_IPC = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)

_CHARACTERS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-:@/")


def dotted(key: str) -> str:
    """A key with dots as separators: sysctl(8) takes / as well, whichever comes first, and swaps the two."""
    first = next((c for c in key if c in "./"), ".")
    return key if first == "." else key.translate({0x2E: "/", 0x2F: "."})


def sysctl_names(config: Config, found: Found) -> None:
    """A key names a file below /proc/sys and nothing else: no `..`, no empty part, no odd character.

    CRI-O's CVE-2022-0811 was a `+` that another program took for a separator.
    [sysctl(8)]
    """
    for key in (config.get("linux") or {}).get("sysctl") or ():
        if problem := _invalid(key):
            found.error(at("linux.sysctl", key), f"invalid kernel parameter: {problem}")


def _invalid(key: str) -> str:
    """What is wrong with a key by itself, "" if nothing is."""
    if any(c not in _CHARACTERS for c in key):
        return "only letters, digits and . _ - : @ / are allowed"
    parts = [part.replace("/", ".") for part in dotted(key).split(".")]
    if len(parts) < 2 or not all(part.strip(".") for part in parts):
        return "must be such as net.ipv4.ip_forward"
    return ""


def sysctl_namespaces(config: Config, found: Found) -> None:
    """A parameter must belong to a namespace that the container has for itself, or the host's would be changed.

    [namespaces(7)]
    """
    linux = config.get("linux") or {}
    parameters = linux.get("sysctl")
    if not parameters:
        return
    paths: dict[str, str] = {n["type"]: n.get("path") or "" for n in linux.get("namespaces") or ()}
    for key, value in parameters.items():
        if not _invalid(key) and (problem := _foreign(dotted(key), paths)):
            found.error(at("linux.sysctl", key), f'sysctl "{dotted(key)}" {problem}')
        if dotted(key) == "kernel.domainname" and config.get("domainname", value) != value:
            found.error(at("linux.sysctl", key), "conflicts with domainname", value)


def _foreign(name: str, paths: dict[str, str]) -> str:
    """Why a parameter isn't the container's own, "" if it is; `paths` has its namespaces, new ones with ""."""
    if name in _IPC or name.startswith("fs.mqueue."):
        return "" if "ipc" in paths else "is not allowed in the hosts ipc namespace"
    if name.startswith("net."):
        own = "network" in paths and not _is_own(paths["network"])
        return "" if own else "not allowed in host network namespace"
    if name.startswith("user."):
        return "" if "user" in paths else "is not allowed without a user namespace"
    if name == "kernel.hostname" and "uts" in paths:
        return 'is not allowed as it conflicts with the OCI "hostname" field'
    if name == "kernel.domainname" and "uts" in paths:
        return ""
    return "is not in a separate kernel namespace"


def _is_own(path: str) -> bool:
    """Is `path` the network namespace of the runtime itself?"""
    try:
        return bool(path) and os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net"))
    except OSError:
        return False  # joining it will fail with the reason


RULES: tuple[Rule, ...] = (sysctl_names, sysctl_namespaces)

"""Rules about the container process."""

from __future__ import annotations

from ocirt.validation.rules.basics import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ocirt.spec import Config, IDMapping
    from ocirt.validation.found import Found, Rule

    Set = Literal["bounding", "effective", "inheritable", "permitted", "ambient"]

#: capabilities(7), in the kernel's order.
CAPABILITIES = frozenset(
    [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_LINUX_IMMUTABLE",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_BROADCAST",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_IPC_LOCK",
        "CAP_IPC_OWNER",
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_SYS_CHROOT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_PACCT",
        "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT",
        "CAP_SYS_NICE",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TIME",
        "CAP_SYS_TTY_CONFIG",
        "CAP_MKNOD",
        "CAP_LEASE",
        "CAP_AUDIT_WRITE",
        "CAP_AUDIT_CONTROL",
        "CAP_SETFCAP",
        "CAP_MAC_OVERRIDE",
        "CAP_MAC_ADMIN",
        "CAP_SYSLOG",
        "CAP_WAKE_ALARM",
        "CAP_BLOCK_SUSPEND",
        "CAP_AUDIT_READ",
        "CAP_PERFMON",
        "CAP_BPF",
        "CAP_CHECKPOINT_RESTORE",
    ]
)

_SETS: tuple[Set, ...] = ("bounding", "effective", "inheritable", "permitted", "ambient")


def program(config: Config, found: Found) -> None:
    """The first argument "is used with the same semantics as execvp's file": an empty one names no file.

    [config.md, Process]
    """
    args = (config.get("process") or {}).get("args")
    if args and not args[0]:
        found.error("process.args[0]", 'exec: "": executable file not found in $PATH', "")


def process_environment(config: Config, found: Found) -> None:
    """env has "the same semantics as environ": every entry is NAME=value.

    [config.md, Process]
    """
    environment((config.get("process") or {}).get("env") or [], "process.env", found)


def console_size(config: Config, found: Found) -> None:
    """The size of a terminal is two unsigned shorts; it is ignored where there is no terminal.

    [ioctl_tty(2), TIOCSWINSZ]
    """
    process = config.get("process") or {}
    size = process.get("consoleSize")
    if not size or not process.get("terminal"):
        return
    for key in ("height", "width"):
        if size[key] > 65535:
            found.error(f"process.consoleSize.{key}", "must not be more than 65535", size[key])


def rlimits(config: Config, found: Found) -> None:
    """ "If rlimits contains duplicated entries with same type, the runtime MUST generate an error"; soft <= hard.

    [config.md, POSIX process]
    """
    seen: set[str] = set()
    for index, limit in enumerate((config.get("process") or {}).get("rlimits") or ()):
        path = f"process.rlimits[{index}]"
        if limit["type"] in seen:
            found.error(f"{path}.type", "is given twice, each type may be given once", limit["type"])
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            found.error(f"{path}.soft", f"must not be more than hard, which is {limit['hard']}", limit["soft"])


def capabilities(config: Config, found: Found) -> None:
    """A capability that doesn't exist or can't be granted "MUST be logged as a warning by the runtime".

    [config.md, Linux Process]
    """
    sets = (config.get("process") or {}).get("capabilities")
    if not sets:
        return
    unknown: dict[str, str] = {}
    for key in _SETS:
        for index, name in enumerate(sets.get(key) or ()):
            if name not in CAPABILITIES:
                unknown.setdefault(name, f"process.capabilities.{key}[{index}]")
    for name, path in unknown.items():
        upper = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
        hint = f"did you mean {upper}?" if upper in CAPABILITIES else ""
        found.warn(path, "ignoring unknown or unavailable capabilities", name, hint)
    needed = {*(sets.get("permitted") or ())} & {*(sets.get("inheritable") or ())}
    for index, name in enumerate(sets.get("ambient") or ()):
        if name in CAPABILITIES and name not in needed:
            message = "can't be granted: an ambient capability must be permitted and inheritable as well"
            found.warn(f"process.capabilities.ambient[{index}]", message, name)


def ids_are_mapped(config: Config, found: Found) -> None:
    """A process can only have IDs that its user namespace knows.

    [user_namespaces(7), Defining user and group ID mappings]
    """
    linux, user = config.get("linux") or {}, (config.get("process") or {}).get("user")
    namespace = next((n for n in linux.get("namespaces") or () if n["type"] == "user"), None)
    if not user or namespace is None or namespace.get("path"):
        return
    _mapped(user.get("uid"), linux.get("uidMappings"), "process.user.uid", found)
    _mapped(user.get("gid"), linux.get("gidMappings"), "process.user.gid", found)
    for index, gid in enumerate(user.get("additionalGids") or ()):
        _mapped(gid, linux.get("gidMappings"), f"process.user.additionalGids[{index}]", found)


def _mapped(number: int | None, mappings: list[IDMapping] | None, path: str, found: Found) -> None:
    if number is None or not mappings:
        return
    if not any(m["containerID"] <= number < m["containerID"] + m["size"] for m in mappings):
        key = "uidMappings" if path.endswith("uid") else "gidMappings"
        found.error(path, f"is not mapped in the user namespace: no entry of linux.{key} holds it", number)


RULES: tuple[Rule, ...] = (program, process_environment, console_size, rlimits, capabilities, ids_are_mapped)

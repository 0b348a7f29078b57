"""Rules about the container process."""

from __future__ import annotations

from ocirt.validation.rules.basics import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config, IDMapping
    from ocirt.validation.found import Found, Rule


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


RULES: tuple[Rule, ...] = (program, process_environment, console_size, rlimits, ids_are_mapped)

"""ocirt exec"""

from __future__ import annotations

import posix as os

from ocirt import exec as execution
from ocirt import foreground
from ocirt.commands import Options, runtime
from ocirt.errors import InvalidConfig, doing
from ocirt.identity.capabilities import NUMBERS
from ocirt.jsontext import parse_json
from ocirt.validation import check_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LAST_ID = 4294967294  # 2**32 - 1 is "no id" to the kernel


def run(options: Options) -> int:
    """Run a process in a container; in the foreground, give its status."""
    rt = runtime(options)
    container = execution.load(rt, options.id, ignore_paused=options.ignore_paused)
    config = container.config()
    raw = b""
    if options.process:
        process, raw = _from_file(options.process)
    else:
        process = _from_options(config.get("process") or {}, options)
    check_process(process, config, raw)  # type: ignore[arg-type]
    creation = {
        "console_socket": options.console_socket,
        "pid_file": options.pid_file,
        "pidfd_socket": options.pidfd_socket,
        "preserve_fds": options.preserve_fds,
        "cgroups": tuple(options.cgroup),
        "ignore_paused": options.ignore_paused,
    }
    return foreground.execute(rt, container, config, process, detach=options.detach, **creation)


def _from_file(name: str) -> tuple[dict[str, Any], bytes]:
    with doing(f"read the process from {name}"):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while part := os.read(fd, 1 << 20):
                data += part
        finally:
            os.close(fd)
        process: Any = parse_json(data, name)
    if not isinstance(process, dict):
        raise InvalidConfig(f"{name}: a process is a JSON object")
    members: dict[str, Any] = process  # pyright: ignore[reportUnknownVariableType]
    return members, data


def _from_options(first: dict[str, Any], options: Options) -> dict[str, Any]:
    """The container's first process with what the options change."""
    if not options.command:
        raise InvalidConfig("exec: no command given (name one after the id, or give --process FILE)")
    process = dict(first)
    process["args"] = list(options.command)
    process["terminal"] = options.tty
    if not options.tty:
        process.pop("consoleSize", None)
    if options.cwd:
        process["cwd"] = options.cwd
    if options.env:
        process["env"] = [*(first.get("env") or ()), *options.env]
    if options.user is not None:
        process["user"] = {**_without_groups(first.get("user") or {}), **parse_user(options.user, "--user")}
    if options.additional_gids:
        user: dict[str, Any] = dict(process.get("user") or {"uid": 0, "gid": 0})
        user["additionalGids"] = [
            *(user.get("additionalGids") or ()),
            *(_id(gid, "--additional-gids") for gid in options.additional_gids),
        ]
        process["user"] = user
    if options.cap:
        process["capabilities"] = _add_capabilities(first.get("capabilities") or {}, options.cap)
    if options.no_new_privs:
        process["noNewPrivileges"] = True
    if options.process_label:
        process["selinuxLabel"] = options.process_label
    if options.apparmor:
        process["apparmorProfile"] = options.apparmor
    return process


def _without_groups(user: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in user.items() if key != "additionalGids"}


def parse_user(text: str, flag: str) -> dict[str, int]:
    """`UID[:GID]`, strictly: int() takes signs, spaces, underscores and other scripts' digits (CVE-2026-30892)."""
    uid, colon, gid = text.partition(":")
    user = {"uid": _id(uid, flag), "gid": 0}
    if colon:
        user["gid"] = _id(gid, flag)
    return user


def _id(text: str, flag: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _LAST_ID:
        raise InvalidConfig(f"{flag}: {text!r} is not a user or group id: a decimal number from 0 to {_LAST_ID}")
    return int(text)


def _add_capabilities(sets: dict[str, list[str]], added: list[str]) -> dict[str, list[str]]:
    """Bounding, effective and permitted get them; inheritable never, nor so ambient (CVE-2022-29162)."""
    names: list[str] = []
    for name in added:
        full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
        if full not in NUMBERS:
            raise InvalidConfig(f"--cap {name}: there is no such capability")
        names.append(full)
    result = {kind: list(values or ()) for kind, values in sets.items()}
    for kind in ("bounding", "effective", "permitted"):
        result[kind] = [*result.get(kind, ()), *(n for n in names if n not in result.get(kind, ()))]
    return result

"""Writing the id mappings of a new user namespace.

user_namespaces(7); config-linux.md, User namespace mappings.
"""

from __future__ import annotations

import _stat as stat
import posix as os

from ocirt.errors import Error, Unsupported
from ocirt.linux.oslike import environ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.spec import IDMapping, Linux


def write_mappings(pid: int, linux: Linux) -> None:
    """Map the ids of `pid`'s user namespace: by the kernel's files, or by newuidmap(1) without privilege."""
    uids = _lines(linux.get("uidMappings") or [])
    gids = _lines(linux.get("gidMappings") or [])
    privileged = os.geteuid() == 0
    if not privileged:
        _check_helpers(uids, gids)
    if privileged:
        _write(pid, "uid_map", uids)
        _write(pid, "gid_map", gids)
        return
    if _maps_only_self(uids, os.geteuid()):
        _write(pid, "uid_map", uids)
    else:
        _run_helper("newuidmap", pid, uids)
    if _maps_only_self(gids, os.getegid()):
        # user_namespaces(7): without privilege a gid map needs setgroups to be denied first
        _write(pid, "setgroups", ["deny"])
        _write(pid, "gid_map", gids)
    else:
        _run_helper("newgidmap", pid, gids)


def _lines(mappings: list[IDMapping]) -> list[str]:
    return [f"{m['containerID']} {m['hostID']} {m['size']}" for m in mappings]


def _maps_only_self(lines: list[str], id: int) -> bool:
    return len(lines) == 1 and lines[0].split()[1:] == [str(id), "1"]


def _write(pid: int, name: str, lines: list[str]) -> None:
    if not lines:
        return
    path = f"/proc/{pid}/{name}"
    text = "\n".join(lines) + ("\n" if name != "setgroups" else "")
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise Error(
            f"write {text!r} to {path}: {(error.strerror or '').lower()}"
            " (are the host ids mapped in the runtime's own user namespace, and do no ranges overlap?)",
            error.errno or 0,
        ) from None
    finally:
        os.close(fd)


def own_streams(plan: Plan) -> None:
    """Give the standard streams to the container's user: in a user namespace root may not take what isn't its own.

    As identity.user.own_stdio does inside; only pipes and sockets of the
    runtime's user. Where the namespace is joined by its path, whose ids are mapped isn't known.
    """
    if not plan.process or os.geteuid() != 0 or _is_joined(plan.linux):
        return
    uid = plan.user.get("uid", 0)
    for mapping in plan.linux.get("uidMappings") or ():
        if 0 <= uid - mapping["containerID"] < mapping["size"]:
            host = mapping["hostID"] + uid - mapping["containerID"]
            break
    else:
        return
    for fd in (0, 1, 2):
        try:
            status = os.fstat(fd)
            if status.st_uid == 0 and (stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode) or os.isatty(fd)):
                os.fchown(fd, host, -1)
        except OSError:
            continue  # closed, or on a file system where nobody may


def _is_joined(linux: Linux) -> bool:
    return any(n["type"] == "user" and n.get("path") for n in linux.get("namespaces") or ())


_HELPERS = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"


def find_helper(name: str) -> str:
    """The path of newuidmap(1) or newgidmap(1), "" if it isn't installed."""
    for directory in (environ().get("PATH") or _HELPERS).split(":") + _HELPERS.split(":"):
        path = f"{directory}/{name}"
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    return ""


def _check_helpers(uids: list[str], gids: list[str]) -> None:
    for name, lines, id in (("newuidmap", uids, os.geteuid()), ("newgidmap", gids, os.getegid())):
        if not _maps_only_self(lines, id) and not find_helper(name):
            raise Unsupported(
                f"{name}: executable file not found in $PATH (install the package uidmap or shadow-utils)"
            )


def _run_helper(name: str, pid: int, lines: list[str]) -> None:
    """Run newuidmap(1) or newgidmap(1): PID then the triples."""
    path = find_helper(name)
    arguments = [name, str(pid), *" ".join(lines).split()]
    read, write = os.pipe2(os.O_CLOEXEC)
    child = os.posix_spawn(
        path, arguments, environ(), file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)]
    )
    os.close(write)
    output = b""
    while chunk := os.read(read, 4096):
        output += chunk
    os.close(read)
    _, status = os.waitpid(child, 0)
    if status:
        text = output.decode("utf-8", "replace").strip()
        raise Error(f"{' '.join(arguments)}: {text or f'exit status {status}'} (see /etc/subuid and /etc/subgid)")

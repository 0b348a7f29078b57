"""Containers of an ordinary user: an automatic user namespace, and why the host forbids one.

A bundle made for root runs for everybody: where config.json has no user
namespace, or one without mappings, and the caller isn't root, root is mapped to
the caller and the other ids to the caller's subordinate ids (subuid(5), subgid(5)).
"""

from __future__ import annotations

import os

from ocirt import log
from ocirt.errors import Error
from ocirt.userns import find_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocirt.spec import Config, IDMapping

    Obstacle = tuple[str, str, bool, str]

#: (file, value that forbids, it concerns root as well, what to do about it)
OBSTACLES: tuple[Obstacle, ...] = (
    ("/proc/sys/user/max_user_namespaces", "0", True, "set the sysctl user.max_user_namespaces above 0"),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        False,
        "set the sysctl kernel.unprivileged_userns_clone to 1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        False,
        "AppArmor restricts user namespaces of ordinary users: set the sysctl"
        " kernel.apparmor_restrict_unprivileged_userns to 0, or load a profile with `userns,` for ocirt's interpreter",
    ),
)
_REFUSALS = (1, 13, 28)  # EPERM, EACCES, ENOSPC


def add_user_namespace(config: Config) -> None:
    """Give the configuration of a caller who isn't root a user namespace and mappings of the caller's ids.

    What is listed stays: a namespace to join by its path, and mappings. For root nothing
    is changed: root can map any ids, so validation asks which.
    """
    if os.geteuid() == 0:
        return
    linux = config.setdefault("linux", {})
    listed = linux.get("namespaces") or []
    user = next((n for n in listed if n["type"] == "user"), None)
    if user is None:
        linux["namespaces"] = [*listed, {"type": "user"}]
    elif user.get("path"):
        return
    if not linux.get("uidMappings") and not linux.get("gidMappings"):
        uid, gid = os.geteuid(), os.getegid()
        linux["uidMappings"] = _mappings("/etc/subuid", "newuidmap", uid, uid)
        linux["gidMappings"] = _mappings("/etc/subgid", "newgidmap", uid, gid)


def _mappings(file: str, helper: str, uid: int, id: int) -> list[IDMapping]:
    """Root is the caller; 1 and up are the caller's subordinate ids, if there are any and newuidmap is there."""
    mappings: list[IDMapping] = [{"containerID": 0, "hostID": id, "size": 1}]
    ranges = subordinate(file, uid)
    if not ranges or not find_helper(helper):
        missing = (
            f"{helper} is missing (package uidmap or shadow-utils)" if ranges else f"{file} has no line for the user"
        )
        log.warning(f"only one id is mapped: {missing}")
        return mappings
    first = 1
    for start, count in ranges:
        mappings.append({"containerID": first, "hostID": start, "size": count})
        first += count
    return mappings


def subordinate(file: str, uid: int) -> list[tuple[int, int]]:
    """The (first id, count) ranges of a user in /etc/subuid or /etc/subgid (`name or uid:first:count`)."""
    import pwd

    names = {str(uid)}
    try:
        names.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            found = [line.strip().split(":") for line in lines]
    except OSError:
        return []
    return [
        (int(fields[1]), int(fields[2]))
        for fields in found
        if len(fields) == 3 and fields[0] in names and fields[1].isdigit() and fields[2].isdigit() and int(fields[2])
    ]


def explain(
    error: Error, *, uid: int | None = None, obstacles: Sequence[tuple[str, str, bool, str]] = OBSTACLES
) -> None:
    """Add to a refusal what on this host forbids the caller user namespaces, and the remedy."""
    if error.errno not in _REFUSALS:
        return
    uid = os.geteuid() if uid is None else uid
    for file, forbidding, concerns_root, remedy in obstacles:
        if uid == 0 and not concerns_root:
            continue
        try:
            with open(file, encoding="ascii") as value:
                if value.read().strip() == forbidding:
                    error.note(remedy)
        except OSError:
            continue

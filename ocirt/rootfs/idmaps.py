"""Mappings of ids for mounts: where they come from, and the user namespaces that carry them.

config.md, Mounts (uidMappings, gidMappings, idmap, ridmap); mount_setattr(2), MOUNT_ATTR_IDMAP.
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, InvalidConfig, call_failed, from_oserror
from ocirt.linux import libc, sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options
    from ocirt.spec import Mount

    #: [(first id, first id outside, how many)] of users and of groups
    Ranges = list[tuple[int, int, int]]
    Mappings = tuple[Ranges, Ranges]

_EVERYBODY = [(0, 0, 0xFFFFFFFF)]


def userns(plan: Plan, index: int, entry: Mount, o: Options, known: dict[str, int]) -> int:
    """A user namespace with the mapping of a mount; one for every mapping, kept in `known`."""
    where = f"mounts[{index}]"
    if o.mapping:
        mappings = _resolve(plan, _parse(o.mapping, f"{where}.options"), where)
    elif entry.get("uidMappings") or entry.get("gidMappings"):
        if not (entry.get("uidMappings") and entry.get("gidMappings")):
            raise InvalidConfig(f"{where}: uidMappings and gidMappings must be given together")
        mappings = ranges_of(entry.get("uidMappings")), ranges_of(entry.get("gidMappings"))
    elif "user" in plan.joined:
        return plan.joined["user"]
    elif plan.linux.get("uidMappings") and "user" in plan.new:
        mappings = ranges_of(plan.linux.get("uidMappings")), ranges_of(plan.linux.get("gidMappings"))
    else:
        raise InvalidConfig(
            f'{where}: "idmap" without uidMappings and gidMappings needs a container with a user namespace'
        )
    key = repr(mappings)
    if key not in known:
        known[key] = make_userns(mappings)
    return known[key]


def ranges_of(mappings: object) -> Ranges:
    """Mappings of config.json as ranges."""
    return [(e["containerID"], e["hostID"], e["size"]) for e in mappings or ()]  # type: ignore[attr-defined]


def make_userns(mappings: Mappings) -> int:
    """The descriptor of a new user namespace with these mappings; nobody lives in it."""
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end_write)
            sched.unshare(sched.CLONE_NEWUSER)
            os.write(ready_write, b"0")
            os.read(end_read, 1)
        except Error as error:
            os.write(ready_write, str(error.errno).encode())
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(end_read)
    try:
        errno = int(os.read(ready_read, 16) or b"5")
        if errno:
            raise Error(call_failed("unshare(CLONE_NEWUSER)", errno, os.strerror(errno)), errno)
        for name, ranges in zip(("uid_map", "gid_map"), mappings, strict=True):
            _write_map(f"/proc/{pid}/{name}", ranges)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(end_write)
        os.waitpid(pid, 0)


def _write_map(path: str, ranges: Ranges) -> None:
    text = "".join(f"{first} {outside} {size}\n" for first, outside, size in ranges)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        hint = {
            libc.EPERM: "mapping the ids of a mount takes privilege over them",
            libc.EINVAL: "do no ranges overlap, and are there at most 340?",
        }.get(error.errno or 0, "")
        raise from_oserror(error, f"write {text!r} to {path}", hint) from None
    finally:
        os.close(fd)


def _parse(text: str, where: str) -> tuple[list[tuple[bool, int, int, int]], ...]:
    """Read crun's `uids=0-1000-10#…;gids=…`: (relative, id in the source, id outside, how many).

    With an `@` in front, the second id is one of the container's user namespace.
    """
    found: dict[str, list[tuple[bool, int, int, int]]] = {"uids": [], "gids": []}
    for part in text.split(";"):
        name, equals, ranges = part.partition("=")
        if not equals or name not in found or found[name]:
            raise InvalidConfig(f'{where}: "{text}" is not like "uids=ID-ID-SIZE#ID-ID-SIZE;gids=ID-ID-SIZE"')
        relative = False
        for one in ranges.split("#"):
            relative = relative or one.startswith("@")
            numbers = one.removeprefix("@").split("-")
            if len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
                raise InvalidConfig(f'{where}: "{one}" in "{text}" is not like "ID-ID-SIZE"')
            found[name].append((relative, *(int(n) for n in numbers)))  # type: ignore[arg-type]
    return found["uids"], found["gids"]


def _resolve(plan: Plan, parsed: tuple[list[tuple[bool, int, int, int]], ...], where: str) -> Mappings:
    """Make relative ranges absolute; without ranges for users or for groups, the container's are taken."""
    result: list[Ranges] = []
    for ranges, key in zip(parsed, ("uidMappings", "gidMappings"), strict=True):
        container = ranges_of(plan.linux.get(key)) or _EVERYBODY
        absolute: Ranges = []
        for relative, inner, outer, size in ranges:
            absolute += [(inner, outer, size)] if not relative else _to_host(container, inner, outer, size, where)
        result.append(absolute or container)
    return result[0], result[1]


def _to_host(container: Ranges, inner: int, outer: int, size: int, where: str) -> Ranges:
    """Split a range of ids of the container at the borders of the container's mappings."""
    found: Ranges = []
    while size > 0:
        for first, host, count in container:
            if first <= outer < first + count:
                n = min(size, first + count - outer)
                found.append((inner, host + outer - first, n))
                inner, outer, size = inner + n, outer + n, size - n
                break
        else:
            raise InvalidConfig(
                f"{where}: id {outer} of an idmap option has no mapping in the container's user namespace"
            )
    return found


def host_id(ranges: Ranges, id: int) -> int:
    """The id outside of an id of the container, -1 if it has none."""
    for first, host, count in ranges:
        if first <= id < first + count:
            return host + id - first
    return -1

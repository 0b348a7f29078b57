"""The runtime's side: detached mounts that init couldn't make itself.

In a user namespace init can't open every source that the caller may, bind a directory
without what is mounted on it, make a device, or map the ids of a mount. So the runtime
makes these mounts, detached, before the clone, and init only attaches them.

config.md, Mounts (uidMappings, gidMappings, idmap, ridmap); mount_setattr(2).
"""

from __future__ import annotations

import os

from ocirt.errors import Error, InvalidConfig, Unsupported, call_failed, doing
from ocirt.linux import libc, paths, sched
from ocirt.linux import mount as m
from ocirt.rootfs import binds, devices, explain, options
from ocirt.userns import write_mappings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options
    from ocirt.spec import Linux, Mount

    #: [(first id, first id outside, how many)] of users and of groups
    Ranges = list[tuple[int, int, int]]
    Mappings = tuple[Ranges, Ranges]

_ENOENT = 2
_EACCES = 13
_EVERYBODY = [(0, 0, 0xFFFFFFFF)]
#: These show a namespace of the container; the runtime is in others.
_OF_NAMESPACES = frozenset(("proc", "sysfs", "mqueue", "cgroup", "cgroup2", "devpts"))


def prepare(plan: Plan) -> None:
    """Fill `plan.trees`, and `plan.device_trees` for a user namespace."""
    try:
        _prepare_mounts(plan)
        if plan.userns:
            _prepare_devices(plan)
    except BaseException:
        for prepared in (plan.trees, plan.device_trees):
            for fd in prepared.values():
                os.close(fd)
            prepared.clear()
        raise


def _prepare_mounts(plan: Plan) -> None:
    userns_fds: dict[str, int] = {}
    try:
        for index, entry in enumerate(plan.config.get("mounts") or ()):
            o = options.parse(entry.get("options") or ())
            with doing(f'mounts[{index}]: mount "{entry.get("source") or ""}" to rootfs at "{entry["destination"]}"'):
                if o.idmap is not None or entry.get("uidMappings") or entry.get("gidMappings"):
                    userns = _userns(plan, index, entry, o, userns_fds)
                    plan.trees[index] = _mapped(plan, entry, o, userns)
                elif plan.userns and o.bind and not o.flags & m.MS_REMOUNT and "mount" in plan.new:
                    _open_source(plan, index, entry, o)
    finally:
        for fd in userns_fds.values():
            os.close(fd)


def _open_source(plan: Plan, index: int, entry: Mount, o: Options) -> None:
    source = os.path.join(plan.bundle, entry.get("source") or "")
    if o.marks & options.COPY_SYMLINK or (source + "/").startswith(plan.rootfs + "/"):
        return  # what is in the root may be mounted by then
    try:
        tree = binds.clone(source, o)
    except Error as error:
        # Without privilege it is left to init, which is root of its user namespace.
        if error.errno in (libc.EPERM, libc.ENOSYS):
            return
        raise explain.bind(error, source) from None
    try:
        plan.trees[index] = _finish(plan, entry, o, tree)
    except Error as error:
        failure = explain.attributes(error, tree, o)
        os.close(tree)
        if error.errno != libc.ENOSYS:
            raise failure from None


def _clone_mapped(source: str, o: Options, userns: int) -> int:
    recursive = m.AT_RECURSIVE if o.bind & m.MS_REC else 0
    if o.idmap == recursive and not o.marks & options.SRC_NOFOLLOW:
        # In one call: a mount whose ids are mapped already can be mapped anew only while it is cloned.
        flags = m.OPEN_TREE_CLONE | recursive
        return m.open_tree_attr(m.AT_FDCWD, os.fsencode(source), flags, m.MOUNT_ATTR_IDMAP, 0, userns)
    tree = binds.clone(source, o)
    m.mount_setattr(tree, o.idmap or 0, m.MOUNT_ATTR_IDMAP, userns=userns)
    return tree


def _finish(plan: Plan, entry: Mount, o: Options, tree: int) -> int:
    """Attributes as the options say, propagation as init's mount namespace has it."""
    if o.bind:
        binds.finish_detached(tree, entry["destination"], o)
    elif o.rset | o.rclear:
        m.mount_setattr(tree, m.AT_RECURSIVE, o.rset, o.rclear)
    root = plan.linux.get("rootfsPropagation") or "slave"
    if root not in ("shared", "rshared"):
        propagation = m.MS_SLAVE if root in ("slave", "rslave") else m.MS_PRIVATE
        m.mount_setattr(tree, m.AT_RECURSIVE, propagation=propagation)
    return tree


def _mapped(plan: Plan, entry: Mount, o: Options, userns: int) -> int:
    kind = entry.get("type") or ""
    try:
        if o.bind:
            tree = _clone_mapped(os.path.join(plan.bundle, entry.get("source") or ""), o, userns)
        elif kind in _OF_NAMESPACES:
            raise Unsupported(f"the ids of a {kind} mount can't be mapped")
        else:
            tree = _new_mapped(plan, entry, o, userns)
        return _finish(plan, entry, o, tree)
    except Error as error:
        hint = {
            libc.ENOSYS: "idmapped mounts need Linux 5.12",
            libc.EINVAL: "this filesystem may not support idmapped mounts on this kernel",
            libc.EPERM: "the source may be idmapped already, or the runtime lacks privilege over its filesystem",
        }.get(error.errno)
        if hint and not isinstance(error, Unsupported):
            call = f'mount_setattr("{entry.get("source") or kind}", MOUNT_ATTR_IDMAP)'
            raise Error(call_failed(call, error.errno, os.strerror(error.errno), hint), error.errno) from None
        raise


def _new_mapped(plan: Plan, entry: Mount, o: Options, userns: int) -> int:
    kind = entry.get("type") or ""
    data = list(o.data)
    if kind == "tmpfs" and not any("mode=" in d for d in data):
        data = [*_inherited_mode(plan, entry["destination"]), *data]
    fields = [("source", entry.get("source") or kind), *options.split_data(data)]
    tree = m.new_filesystem(kind, fields, o.set & ~m.MOUNT_ATTR_RDONLY)
    m.mount_setattr(tree, 0, m.MOUNT_ATTR_IDMAP, userns=userns)
    return tree


def _inherited_mode(plan: Plan, destination: str) -> list[str]:
    root = os.open(plan.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = paths.open_in_root(root, destination)
    except Error:
        return []
    finally:
        os.close(root)
    mode = os.fstat(fd).st_mode & 0o7777
    os.close(fd)
    return [f"mode={mode:04o}"]


# --- user namespaces that carry a mapping


def _userns(plan: Plan, index: int, entry: Mount, o: Options, known: dict[str, int]) -> int:
    """A user namespace with the mapping of a mount; one for every mapping, kept in `known`."""
    where = f"mounts[{index}]"
    if o.mapping:
        mappings = _resolve(plan, _parse(o.mapping, f"{where}.options"), where)
    elif entry.get("uidMappings") or entry.get("gidMappings"):
        if not (entry.get("uidMappings") and entry.get("gidMappings")):
            raise InvalidConfig(f"{where}: uidMappings and gidMappings must be given together")
        mappings = _ranges(entry.get("uidMappings")), _ranges(entry.get("gidMappings"))
    elif "user" in plan.joined:
        return plan.joined["user"]
    elif plan.linux.get("uidMappings") and "user" in plan.new:
        mappings = _ranges(plan.linux.get("uidMappings")), _ranges(plan.linux.get("gidMappings"))
    else:
        raise InvalidConfig(
            f'{where}: "idmap" without uidMappings and gidMappings needs a container with a user namespace'
        )
    key = repr(mappings)
    if key not in known:
        known[key] = make_userns(mappings)
    return known[key]


def _ranges(mappings: object) -> Ranges:
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
        users, groups = ([{"containerID": a, "hostID": b, "size": n} for a, b, n in ranges] for ranges in mappings)
        linux: Linux = {"uidMappings": users, "gidMappings": groups}  # type: ignore[typeddict-item]
        write_mappings(pid, linux)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(end_write)
        os.waitpid(pid, 0)


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
        container = _ranges(plan.linux.get(key)) or _EVERYBODY
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


# --- devices


def _prepare_devices(plan: Plan) -> None:
    """Fill `plan.device_trees`: nodes on a detached tmpfs of the runtime's, with mode and owner as wanted.

    Where that isn't possible (without privilege, before Linux 6.15) init binds the host's nodes.
    """
    wanted = devices.wanted(plan)
    if not wanted or "mount" not in plan.new:
        return
    uids, gids = _ranges(plan.linux.get("uidMappings")), _ranges(plan.linux.get("gidMappings"))
    umask = os.umask(0)
    store = -1
    try:
        store = m.new_filesystem("tmpfs", [("source", "dev"), ("mode", "700"), ("size", "64k")], m.MOUNT_ATTR_NOEXEC)
        for number, (path, (kind, major, minor, mode, uid, gid)) in enumerate(wanted.items()):
            name = str(number)
            os.mknod(name, kind | mode, os.makedev(major, minor), dir_fd=store)
            os.chown(name, _host_id(uids, uid), _host_id(gids, gid), dir_fd=store)
            plan.device_trees[path] = m.open_tree(store, name.encode(), m.OPEN_TREE_CLONE)
    except (Error, OSError) as error:
        if error.errno not in (libc.EPERM, libc.EINVAL, libc.ENOSYS, _EACCES):
            raise
    finally:
        os.umask(umask)
        if store >= 0:
            os.close(store)


def _host_id(ranges: Ranges, id: int) -> int:
    for first, host, count in ranges:
        if first <= id < first + count:
            return host + id - first
    return -1

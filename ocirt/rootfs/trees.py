"""The runtime's side: detached mounts that init couldn't make itself.

In a user namespace init can't open every source that the caller may, bind a directory
without what is mounted on it, make a device, or map the ids of a mount. So the runtime
makes these mounts, detached, before the clone, and init only attaches them.

config.md, Mounts (uidMappings, gidMappings, idmap, ridmap); mount_setattr(2).
"""

from __future__ import annotations

import os

from ocirt.errors import Error, Unsupported, call_failed, doing
from ocirt.linux import libc, paths
from ocirt.linux import mount as m
from ocirt.rootfs import binds, explain, idmaps, nodes, options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options
    from ocirt.spec import Mount

#: These show a namespace of the container; the runtime is in others.
_OF_NAMESPACES = frozenset(("proc", "sysfs", "mqueue", "cgroup", "cgroup2", "devpts"))


def prepare(plan: Plan) -> None:
    """Fill `plan.trees`, and `plan.device_trees` for a user namespace."""
    try:
        _prepare_mounts(plan)
        if plan.userns:
            nodes.prepare(plan)
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
                    userns = idmaps.userns(plan, index, entry, o, userns_fds)
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
        plan.trees[index] = finish(plan, entry, o, tree)
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


def finish(plan: Plan, entry: Mount, o: Options, tree: int) -> int:
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
        return finish(plan, entry, o, tree)
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

"""A mount of type `cgroup`: what the container sees of its control groups.

cgroup v2 is one file system. For v1, and where both are used, it is a tmpfs with one
directory a hierarchy and a link for every controller that shares its hierarchy.
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, call_failed
from ocirt.linux import libc, paths
from ocirt.linux import mount as m
from ocirt.linux.oslike import fsencode, split
from ocirt.rootfs import binds, options, targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options

_ENOENT = 2
_EBUSY = 16
_SAFE = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC


def mount_cgroups(plan: Plan, destination: str, o: Options) -> None:
    """Mount the control groups of `plan.cgroups` at `destination`."""
    if all(not controllers for controllers, _, _ in plan.cgroups):
        root, path = plan.cgroups[0][1:] if plan.cgroups else ("/sys/fs/cgroup", "/")
        _mount_v2(plan, destination, root, path, o)
    else:
        _mount_v1(plan, destination, o)


def _mount_v2(plan: Plan, destination: str, root: str, path: str, o: Options) -> None:
    target, _ = targets.open_target(plan, destination, directory=True)
    try:
        flags = m.flags_of(o.set) | o.flags
        data = ",".join(o.data).encode() or None
        m.mount(b"cgroup2", m.by_fd(plan.proc, target), b"cgroup2", flags, data)
    except Error as error:
        if error.errno not in (libc.EPERM, _EBUSY):
            call = f'mount("cgroup2", "{destination}", "cgroup2", "{",".join(o.data)}")'
            raise Error(call_failed(call, error.errno, os.strerror(error.errno)), error.errno) from None
        # A user namespace without a cgroup namespace of its own.
        _bind_v2(plan, destination, root, path, o)
        return
    finally:
        os.close(target)
    if o.propagation:
        fd = paths.open_in_root(plan.root, destination)
        for propagation in o.propagation:
            m.change_propagation(plan.proc, fd, propagation)
        os.close(fd)


def _bind_v2(plan: Plan, destination: str, root: str, path: str, o: Options) -> None:
    """Bind what a cgroup2 mount would have shown; read-only stays read-only (CVE-2023-25809)."""
    if plan.cgroups:
        shown = options.parse(("bind",))
    else:
        # without a cgroup of its own (a rootless container on v1) it sees the host's, whose mounts below are locked
        shown = options.parse(("rbind", "rro" if o.set & m.MOUNT_ATTR_RDONLY else "rrw"))
    shown.set, shown.propagation = o.set, o.propagation
    source = root + path if "cgroup" in plan.new else root
    try:
        binds.bind(plan, source, destination, shown)
    except Error as error:
        if error.errno != _ENOENT:
            raise
        # Nothing to show: whatever of the host's hierarchy is at the destination must not be seen.
        target, _ = targets.open_target(plan, destination, directory=True)
        m.mount(b"tmpfs", m.by_fd(plan.proc, target), b"tmpfs", m.MS_RDONLY | m.flags_of(_SAFE), b"size=0,mode=755")
        os.close(target)


def _mount_v1(plan: Plan, destination: str, o: Options) -> None:
    target, _ = targets.open_target(plan, destination, directory=True)
    try:
        tree = m.new_filesystem("tmpfs", [("source", "cgroup"), ("mode", "755")], _SAFE)
        m.attach(tree, target)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        known = targets.mount_ids(plan)
        m.mount(b"cgroup", m.by_fd(plan.proc, target), b"tmpfs", m.flags_of(_SAFE), b"mode=755")
        tree = targets.reopen(plan, destination, known)
    finally:
        os.close(target)
    # From here on everything is in our own tmpfs, relative to its descriptor.
    attributes = _SAFE | o.set & m.MOUNT_ATTR_RDONLY
    for controllers, root, path in plan.cgroups:
        name = split(root)[1] if controllers else "unified"
        os.mkdir(name, 0o755, dir_fd=tree)
        point = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        try:
            if "cgroup" in plan.new:
                kind, data = (b"cgroup", controllers.encode()) if controllers else (b"cgroup2", None)
                m.mount(kind, m.by_fd(plan.proc, point), kind, m.flags_of(attributes), data)
            else:
                _bind_hierarchy(plan, root + path, tree, name, point, attributes)
        finally:
            os.close(point)
        for controller in controllers.split(",") if "," in controllers else ():
            if controller != name:
                os.symlink(name, controller, dir_fd=tree)
    for propagation in o.propagation:
        m.change_propagation(plan.proc, tree, propagation)
    if o.set & m.MOUNT_ATTR_RDONLY:
        m.change_attributes(plan.proc, tree, m.MOUNT_ATTR_RDONLY, 0)
    os.close(tree)


def _bind_hierarchy(plan: Plan, source: str, tree: int, name: str, point: int, attributes: int) -> None:
    """Bind the container's group of one hierarchy; without a group in it the directory stays empty."""
    path = fsencode(source)
    try:
        try:
            group = m.open_tree(m.AT_FDCWD, path, m.OPEN_TREE_CLONE)
            m.attach(group, point)
        except Error as error:
            if error.errno != libc.ENOSYS:
                raise
            m.mount(path, m.by_fd(plan.proc, point), None, m.MS_BIND, None)
            # In our own tmpfs nobody else can have put something there.
            group = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree)
    except Error as error:
        if error.errno != _ENOENT:
            raise
        return
    m.change_attributes(plan.proc, group, attributes, 0)
    os.close(group)

"""Where the container's root comes from and how init enters it.

config.md, Root; config-linux.md, Rootfs Mount Propagation; pivot_root(2).
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, call_failed, doing
from ocirt.linux import libc, mount
from ocirt.linux.oslike import fsencode, join
from ocirt.rootfs import binds, options
from ocirt.rootfs.targets import is_proc_root, mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

#: linux.rootfsPropagation: what becomes of the root mount.
PROPAGATION = {
    "shared": mount.MS_SHARED,
    "rshared": mount.MS_SHARED | mount.MS_REC,
    "slave": mount.MS_SLAVE,
    "rslave": mount.MS_SLAVE | mount.MS_REC,
    "private": mount.MS_PRIVATE,
    "rprivate": mount.MS_PRIVATE | mount.MS_REC,
    "unbindable": mount.MS_UNBINDABLE,
    "runbindable": mount.MS_UNBINDABLE | mount.MS_REC,
}

_EINVAL = 22
_EPERM = 1
_EACCES = 13


def _propagation(plan: Plan) -> int:
    return PROPAGATION[plan.linux.get("rootfsPropagation") or "private"]


def isolate_mounts(plan: Plan) -> None:
    """keep the container's mounts from the host

    The mounts of the new namespace become slaves, so that volumes can still see
    what the host mounts later, or private, if the root shall be. With a shared root
    they stay peers of the host's: a `shared` volume is to propagate to the host.
    """
    if "mount" not in plan.new:
        return
    wanted = plan.linux.get("rootfsPropagation")
    if wanted in ("shared", "rshared"):
        return
    private = wanted in ("private", "rprivate", "unbindable", "runbindable")
    mount.mount(None, b"/", None, mount.MS_REC | (mount.MS_PRIVATE if private else mount.MS_SLAVE), None)


def open_procfs(plan: Plan) -> None:
    """open a procfs of the container's pid namespace

    It is never attached anywhere, so nothing can be mounted over its files
    (CVE-2019-16884, CVE-2025-52881). Where no new one may be made (in a user namespace
    whose /proc is partly covered) it is the host's, verified to be the root of a procfs.
    """
    if plan.proc >= 0:
        return
    try:
        context = mount.fsopen(b"proc")
        try:
            mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
            attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
            plan.proc = mount.fsmount(context, attributes)
            return
        finally:
            os.close(context)
    except Error as error:
        if error.errno not in (libc.ENOSYS, libc.EPERM):
            raise
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not is_proc_root(fd):
        raise Error("/proc is not the root of a procfs")
    plan.proc = fd


def bind_rootfs(plan: Plan) -> None:
    """bind the root filesystem on itself

    So that it is a mount of its own: pivot_root(2) wants that, root.readonly concerns
    nothing else, and taking it away takes along what is mounted below it.
    """
    rootfs = fsencode(plan.rootfs)
    own = "mount" in plan.new
    slave = own and _propagation(plan) & mount.MS_SLAVE
    with doing(f"root.path {plan.rootfs}"):
        if own and _propagation(plan) & mount.MS_SHARED:
            _open_shared_volumes(plan)
            _make_parent_private(rootfs)
        try:
            plan.root = _bind_on_itself(rootfs)
        except Error as error:
            hint = (
                "root of the user namespace must be able to reach it" if plan.userns and error.errno == _EACCES else ""
            )
            raise Error(call_failed("bind", error.errno, os.strerror(error.errno), hint), error.errno) from None
        if not slave:
            # In the host's own mount namespace nothing mounted below may reach its peers.
            recursive = 0 if own else mount.MS_REC
            mount.change_propagation(plan.proc, plan.root, mount.MS_PRIVATE | recursive)


def _bind_on_itself(path: bytes) -> int:
    try:
        tree = mount.open_tree(mount.AT_FDCWD, path, mount.OPEN_TREE_CLONE | mount.AT_RECURSIVE)
        mount.attach(tree, mount.AT_FDCWD, path)
        return tree
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
    mount.mount(path, path, None, mount.MS_BIND | mount.MS_REC, None)
    # "/" is what is mounted there under us, "/.." what is on top of it.
    return os.open(b"/.." if path == b"/" else path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _open_shared_volumes(plan: Plan) -> None:
    """Clone the volumes that shall propagate to the host while the mounts they are on still do."""
    for index, entry in enumerate(plan.config.get("mounts") or ()):
        o = options.parse(entry.get("options") or ())
        if not (o.bind and index not in plan.trees and any(p & mount.MS_SHARED for p in o.propagation)):
            continue
        try:
            tree = binds.clone(join(plan.bundle, entry.get("source") or ""), o)
        except Error:
            continue  # it says what is wrong when its turn comes
        try:
            binds.finish_detached(tree, entry["destination"], o)
            plan.trees[index] = tree
        except Error:
            os.close(tree)  # likewise


def _make_parent_private(path: bytes) -> None:
    """Make the mount that holds `path` private: pivot_root(2) refuses a shared parent."""
    while True:
        try:
            mount.mount(None, path, None, mount.MS_PRIVATE, None)
            return
        except Error as error:
            if error.errno != _EINVAL or path == b"/":  # EINVAL: not a mount point
                raise
        path = path.rpartition(b"/")[0] or b"/"


def enter_root(plan: Plan) -> None:
    """enter the root filesystem"""
    if "mount" not in plan.new:
        _chroot(plan)
    elif plan.no_pivot:
        _cover_proc_and_sysfs(plan)
        _move_and_chroot(plan)
    else:
        _pivot(plan)
    os.chdir("/")


def _pivot(plan: Plan) -> None:
    """pivot_root(".", "."): the old root ends up over the new one and is taken away from there."""
    shared = bool(_propagation(plan) & mount.MS_SHARED)
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if shared else -1
    os.fchdir(plan.root)
    try:
        mount.pivot_root(b".", b".")
    except Error as error:
        if error.errno == _EINVAL:
            error.reason += ' (on a ramfs root, as of an initrd, only "--no-pivot" works)'
        raise
    if shared:
        # Peers of the host's mounts: taking them away here would take them away there.
        os.fchdir(old)
        os.close(old)
        mount.mount(None, b".", None, mount.MS_SLAVE | mount.MS_REC, None)
    mount.umount2(b".", mount.MNT_DETACH)


def _move_and_chroot(plan: Plan) -> None:
    try:
        mount.move_mount(plan.root, mount.AT_FDCWD, b"/")
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        mount.mount(fsencode(plan.rootfs), b"/", None, mount.MS_MOVE, None)
    _chroot(plan)


def _chroot(plan: Plan) -> None:
    os.fchdir(plan.root)
    os.chroot(".")


def _cover_proc_and_sysfs(plan: Plan) -> None:
    """Take away the host's full procfs and sysfs mounts before the chroot.

    They stay in the namespace below the moved root; a process with a user namespace of
    its own could otherwise mount fresh ones by pointing at them as fully visible.
    """
    rootfs = fsencode(plan.rootfs)
    for line in mountinfo(plan.proc):
        fields = line.split()
        kind = fields[fields.index(b"-") + 1]
        root, point = fields[3], _unescape(fields[4])
        if kind not in (b"proc", b"sysfs") or root != b"/" or point == rootfs or point.startswith(rootfs + b"/"):
            continue
        try:
            mount.umount2(point, mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
        except Error as error:
            if error.errno not in (_EINVAL, _EPERM):
                raise
            # Locked: it came from a more privileged namespace, and can only be covered.
            mount.mount(b"tmpfs", point, b"tmpfs", mount.MS_RDONLY, b"size=0,mode=0")


def _unescape(field: bytes) -> bytes:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    for escape, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(escape, character)
    return field


def set_root_propagation(plan: Plan) -> None:
    """set the propagation of the root filesystem

    Only now: before the root is entered, pivot_root(2) refuses a shared one, and what
    is mounted on it would be shared as well.
    """
    wanted = _propagation(plan)
    if "mount" in plan.new and wanted & (mount.MS_SHARED | mount.MS_UNBINDABLE):
        mount.change_propagation(plan.proc, plan.root, wanted)

"""The runtime's side: device nodes for a container with a user namespace, which can't make any.

They are made on a tmpfs of the runtime's that is never attached on the host, with the mode
and the owner that config.json asks for; init attaches a clone of each.
"""

from __future__ import annotations

import _socket
import posix as os
import stat

from ocirt.errors import Error
from ocirt.linux import fds, libc, sched
from ocirt.linux import mount as m
from ocirt.rootfs import devices
from ocirt.rootfs.idmaps import host_id, ranges_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_EACCES = 13
#: SCM_RIGHTS takes 253 descriptors a message.
_FDS_MAX = 250


def prepare(plan: Plan) -> None:
    """Fill `plan.device_trees`. Without the privilege for it, init binds the host's nodes."""
    wanted = bound(plan)
    if not wanted or "mount" not in plan.new:
        return
    store = -1
    try:
        store = m.new_filesystem("tmpfs", [("source", "dev"), ("mode", "700"), ("size", "1m")], m.MOUNT_ATTR_NOEXEC)
        fill(store, plan)
        for path, tree in zip(wanted, _clone_each(store, len(wanted)), strict=False):
            plan.device_trees[path] = tree
    except (Error, OSError) as error:
        if error.errno not in (libc.EPERM, libc.ENOSYS, _EACCES):
            raise
    finally:
        if store >= 0:
            os.close(store)


def bound(plan: Plan) -> dict[str, devices.Device]:
    """The devices that init can't make. A FIFO is none: it may."""
    return {path: device for path, device in devices.wanted(plan).items() if device[0] != stat.S_IFIFO}


def fill(store: int, plan: Plan) -> None:
    """Make the nodes of `bound(plan)` in a directory, named 0, 1, 2 …"""
    uids, gids = ranges_of(plan.linux.get("uidMappings")), ranges_of(plan.linux.get("gidMappings"))
    umask = os.umask(0)
    try:
        for number, (kind, major, minor, mode, uid, gid) in enumerate(bound(plan).values()):
            os.mknod(str(number), kind | mode, os.makedev(major, minor), dir_fd=store)
            os.chown(str(number), host_id(uids, uid), host_id(gids, gid), dir_fd=store)
    finally:
        os.umask(umask)


def _clone_each(store: int, count: int) -> list[int]:
    """Detached clones of the files 0, 1, 2 … of the detached mount `store`."""
    trees: list[int] = []
    try:
        for number in range(count):
            trees.append(m.open_tree(store, str(number).encode(), m.OPEN_TREE_CLONE))
        return trees
    except Error as error:
        for tree in trees:
            os.close(tree)
        if error.errno != libc.EINVAL:
            raise
    return _clone_elsewhere(store, count) if count <= _FDS_MAX else []


def _clone_elsewhere(store: int, count: int) -> list[int]:
    """The same before Linux 6.15, where only an attached mount can be cloned.

    A child attaches it in a mount namespace of its own and passes the clones back.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            sched.unshare(sched.CLONE_NEWNS)
            m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE, None)
            m.move_mount(store, m.AT_FDCWD, b"/")
            trees = [m.open_tree(store, str(number).encode(), m.OPEN_TREE_CLONE) for number in range(count)]
            fds.send(theirs, b"x", tuple(trees))
        finally:
            os._exit(0)
    try:
        theirs.close()
        return fds.receive(ours, 1, count)[1]
    finally:
        ours.close()
        os.waitpid(pid, 0)

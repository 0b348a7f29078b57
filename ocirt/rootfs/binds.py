"""Bind mounts, and what is done with any mount once it is attached.

config.md, Mounts; a bind mount is a detached clone of its source that is attached to
the opened destination.
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, from_oserror
from ocirt.linux import libc, paths
from ocirt.linux import mount as m
from ocirt.linux.oslike import fsdecode, fsencode
from ocirt.rootfs import explain, options, targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options

_EEXIST = 17


def bind(plan: Plan, source: str, destination: str, o: Options) -> None:
    """Mount the file or directory `source` of the host at `destination`."""
    if o.marks & options.COPY_SYMLINK and _copy_symlink(plan, source, destination):
        return
    try:
        tree = clone(source, o)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise explain.bind(error, source) from None
        _bind_by_path(plan, source, destination, o)
        return
    attached = False
    try:
        check_bind(destination, tree)
        target = _open_target(plan, destination, tree, o)
        try:
            m.move_mount(tree, target)
            attached = True
        except Error as error:
            if error.errno != libc.ENOSYS:
                raise explain.attach(error, source, destination) from None
        finally:
            os.close(target)
    finally:
        if not attached:
            os.close(tree)
    if attached:
        finish(plan, destination, tree, o)
    else:
        _bind_by_path(plan, source, destination, o)


def _open_target(plan: Plan, destination: str, source: int, o: Options) -> int:
    follow = not o.marks & options.DEST_NOFOLLOW
    return targets.open_target(plan, destination, directory=targets.is_directory(source), follow=follow)[0]


def clone(source: str, o: Options) -> int:
    """A detached clone of the source of a bind mount."""
    flags = m.OPEN_TREE_CLONE
    if o.bind & m.MS_REC:
        flags |= m.AT_RECURSIVE
    if o.marks & options.SRC_NOFOLLOW:
        flags |= m.AT_SYMLINK_NOFOLLOW
    return m.open_tree(m.AT_FDCWD, fsencode(source), flags)


def finish_detached(tree: int, destination: str, o: Options) -> None:
    """Give a detached bind mount its attributes."""
    if o.set | o.clear:
        late = targets.clean(destination) == "/dev"
        m.mount_setattr(tree, 0, o.set & ~m.MOUNT_ATTR_RDONLY if late else o.set, o.clear)
    if o.rset | o.rclear:
        m.mount_setattr(tree, m.AT_RECURSIVE, o.rset, o.rclear)


def _bind_by_path(plan: Plan, source: str, destination: str, o: Options) -> None:
    """The same by mount(2), before Linux 5.2."""
    flags = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if o.marks & options.SRC_NOFOLLOW else 0)
    try:
        fd = os.open(fsencode(source), flags)
    except OSError as error:
        raise from_oserror(error, f'open("{source}")') from None
    more = bool(o.set | o.clear | o.rset | o.rclear or o.propagation or o.late or targets.clean(destination) == "/")
    known = targets.mount_ids(plan) if more else set[int]()
    try:
        check_bind(destination, fd)
        target = _open_target(plan, destination, fd, o)
        try:
            to = m.by_fd(plan.proc, target)
            m.mount(m.by_fd(plan.proc, fd), to, None, m.MS_BIND | o.bind & m.MS_REC, None)
        except Error as error:
            raise explain.attach(error, source, destination) from None
        finally:
            os.close(target)
        if more:
            follow = not o.marks & options.DEST_NOFOLLOW
            finish(plan, destination, targets.reopen(plan, destination, known, fd, follow=follow), o)
    finally:
        os.close(fd)


def check_bind(destination: str, source: int) -> None:
    """Refuse anything but a procfs on /proc."""
    if targets.clean(destination) == "/proc":
        targets.check_bind_on_proc(source, targets.is_directory(source))


def _copy_symlink(plan: Plan, source: str, destination: str) -> bool:
    """Make the link that `source` is at `destination`; False if it isn't a link."""
    try:
        link = os.readlink(fsencode(source))
    except OSError as error:
        if error.errno == libc.EINVAL:
            return False
        raise
    parent, name = paths.parent_in_root(plan.root, destination)
    try:
        os.symlink(link, name, dir_fd=parent)
    except OSError as error:
        if error.errno != _EEXIST:
            raise
        try:
            same = os.readlink(name, dir_fd=parent) == link
        except OSError:
            same = False
        if not same:
            raise Error(f'"{destination}" exists and is not a link to "{fsdecode(link)}"', _EEXIST) from None
    finally:
        os.close(parent)
    return True


def finish(plan: Plan, destination: str, fd: int, o: Options, *, new: bool = False) -> None:
    """Give the attached mount at `fd` its attributes and propagation; closes `fd`, unless it is needed later."""
    try:
        if not new and o.set | o.clear:
            wanted = o.set & ~m.MOUNT_ATTR_RDONLY if o.late else o.set
            m.change_attributes(plan.proc, fd, wanted, o.clear)
        if o.rset | o.rclear:
            m.change_attributes(plan.proc, fd, o.rset, o.rclear, recursive=True)
    except Error as error:
        raise explain.attributes(error, fd, o) from None
    for propagation in o.propagation:
        m.change_propagation(plan.proc, fd, propagation)
    keep(plan, destination, o, fd)


def keep(plan: Plan, destination: str, o: Options, fd: int) -> None:
    """Remember the mount at `fd` if it is to become read-only later, or is the root now; or else close `fd`."""
    if targets.clean(destination) == "/":
        os.close(plan.root)
        plan.root = os.dup(fd)
    if o.late:
        plan.late_readonly.append((destination, fd))
    else:
        os.close(fd)

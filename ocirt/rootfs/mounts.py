"""The mounts of config.json, in the order listed (config.md, Mounts).

A new file system is one mount(2) on an opened destination. Where more must be done
with it than mounting (recursive options, propagation, copying up) it is made as a
detached mount first. A bind mount is a detached clone of its source that is attached
to the opened destination.
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, Unsupported, call_failed, doing, from_oserror
from ocirt.linux import libc, paths
from ocirt.linux import mount as m
from ocirt.linux.oslike import join
from ocirt.rootfs import cgroupfs, explain, options, targets
from ocirt.rootfs.binds import bind, check_bind, finish, keep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options
    from ocirt.spec import Mount


#: Where a user namespace may not mount a file system of its own, the host's is shown instead.
_HOSTS = {"sysfs": "/sys", "proc": "/proc", "mqueue": "/dev/mqueue"}
#: mount(2) takes one page.
_DATA_MAX = 4096
#: The namespace that must be new for a file system to be the container's own.
_NEEDS = {"sysfs": "network", "proc": "pid", "mqueue": "ipc"}
#: File systems that take no SELinux context as an option.
_UNLABELLED = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "mqueue"))
_FLAG_NAMES = (
    (m.MS_SYNCHRONOUS, "sync"),
    (m.MS_DIRSYNC, "dirsync"),
    (m.MS_LAZYTIME, "lazytime"),
    (m.MS_MANDLOCK, "mand"),
)


def mount_filesystems(plan: Plan) -> None:
    """mount the filesystems"""
    mounts = plan.config.get("mounts")
    if not mounts:
        return
    umask = os.umask(0)
    try:
        for index, entry in enumerate(mounts):
            source = entry.get("source") or entry.get("type") or ""
            with doing(f'mounts[{index}]: mount "{source}" to rootfs at "{entry["destination"]}"'):
                _mount(plan, index, entry)
    finally:
        os.umask(umask)


def _mount(plan: Plan, index: int, entry: Mount) -> None:
    o = options.parse(entry.get("options") or ())
    if targets.clean(entry["destination"]) == "/dev" and o.set & m.MOUNT_ATTR_RDONLY:
        o.late = True
    kind = entry.get("type") or ""
    tree = plan.trees.pop(index, -1)
    if tree >= 0:
        _attach_prepared(plan, entry, o, tree)
    elif o.flags & m.MS_REMOUNT:
        _remount(plan, entry, o)
    elif o.bind:
        bind(plan, join(plan.bundle, entry.get("source") or ""), entry["destination"], o)
    elif kind == "cgroup":
        cgroupfs.mount_cgroups(plan, entry["destination"], o)
    else:
        _new(plan, entry, kind, o)


def _attach_prepared(plan: Plan, entry: Mount, o: Options, tree: int) -> None:
    """A detached mount that the runtime made, attributes and all."""
    destination = entry["destination"]
    check_bind(destination, tree)
    follow = not o.marks & options.DEST_NOFOLLOW
    target, _ = targets.open_target(plan, destination, directory=targets.is_directory(tree), follow=follow)
    try:
        if not _attach(plan, tree, target, o):
            raise Unsupported("mounts with mapped ids need move_mount(2), Linux 5.2")
    finally:
        os.close(target)
    for propagation in o.propagation:
        m.change_propagation(plan.proc, tree, propagation)
    o.late = o.late or (not o.bind and bool(o.set & m.MOUNT_ATTR_RDONLY))
    keep(plan, destination, o, tree)


# --- new file systems


def _new(plan: Plan, entry: Mount, kind: str, o: Options) -> None:
    destination = entry["destination"]
    if kind in ("proc", "sysfs"):
        target, made = targets.open_plain_directory(plan, destination, kind), True
    else:
        if targets.clean(destination) == "/proc":
            raise Error('"/proc" cannot be mounted because it is not of type proc')
        target, made = targets.open_target(plan, destination, directory=True)
    data = o.data
    label = plan.linux.get("mountLabel")
    if label and kind not in _UNLABELLED:
        name = (plan.config.get("annotations") or {}).get("run.oci.mount_context_type") or "context"
        data = [*data, f'{name}="{label}"']
    if kind == "tmpfs":
        o.late = o.late or bool(o.set & m.MOUNT_ATTR_RDONLY)
        if not made and not any(d.startswith("mode=") or ",mode=" in d for d in data):
            data = [f"mode={os.fstat(target).st_mode & 0o7777:04o}", *data]
    source = entry.get("source") or kind or "none"
    try:
        _mount_new(plan, destination, target, kind, source, o, data)
    except Error as error:
        if error.errno == libc.EPERM and plan.userns and kind in _HOSTS and _NEEDS[kind] not in plan.new:
            _bind_hosts(plan, destination, kind, o)
        elif error.errno == libc.EINVAL and plan.userns and kind == "devpts" and "gid=" in ",".join(data):
            # The group tty may have no id in the container.
            data = [d for d in ",".join(data).split(",") if not d.startswith("gid=")]
            _mount_new(plan, destination, target, kind, source, o, data)
        else:
            raise
    finally:
        os.close(target)


def _mount_new(plan: Plan, destination: str, target: int, kind: str, source: str, o: Options, data: list[str]) -> None:
    """Mount a new file system on `target`: by one mount(2) if nothing else is to be done with it."""
    attributes = o.set & ~m.MOUNT_ATTR_RDONLY if o.late else o.set
    more = (
        o.late
        or o.propagation
        or o.rset
        or o.rclear
        or o.marks & options.TMPCOPYUP
        or targets.clean(destination) == "/"
        or (kind == "mqueue" and plan.linux.get("mountLabel"))
    )
    text = ",".join(data)
    if len(text) >= _DATA_MAX:  # mount(2) would cut them off
        raise Error(f"its options for the file system are longer than {_DATA_MAX - 1} bytes")
    if more and not o.flags & m.MS_I_VERSION and len(max(data, key=len, default="")) < m.FSCONFIG_STRING_MAX:
        try:
            tree = _detached(kind, source, o.flags, attributes, data)
        except Error as error:
            raise explain.new_mount(plan, error, destination, kind, source, o, data) from None
        if tree >= 0 and _attach(plan, tree, target, o):
            _label(plan, kind, tree)
            finish(plan, destination, tree, o, new=True)
            return
    known = targets.mount_ids(plan) if more else set[int]()
    flags = m.flags_of(attributes) | o.flags
    try:
        m.mount(source.encode(), m.by_fd(plan.proc, target), kind.encode(), flags, text.encode() if text else None)
    except Error as error:
        raise explain.new_mount(plan, error, destination, kind, source, o, data) from None
    if more:
        tree = targets.reopen(plan, destination, known)
        if o.marks & options.TMPCOPYUP:
            plan.copy_up(target, tree)
        _label(plan, kind, tree)
        finish(plan, destination, tree, o, new=True)


def _label(plan: Plan, kind: str, tree: int) -> None:
    """Give an mqueue its SELinux label: it takes none as an option."""
    label = plan.linux.get("mountLabel")
    if label and kind == "mqueue":
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        try:
            os.setxattr(fd, "security.selinux", label.encode() + b"\0")
        except OSError as error:
            raise from_oserror(error, f'setxattr("security.selinux", "{label}")') from None
        finally:
            os.close(fd)


def _detached(kind: str, source: str, flags: int, attributes: int, data: list[str]) -> int:
    """A detached mount of a new file system, -1 if the kernel lacks the calls for it."""
    fields: list[tuple[str, str | None]] = [("source", source)]
    if attributes & m.MOUNT_ATTR_RDONLY:
        fields.append(("ro", None))
    fields += [(name, None) for flag, name in _FLAG_NAMES if flags & flag]
    try:
        return m.new_filesystem(kind, fields + options.split_data(data), attributes)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
    return -1


def _attach(plan: Plan, tree: int, target: int, o: Options) -> bool:
    if o.marks & options.TMPCOPYUP:
        plan.copy_up(target, tree)
    try:
        m.attach(tree, target)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
        return False
    return True


def _bind_hosts(plan: Plan, destination: str, kind: str, o: Options) -> None:
    """Show the host's file system, read-only with everything below it if it was to be read-only (CVE-2023-25809)."""
    shown = options.parse(("rbind",))
    shown.set, shown.propagation, shown.late = o.set, o.propagation, o.late
    shown.rset = o.rset | o.set & m.MOUNT_ATTR_RDONLY
    shown.rclear = o.rclear
    bind(plan, _HOSTS[kind], destination, shown)


def _remount(plan: Plan, entry: Mount, o: Options) -> None:
    """Change what is mounted already: with `bind` the mount, else also the file system."""
    destination = entry["destination"]
    with_links = not o.marks & options.DEST_NOFOLLOW
    target = paths.open_in_root(plan.root, destination, os.O_PATH if with_links else os.O_PATH | os.O_NOFOLLOW)
    if not o.bind:
        attributes = m.attributes_of(target) & ~o.clear | o.set
        text = ",".join(o.data)
        kind = (entry.get("type") or "none").encode()
        source = (entry.get("source") or "none").encode()
        flags = m.flags_of(attributes) | o.flags
        try:
            m.mount(source, m.by_fd(plan.proc, target), kind, flags, text.encode() if text else None)
        except Error as error:
            os.close(target)
            reason = call_failed(f'mount("{destination}", MS_REMOUNT, "{text}")', error.errno, os.strerror(error.errno))
            hint = " (is it a mount point?)" if error.errno == libc.EINVAL else ""
            raise Error(reason + hint, error.errno) from None
        o.set = o.clear = 0
    finish(plan, destination, target, o)

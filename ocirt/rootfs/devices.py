"""Devices: config-linux.md, Devices and Default Devices; runtime-linux.md, Dev symbolic links.

Everything is made relative to the descriptor of the directory that holds it, never by
a path that leads through the image (CVE-2026-41579).
"""

from __future__ import annotations

import _stat as stat
import posix as os

from ocirt.errors import Error, doing, from_oserror
from ocirt.linux import libc, mount, paths
from ocirt.linux.oslike import fsencode
from ocirt.rootfs.options import TABLE
from ocirt.rootfs.targets import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

    Device = tuple[int, int, int, int, int, int]

#: path: (type, major, minor)
DEFAULT = {
    "/dev/null": (stat.S_IFCHR, 1, 3),
    "/dev/zero": (stat.S_IFCHR, 1, 5),
    "/dev/full": (stat.S_IFCHR, 1, 7),
    "/dev/random": (stat.S_IFCHR, 1, 8),
    "/dev/urandom": (stat.S_IFCHR, 1, 9),
    "/dev/tty": (stat.S_IFCHR, 5, 0),
}
_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}

#: (name in /dev, what it points to, what must exist for it)
_LINKS = (
    ("fd", "/proc/self/fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0", "/proc/self/fd"),
    ("stdout", "/proc/self/fd/1", "/proc/self/fd"),
    ("stderr", "/proc/self/fd/2", "/proc/self/fd"),
    ("core", "/proc/kcore", "/proc/kcore"),
)

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_ENOENT = 2
_EEXIST = 17


def wanted(plan: Plan) -> dict[str, Device]:
    """{path: (type, major, minor, mode, uid, gid)} of the devices to make, the default ones first.

    A device of config.json takes the place of a default one at its path. If /dev is
    the host's, nothing is made in it.
    """
    hosts = binds_dev(plan)
    devices: dict[str, Device] = {}
    if not hosts:
        for path, (kind, major, minor) in DEFAULT.items():
            devices[path] = (kind, major, minor, 0o666, 0, 0)
    for entry in plan.linux.get("devices") or ():
        path = clean(entry["path"])
        if hosts and path.startswith("/dev/"):
            continue
        mode = entry.get("fileMode")
        devices[path] = (
            _TYPES[entry["type"]],
            entry.get("major") or 0,
            entry.get("minor") or 0,
            0o666 if mode is None else stat.S_IMODE(mode),
            entry.get("uid") or 0,
            entry.get("gid") or 0,
        )
    return devices


def binds_dev(plan: Plan) -> bool:
    """Is /dev a bind mount, of the host's probably?"""
    for entry in plan.config.get("mounts") or ():
        if clean(entry["destination"]) == "/dev" and any(
            TABLE.get(o, ("",))[0] == "bind" for o in entry.get("options") or ()
        ):
            return True
    return False


def make_devices(plan: Plan) -> None:
    """make the devices"""
    devices = wanted(plan)
    if not devices:
        return
    umask = os.umask(0)
    parent, parent_path = -1, ""
    try:
        for path, device in devices.items():
            with doing(f"device {path}"):
                directory, _, name = path.rpartition("/")
                if parent < 0 or directory != parent_path:
                    if parent >= 0:
                        os.close(parent)
                        parent = -1
                    parent = paths.mkdir_in_root(plan.root, directory or "/")
                    parent_path = directory
                _make(plan, path, parent, name, device)
    finally:
        os.umask(umask)
        if parent >= 0:
            os.close(parent)


def _make(plan: Plan, path: str, parent: int, name: str, device: Device) -> None:
    kind, major, minor, mode, uid, gid = device
    if path in plan.device_trees:
        _bind(plan, plan.device_trees.pop(path), path, parent, name, device)
        return
    try:
        os.mknod(name, kind | mode, os.makedev(major, minor), dir_fd=parent)
    except OSError as error:
        if error.errno == _EEXIST and not (plan.userns and _is_placeholder(parent, name)):
            _check(path, os.stat(name, dir_fd=parent, follow_symlinks=False), device)
        elif error.errno in (_EEXIST, libc.EPERM) and kind != stat.S_IFIFO:
            # In a user namespace nobody may make one, but the host's can be bound.
            _bind(plan, -1, path, parent, name, device)
        else:
            raise from_oserror(error, f"mknodat({name}, {major}:{minor})") from None
        return
    # Nobody can have replaced it unless the directory is shared; then what is there must be
    # what was made before its owner and mode are touched.
    made = os.stat(name, dir_fd=parent, follow_symlinks=False)
    _check(path, made, device)
    if (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) != (uid, gid, mode):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            _check(path, os.fstat(fd), device)
            by_fd = mount.by_fd(plan.proc, fd)
            os.chown(by_fd, uid, gid)
            os.chmod(by_fd, mode)
        finally:
            os.close(fd)


def _check(path: str, found: os.stat_result, device: Device) -> None:
    kind, major, minor = device[:3]
    rdev = 0 if kind == stat.S_IFIFO else os.makedev(major, minor)
    if stat.S_IFMT(found.st_mode) != kind or found.st_rdev != rdev:
        what = {v: k for k, v in _TYPES.items() if k != "u"}[kind]
        raise Error(f"{path} exists and is not the device {what} {major}:{minor}", _EEXIST)


def _is_placeholder(parent: int, name: str) -> bool:
    """Is it an empty file, as `_bind` leaves it in the image's directory?"""
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _bind(plan: Plan, tree: int, path: str, parent: int, name: str, device: Device) -> None:
    """Bind a node on an empty file that is made for it: `tree`, detached, or if that is -1 the host's node."""
    try:
        target = paths.make_file(parent, fsencode(name), 0o644)
    except Error as error:
        if error.errno != _EEXIST:
            raise
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        found = os.fstat(target)
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            _check(path, found, device)
        if tree >= 0:
            try:
                mount.attach(tree, target)
                os.close(tree)
                return
            except Error as error:
                if error.errno != libc.ENOSYS:
                    raise
        _bind_hosts(plan, target, path, device)
    finally:
        os.close(target)


def _bind_hosts(plan: Plan, target: int, path: str, device: Device) -> None:
    """Bind the host's node of the same name."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Error(f"{path} can't be made in a user namespace, and the host has none to bind", _ENOENT) from None
    try:
        _check(f"the host's {path}", os.fstat(fd), device)
        try:
            os.close(mount.graft(fd, target))
        except Error as error:
            if error.errno != libc.ENOSYS:
                raise
            to = mount.by_fd(plan.proc, target)
            mount.mount(mount.by_fd(plan.proc, fd), to, None, mount.MS_BIND, None)
    finally:
        os.close(fd)


def make_links(plan: Plan) -> None:
    """make the links in /dev"""
    if binds_dev(plan):
        return
    dev = paths.mkdir_in_root(plan.root, "/dev")
    exists: dict[str, bool] = {}
    try:
        for name, target, needed in _LINKS:
            if needed not in exists:
                exists[needed] = _exists(plan, needed)
            if exists[needed]:
                try:
                    os.symlink(target, name, dir_fd=dev)
                except FileExistsError:
                    pass  # the image's own
        _link_ptmx(dev)
    finally:
        os.close(dev)


def _exists(plan: Plan, path: str) -> bool:
    try:
        os.close(paths.open_in_root(plan.root, path))
    except Error:
        return False
    return True


def _link_ptmx(dev: int) -> None:
    """/dev/ptmx must be the multiplexer of the container's own devpts."""
    try:
        os.symlink("pts/ptmx", "ptmx", dir_fd=dev)
        return
    except FileExistsError:
        pass
    try:
        if os.readlink("ptmx", dir_fd=dev) in ("pts/ptmx", "/dev/pts/ptmx"):
            return
    except OSError:
        pass  # not a link
    os.unlink("ptmx", dir_fd=dev)
    os.symlink("pts/ptmx", "ptmx", dir_fd=dev)


def mount_console(plan: Plan, pty: int) -> None:
    """Bind the pty's slave, an open descriptor, on /dev/console.

    The file is made, or else must be a plain file or a device, not a link that the
    image put there (CVE-2025-52565).
    """
    dev = paths.mkdir_in_root(plan.root, "/dev")
    try:
        try:
            target = paths.make_file(dev, b"console", 0o620)
        except Error as error:
            if error.errno != _EEXIST:
                raise
            target = os.open("console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev)
    finally:
        os.close(dev)
    with doing("mount the console on /dev/console"):
        try:
            mode = os.fstat(target).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
                raise Error("it exists and is neither a file nor a character device", _EEXIST)
            try:
                os.close(mount.graft(pty, target))
            except Error as error:
                if error.errno != libc.ENOSYS:
                    raise
                to = mount.by_fd(plan.proc, target)
                mount.mount(mount.by_fd(plan.proc, pty), to, None, mount.MS_BIND, None)
        finally:
            os.close(target)

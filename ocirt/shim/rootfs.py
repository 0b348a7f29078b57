"""The root filesystem of a task: containerd says what to mount at BUNDLE/rootfs (containerd.types.Mount).

Runs in a worker or in `delete`: a process of its own, whose working directory may change.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ocirt import log
from ocirt.errors import Error, InvalidConfig, doing
from ocirt.linux import mount as m
from ocirt.linux import paths
from ocirt.rootfs import options as mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.rootfs.options import Options

#: mount(2) takes a page of options, its final NUL included.
_DATA_MAX = 4095
_EBUSY, _EINVAL, _ENOENT = 16, 22, 2

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_SET_FD = 0x4C00
_LOOP_SET_STATUS64 = 0x4C04
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_READ_ONLY = 1
_LOOP_TRIES = 64
#: Of a helper's complaint.
_SAID_MAX = 2048


def mount_all(mounts: list[dict[str, Any]], root: str) -> None:
    """Mount in order at `root`, or at a mount's `target` below it."""
    with doing("mount the root filesystem"):
        os.makedirs(root, 0o711, exist_ok=True)
        for entry in mounts:
            with doing(f'mount {entry.get("type", "")} "{entry.get("source", "")}"'):
                _mount(entry, root)


def _mount(entry: dict[str, Any], root: str) -> None:
    kind, source = entry.get("type", ""), entry.get("source", "")
    given: list[str] = entry.get("options") or []
    mappings, rest, loop = _split(given)
    o = mount_options.parse(rest)
    target = _target(root, entry.get("target", ""))
    try:
        place = b"/proc/self/fd/%d" % target
        if kind.startswith(("fuse.", "fuse3.")):
            _mount_by_helper(kind, source, given, place)
            return
        userns = _userns(mappings) if mappings else -1
        try:
            if kind == "overlay" and userns >= 0:
                o.data = _map_lower(o.data, userns)
                userns_of_mount = -1
            else:
                userns_of_mount = userns
            if loop:
                source = _loop_device(source, bool(o.set & m.MOUNT_ATTR_RDONLY))
            if o.bind or kind == "bind":
                _bind(source, target, o, userns_of_mount)
            else:
                _new(kind, source, place, o)
                if userns_of_mount >= 0:
                    _map_again(_target(root, entry.get("target", "")), userns_of_mount)
        finally:
            if userns >= 0:
                os.close(userns)
    finally:
        os.close(target)


def _split(options: list[str]) -> tuple[dict[str, str], list[str], bool]:
    """(id mappings, options for mount(2), is the source a file to be made a loop device?)"""
    mappings: dict[str, str] = {}
    rest: list[str] = []
    loop = False
    for option in options:
        name, _, value = option.partition("=")
        if name in ("uidmap", "gidmap"):
            mappings[name] = value
        elif option == "loop":
            loop = True
        elif option.startswith("X-containerd."):
            raise InvalidConfig(f"mount option {option} is for containerd's own mount manager, not for a shim")
        else:
            rest.append(option)
    return mappings, rest, loop


def _target(root: str, target: str) -> int:
    """What is mounted on; below `root` whatever links the image has."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not target.strip("/"):
        return fd
    try:
        return paths.open_in_root(fd, target)
    finally:
        os.close(fd)


def _bind(source: str, target: int, o: Options, userns: int) -> None:
    """Attach a clone of the source."""
    recursive = bool(o.bind & m.MS_REC)
    tree = m.open_tree(m.AT_FDCWD, os.fsencode(source), m.OPEN_TREE_CLONE | (m.AT_RECURSIVE if recursive else 0))
    try:
        if userns >= 0:
            m.mount_setattr(tree, m.AT_RECURSIVE if recursive else 0, m.MOUNT_ATTR_IDMAP, userns=userns)
        if o.set | o.clear:
            m.mount_setattr(tree, 0, o.set, o.clear)
        if o.rset | o.rclear:
            m.mount_setattr(tree, m.AT_RECURSIVE, o.rset, o.rclear)
        m.move_mount(tree, target)
        for propagation in o.propagation:
            m.change_propagation(-1, tree, propagation)
    finally:
        os.close(tree)


def _new(kind: str, source: str, place: bytes, o: Options) -> None:
    """Mount a filesystem."""
    data = o.data
    if len(",".join(data)) > _DATA_MAX:
        data = _shorten(data)
    flags = o.flags | m.flags_of(o.set)
    m.mount(os.fsencode(source), place, kind.encode(), flags, os.fsencode(",".join(data)))
    for propagation in o.propagation:
        m.mount(None, place, None, propagation, None)


def _shorten(data: list[str]) -> list[str]:
    """An overlay's lower directories, relative to the one that all are in: it becomes the working directory."""
    found = [option for option in data if option.startswith("lowerdir=")]
    if not found:
        raise InvalidConfig(f"the mount's options are longer than {_DATA_MAX} bytes")
    lower = found[0].removeprefix("lowerdir=").split(":")
    common = os.path.commonpath(lower)
    os.chdir(common)
    short = "lowerdir=" + ":".join(os.path.relpath(directory, common) for directory in lower)
    shortened = [short if option == found[0] else option for option in data]
    if len(",".join(shortened)) > _DATA_MAX:
        raise InvalidConfig(f"the lower directories' names are longer than {_DATA_MAX} bytes, even below {common}")
    return shortened


def _map_lower(data: list[str], userns: int) -> list[str]:
    """The lower directories of an overlay, each as a detached idmapped clone, named by its descriptor."""
    mapped: list[str] = []
    for option in data:
        if not option.startswith("lowerdir="):
            mapped.append(option)
            continue
        names: list[str] = []
        for directory in option.removeprefix("lowerdir=").split(":"):
            tree = m.open_tree_attr(
                m.AT_FDCWD, os.fsencode(directory), m.OPEN_TREE_CLONE, m.MOUNT_ATTR_IDMAP, 0, userns
            )
            names.append(f"/proc/self/fd/{tree}")  # open until this process ends; the overlay keeps the mount
        mapped.append("lowerdir=" + ":".join(names))
    return mapped


def _map_again(target: int, userns: int) -> None:
    """Put an idmapped clone of what was mounted over it, for filesystems that take no mapping by mount(2)."""
    try:
        tree = m.open_tree_attr(target, b"", m.OPEN_TREE_CLONE | m.AT_EMPTY_PATH, m.MOUNT_ATTR_IDMAP, 0, userns)
        m.attach(tree, target)
        os.close(tree)
    finally:
        os.close(target)


def _userns(mappings: dict[str, str]) -> int:
    """The user namespace that `uidmap=CONTAINER:HOST:SIZE,…` and `gidmap=` describe."""
    from ocirt.rootfs import idmaps

    ranges: list[list[tuple[int, int, int]]] = []
    for name in ("uidmap", "gidmap"):
        found: list[tuple[int, int, int]] = []
        for part in mappings.get(name, "").split(","):
            numbers = part.split(":")
            if len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
                raise InvalidConfig(f"mount option {name}={mappings.get(name, '')}: CONTAINER:HOST:SIZE is wanted")
            found.append((int(numbers[0]), int(numbers[1]), int(numbers[2])))
        ranges.append(found)
    return idmaps.make_userns((ranges[0], ranges[1]))


def _loop_device(path: str, readonly: bool) -> str:
    """A loop device of the file that goes with its last mount (loop(4))."""
    with doing(f'make a loop device of "{path}"'):
        backing = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        try:
            for _ in range(_LOOP_TRIES):
                control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
                try:
                    number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                finally:
                    os.close(control)
                device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(device, _LOOP_SET_FD, backing)
                except OSError as error:
                    os.close(device)
                    if error.errno == _EBUSY:
                        continue  # somebody was faster
                    raise
                # struct loop_info64: five 64-bit and four 32-bit numbers, of which the fourth is lo_flags, then names
                flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if readonly else 0)
                info = struct.pack("=5Q4I", 0, 0, 0, 0, 0, 0, 0, 0, flags) + bytes(64 + 64 + 32 + 16)
                fcntl.ioctl(device, _LOOP_SET_STATUS64, info)
                # the descriptor stays open until this process ends: without a user the device would be cleared now
                return f"/dev/loop{number}"
        finally:
            os.close(backing)
    raise Error(f"no loop device is free after {_LOOP_TRIES} tries")


def _mount_by_helper(kind: str, source: str, options: list[str], place: bytes) -> None:
    """fuse.NAME and fuse3.NAME are mounted by mount.fuse(8) or mount.fuse3(8)."""
    family, _, name = kind.partition(".")
    program = f"mount.{family}"
    for directory in (os.environ.get("PATH") or "/usr/sbin:/usr/bin:/sbin:/bin").split(":"):
        path = f"{directory}/{program}"
        if directory.startswith("/") and os.access(path, os.X_OK):
            break
    else:
        raise Error(f"{program}: executable file not found in $PATH", _ENOENT)
    target = os.readlink(place)
    arguments = [program, source, os.fsdecode(target), *(["-o", ",".join(options)] if options else []), "-t", name]
    # our streams are the container's already; a file, because the file system's process could keep a pipe open
    said = os.memfd_create(program)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        *((os.POSIX_SPAWN_DUP2, said, fd) for fd in (1, 2)),
    ]
    try:
        pid = os.posix_spawn(path, arguments, os.environ, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        text = os.pread(said, _SAID_MAX, 0).decode(errors="replace").strip()
        if text:
            log.debug(f"{program}: {text}")
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise Error(f"{' '.join(arguments)}: exit status {code}{': ' if text else ''}{text}")
    finally:
        os.close(said)


def is_mounted(path: str) -> bool:
    """Is anything mounted exactly there?"""
    return any(line.split(b" ")[4] == _escaped(path) for line in _mountinfo())


def _mountinfo() -> list[bytes]:
    with open("/proc/self/mountinfo", "rb") as file:
        return file.read().splitlines()


def _escaped(path: str) -> bytes:
    """A path as mountinfo writes it (proc_pid_mountinfo(5))."""
    found = os.fsencode(path).replace(b"\\", b"\\134")
    for character in b" \t\n#":
        found = found.replace(bytes((character,)), b"\\%03o" % character)
    return found


def _unescaped(path: bytes) -> bytes:
    for character in b" \t\n#\\":
        path = path.replace(b"\\%03o" % character, bytes((character,)))
    return path


def unmount(path: str) -> None:
    """Unmount everything at and below `path`; nothing there is no error."""
    with doing("unmount the root filesystem"):
        count = 0
        while _umount(os.fsencode(path)):
            count += 1
        if count == 0:
            _unmount_below(path)


def _umount(path: bytes) -> bool:
    """Unmount what is mounted last at `path`, with all that is below it; False if nothing is."""
    try:
        m.umount2(path, m.UMOUNT_NOFOLLOW)
    except Error as error:
        if error.errno in (_EINVAL, _ENOENT):
            return False
        if error.errno != _EBUSY:
            raise
        # there are mounts below it, or somebody uses it: it goes when they are gone
        m.umount2(path, m.UMOUNT_NOFOLLOW | m.MNT_DETACH)
    return True


def _unmount_below(path: str) -> None:
    """Unmount what was mounted at targets only: nothing is on `path`, so that its directories are the engine's."""
    below = _escaped(path) + b"/"
    for point in [point for point in (line.split(b" ")[4] for line in _mountinfo()) if point.startswith(below)]:
        _umount(_unescaped(point))

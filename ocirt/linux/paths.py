"""Paths below a directory that somebody hostile writes to, resolved to descriptors.

Every path is resolved as if the directory were the root: an absolute link or `..`
never leaves it, and magic links of procfs are not followed. The result is a
descriptor, and the caller acts on that: no path is ever used twice.
(CVE-2019-18837, CVE-2021-30465, CVE-2024-45310.)

openat2(2) does it in the kernel. Where there is no openat2, or where missing
directories must be made, every component is opened for itself with O_NOFOLLOW and
links are followed here; `..` goes back to the descriptor that we came from, so
that a directory moved away meanwhile leads nowhere.
"""

from __future__ import annotations

import _stat as stat
import posix as os
from _struct import pack

from ocirt.errors import Error, call_failed, from_oserror
from ocirt.linux import libc, numbers

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

ENOENT = 2
EAGAIN = 11
EEXIST = 17
ENOTDIR = 20
ELOOP = 40

_LINKS_MAX = 40
#: openat2 answers EAGAIN when something was renamed or mounted while it resolved `..`.
_RACES_MAX = 128


def openat2(fd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), always close-on-exec."""
    how = pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RACES_MAX):
        try:
            return libc.syscall("openat2", numbers.OPENAT2, fd, path, how, 24, retry=True)
        except Error as error:
            if error.errno != EAGAIN:
                errno = error.errno
                raise Error(call_failed(f"open({libc.show(path)})", errno, os.strerror(errno)), errno) from None
    raise Error(f"openat2({libc.show(path)}): something keeps renaming what is above it", EAGAIN)


def open_in_root(root: int, path: str | bytes, flags: int = os.O_PATH, mode: int = 0, *, links: bool = True) -> int:
    """Open `path` below `root`. With `links` false no link is followed (ELOOP).

    O_NOFOLLOW in `flags` is about the last component only, as in open(2).
    """
    name = _bytes(path).lstrip(b"/") or b"."
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (0 if links else RESOLVE_NO_SYMLINKS)
    try:
        return openat2(root, name, flags, mode, resolve)
    except Error as error:
        if error.errno != libc.ENOSYS:
            raise
    return _open_by_walking(root, name, flags, mode, links)


def mkdir_in_root(root: int, path: str | bytes, mode: int = 0o755, *, links: bool = True) -> int:
    """An O_PATH descriptor of the directory `path` below `root`; what is missing of it is made."""
    try:
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY, links=links)
    except Error as error:
        if error.errno != ENOENT:
            raise
    return make_in_root(root, path, mode, directory=True, links=links)


def create_in_root(root: int, path: str | bytes, mode: int = 0o644, *, links: bool = True) -> int:
    """A descriptor of the file `path` below `root`; if it is missing, an empty one is made."""
    try:
        return open_in_root(root, path, os.O_PATH, links=links)
    except Error as error:
        if error.errno != ENOENT:
            raise
    return make_in_root(root, path, mode, directory=False, links=links)


def make_in_root(root: int, path: str | bytes, mode: int, *, directory: bool, links: bool = True) -> int:
    """Make `path` below `root`, which is missing, and the directories that lead to it.

    A dangling link is followed, inside the root, and its target made. If somebody
    made the path meanwhile, that is taken.
    """
    name = _bytes(path)
    make = make_directory if directory else make_file
    above, _, last = name.rstrip(b"/").rpartition(b"/")
    parent = -1
    try:
        if last not in (b"", b".", b".."):
            parent = open_in_root(root, above, os.O_PATH | os.O_DIRECTORY, links=links)
            return make(parent, last, mode)
    except Error as error:
        if error.errno not in (ENOENT, EEXIST, ENOTDIR):
            raise
    finally:
        if parent >= 0:
            os.close(parent)
    parent, last, fd = walk(root, name, links=links, make=0o755)
    try:
        if fd < 0:
            return make(parent, last, mode)
        return _a_directory(fd, path) if directory else fd
    finally:
        os.close(parent)


def parent_in_root(root: int, path: str | bytes, *, make: int | None = 0o755) -> tuple[int, bytes]:
    """(O_PATH descriptor of the directory that holds `path`, last component of `path`).

    Links in the directory's path are followed; what is missing is made with the
    mode `make`, unless that is None.
    """
    directory, _, name = _bytes(path).rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise Error(f"{libc.show(_bytes(path))} has no name in a directory")
    if make is None:
        return open_in_root(root, directory, os.O_PATH | os.O_DIRECTORY), name
    return mkdir_in_root(root, directory, make), name


def make_directory(parent: int, name: bytes, mode: int) -> int:
    """mkdirat(2) unless there is one; an O_PATH descriptor of the directory, not of a link's target."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    except OSError as error:
        raise from_oserror(error, f"mkdirat({libc.show(name)}, 0{mode:o})") from None
    return _open(parent, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)


def make_file(parent: int, name: bytes, mode: int) -> int:
    """Make an empty file, which must not exist; a descriptor of it, open for reading."""
    return _open(parent, name, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_NOFOLLOW, mode)


def walk(
    root: int, path: bytes, *, links: bool = True, follow_last: bool = True, make: int | None = None
) -> tuple[int, bytes, int]:
    """Resolve `path` below `root`, one component at a time.

    Returns O_PATH descriptors (parent, last name, what is there or -1): a missing
    last component is no error. Missing directories on the way are made with the mode
    `make`, unless it is None. If the path is the root itself the name is empty.
    """
    todo = _components(path)
    stack = [os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)]
    names: list[bytes] = []
    followed = 0
    try:
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if names:
                    names.pop()
                    os.close(stack.pop())
                continue
            fd = _step(stack[-1], name, make, last=not todo)
            if fd < 0:
                return os.dup(stack[-1]), name, -1
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode) and (todo or follow_last):
                try:
                    target = os.readlink(b"", dir_fd=fd)
                finally:
                    os.close(fd)
                followed += 1
                if not links or followed > _LINKS_MAX or not target:
                    raise Error(call_failed(f"open({libc.show(path)})", ELOOP, os.strerror(ELOOP)), ELOOP)
                if target.startswith(b"/"):
                    names.clear()
                    while len(stack) > 1:
                        os.close(stack.pop())
                todo += _components(target)
                continue
            stack.append(fd)
            names.append(name)
            if todo and not stat.S_ISDIR(mode):
                raise Error(call_failed(f"open({libc.show(path)})", ENOTDIR, os.strerror(ENOTDIR)), ENOTDIR)
        if not names:
            return os.dup(stack[0]), b"", stack.pop(0)
        return os.dup(stack[-2]), names[-1], stack.pop()
    finally:
        for fd in stack:
            os.close(fd)


def _step(parent: int, name: bytes, make: int | None, *, last: bool) -> int:
    """Open one component, never following it; make a missing directory; -1 for a missing last one."""
    try:
        return _open(parent, name, os.O_PATH | os.O_NOFOLLOW)
    except Error as error:
        if error.errno != ENOENT:
            raise
        if last:
            return -1
        if make is None:
            raise
    return make_directory(parent, name, make)


def _open_by_walking(root: int, path: bytes, flags: int, mode: int, links: bool) -> int:
    follow = not flags & os.O_NOFOLLOW
    parent, name, fd = walk(root, path, links=links, follow_last=follow)
    try:
        if fd >= 0 and flags & ~(os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) == os.O_PATH:
            found, fd = fd, -1
            return _a_directory(found, path) if flags & os.O_DIRECTORY else found
        # What is opened for more than its name is opened by its name, in the directory
        # that holds it: if it became a link meanwhile, that is an error.
        return _open(parent, name or b".", flags | os.O_NOFOLLOW, mode)
    finally:
        os.close(parent)
        if fd >= 0:
            os.close(fd)


def _open(parent: int, name: bytes, flags: int, mode: int = 0o777) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=parent)
    except OSError as error:
        raise from_oserror(error, f"openat({libc.show(name)})") from None


def _a_directory(fd: int, path: str | bytes) -> int:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise Error(call_failed(f"open({libc.show(_bytes(path))})", ENOTDIR, os.strerror(ENOTDIR)), ENOTDIR)


def _components(path: bytes) -> list[bytes]:
    """The components of a path, last one first; `.` and what a doubled or last slash leaves ask for a directory."""
    return path.lstrip(b"/").split(b"/")[::-1]


def _bytes(path: str | bytes) -> bytes:
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")

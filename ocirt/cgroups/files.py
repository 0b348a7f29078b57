"""Reading and writing the files of a cgroup directory, with errors that name them."""

from __future__ import annotations

import posix

from ocirt.errors import Error, Unsupported, from_oserror

ENOENT, EACCES, EBUSY, EINVAL, ENODEV, EROFS, EPERM, EOPNOTSUPP = 2, 13, 16, 22, 19, 30, 1, 95


def read(path: str) -> str:
    """The file's text without the newline at its end; raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        data = b""
        # a seq_file comes in pieces that may be shorter than the buffer
        while more := posix.read(fd, 65536):
            data += more
    finally:
        posix.close(fd)
    return data.decode("ascii", "surrogateescape").rstrip("\n")


def read_or(path: str, default: str = "") -> str:
    """Like read; `default` if the file isn't there or can't be read."""
    try:
        return read(path)
    except OSError:
        return default


def number(path: str, default: int = 0) -> int:
    """The file's one number; `max` is -1, a file that isn't there is `default`."""
    text = read_or(path)
    if text == "max":
        return -1
    try:
        return int(text)
    except ValueError:
        return default


def fields(path: str) -> dict[str, int]:
    """A flat keyed file (`key number` a line); {} if it isn't there."""
    found: dict[str, int] = {}
    for line in read_or(path).split("\n"):
        key, _, value = line.partition(" ")
        if value.isdecimal():
            found[key] = int(value)
    return found


def put(path: str, value: str) -> None:
    """Write `value` in one write(2), as the kernel's parsers want it; raises OSError."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, value.encode("utf-8", "surrogateescape"))
    finally:
        posix.close(fd)


def write(path: str, value: str, hint: str = "") -> None:
    """Like put; raises Error `write "value" to path: strerror (hint)`."""
    try:
        put(path, value)
    except OSError as error:
        raise failed(path, value, error, hint) from error


def failed(path: str, value: str, error: OSError, hint: str = "") -> Error:
    """The Error of a write that failed."""
    return from_oserror(error, f'write "{value}" to {path}', hint)


def missing(path: str, controller: str, field: str, hint: str) -> Unsupported:
    """The error for a file that the cgroup doesn't have."""
    return Unsupported(f"{field}: {path} doesn't exist: controller not delegated: {controller} ({hint})", ENOENT)


def clean(path: str, field: str) -> list[str]:
    """The components of a cgroup path; raises InvalidConfig for `..`, which could lead elsewhere."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\n" in path:
        from ocirt.errors import InvalidConfig

        what = "'..'" if ".." in parts else "a newline"
        raise InvalidConfig(f"{field}: {path!r} contains {what}; a path without it names the same cgroup everywhere")
    return parts


def processes(directory: str, *, recursive: bool = True) -> list[int]:
    """Pids in the cgroup and, if `recursive`, in those below it; [] if it isn't there.

    A process that is in two threaded cgroups is named once. In a threaded
    cgroup cgroup.procs can't be read: cgroup.threads is taken instead.
    """
    found: dict[int, None] = {}
    pending = [directory]
    while pending:
        current = pending.pop()
        try:
            text = read(current + "/cgroup.procs")
        except OSError as error:
            text = read_or(current + "/cgroup.threads") if error.errno == EOPNOTSUPP else ""
        for word in text.split():
            found[int(word)] = None
        if recursive:
            pending.extend(f"{current}/{name}" for name in subdirectories(current))
    return [pid for pid in found if pid]


def subdirectories(directory: str) -> list[str]:
    """Names of the cgroups right below; [] if it isn't there."""
    try:
        with posix.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def has_subdirectories(directory: str) -> bool:
    """Is there a cgroup below? A directory's link count says so without reading it."""
    try:
        return posix.stat(directory).st_nlink != 2
    except OSError:
        return False


def remove_tree(directory: str) -> None:
    """Remove the cgroups below `directory`, deepest first, and not the directory itself.

    Only two descriptors are open and every step is relative to one: a container
    that was given its cgroup may have made a tree deeper than PATH_MAX.
    Raises OSError (EBUSY while a process lives in one of them).
    """
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
    here = posix.open(directory, flags)
    names: list[str] = []
    try:
        while True:
            with posix.scandir(here) as entries:
                below = next((e.name for e in entries if e.is_dir(follow_symlinks=False)), None)
            if below is not None:
                there = posix.open(below, flags, dir_fd=here)
                names.append(below)
            elif names:
                there = posix.open("..", flags, dir_fd=here)
                posix.rmdir(names.pop(), dir_fd=there)
            else:
                return
            posix.close(here)
            here = there
    finally:
        posix.close(here)

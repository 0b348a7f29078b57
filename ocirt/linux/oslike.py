"""What the common verbs need of `os` beyond `posix`: importing `os` takes a fifth of a bare interpreter's start.

Modules of the hot path say `import posix as os`; what `os` adds in Python stands here. Paths are UTF-8 whatever the
locale is, as launchers set it.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def fsencode(path: str | bytes) -> bytes:
    """The bytes of a path."""
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def fsdecode(path: str | bytes) -> str:
    """A path as text."""
    return path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")


def environ() -> Mapping[str, str]:
    """The environment; that of `os` if a program that uses us has loaded it, which may have changed it."""
    loaded = sys.modules.get("os")
    if loaded is not None:
        return loaded.environ  # type: ignore[no-any-return]
    return {fsdecode(name): fsdecode(value) for name, value in posix.environ.items()}


def join(directory: str, path: str) -> str:
    """`path` seen from the directory; an absolute one stays itself."""
    if path.startswith("/") or not directory:
        return path
    return f"{directory.rstrip('/')}/{path}" if directory != "/" else f"/{path}"


def split(path: str) -> tuple[str, str]:
    """(directory, name)."""
    directory, _, name = path.rpartition("/")
    if not directory.strip("/"):
        return path[: len(path) - len(name)], name
    return directory.rstrip("/"), name


def exists(path: str) -> bool:
    """Is something there (and can it be seen)?"""
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


def isdir(path: str) -> bool:
    """Is it a directory, or a link to one?"""
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o040000
    except (OSError, ValueError):
        return False


def realpath(path: str) -> str:
    """The absolute path without links, as the kernel knows it; raises OSError if it doesn't exist."""
    fd = posix.open(path or ".", posix.O_PATH | posix.O_CLOEXEC)
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def normpath(path: str) -> str:
    """An absolute path without `.`, `..` and empty components, by its letters alone."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def samestat(one: posix.stat_result, other: posix.stat_result) -> bool:
    """Are these of the same file?"""
    return one.st_ino == other.st_ino and one.st_dev == other.st_dev


def makedirs(path: str, mode: int) -> None:
    """mkdir -p; nearly always it is there. Raises OSError."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        pass
    except FileNotFoundError:
        import os

        os.makedirs(path, mode, exist_ok=True)

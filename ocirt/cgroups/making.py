"""Making cgroup directories: what v1 and v2 share, and what v2 needs in the directories above."""

from __future__ import annotations

import posix as os

from ocirt.cgroups import files
from ocirt.errors import Error
from ocirt.linux.oslike import isdir


def existing(mountpoint: str, path: str) -> int:
    """How many leading components of the path are there."""
    kept = path.count("/")
    while kept and not isdir(mountpoint + path):
        path = path[: path.rindex("/")]
        kept -= 1
    return kept


def make(mountpoint: str, path: str) -> int:
    """mkdir -p; gives how many leading components were there already. Raises OSError."""
    for _ in range(16):
        try:
            os.mkdir(mountpoint + path, 0o755)
            return path.count("/") - 1
        except FileExistsError:
            return path.count("/")
        except FileNotFoundError:
            pass
        kept = _make_parents(mountpoint, path)
        try:
            os.mkdir(mountpoint + path, 0o755)
            return kept
        except FileExistsError:
            return path.count("/")
        except FileNotFoundError:
            continue  # another container's delete took the empty parent in between
    raise OSError(files.ENOENT, os.strerror(files.ENOENT), mountpoint + path)


def _make_parents(mountpoint: str, path: str) -> int:
    kept = 0
    at = path.find("/", 1)
    while at > 0:
        try:
            os.mkdir(mountpoint + path[:at], 0o755)
        except FileExistsError:
            kept += 1
        except FileNotFoundError:
            break
        at = path.find("/", at + 1)
    return kept


def split_sub(sub: str) -> tuple[list[str], str]:
    """`[controller,…:]path` of exec --cgroup as (controllers, "/path" or ""); raises InvalidConfig."""
    names, separator, path = sub.rpartition(":")
    parts = files.clean(path, "--cgroup")
    return (names.split(",") if separator else []), "".join("/" + part for part in parts)


def there(directory: str, sub: str) -> str:
    """The directory; Error if there is none: `sub` is what named it."""
    if not os.access(directory, os.F_OK):
        raise Error(f"--cgroup {sub}: there is no cgroup {directory}", files.ENOENT)
    return directory


def make_usable(mountpoint: str, path: str) -> None:
    """Give every controller that the root has to the cgroup, all the way down, and let processes in.

    A controller that can't be given (not delegated, a threaded parent, processes in the
    parent) is left out: writing a limit that needs it tells which.
    """
    wanted = files.read_or(mountpoint + "/cgroup.controllers").split()
    parent = path[: path.rindex("/")]
    if set(wanted) == set(files.read_or(f"{mountpoint}{parent}/cgroup.subtree_control").split()):
        _leave_invalid(mountpoint + path)
        return
    at = 0
    while at >= 0:
        directory = mountpoint + path[:at]
        enabled = files.read_or(directory + "/cgroup.subtree_control").split()
        if at:
            wanted = files.read_or(directory + "/cgroup.controllers").split()
        _enable(directory, [name for name in wanted if name not in enabled])
        at = path.find("/", at + 1)
        _leave_invalid(mountpoint + (path[:at] if at >= 0 else path))


def _enable(directory: str, controllers: list[str]) -> None:
    if not controllers:
        return
    control = directory + "/cgroup.subtree_control"
    try:
        files.put(control, " ".join("+" + name for name in controllers))
    except OSError:
        for name in controllers:
            try:
                files.put(control, "+" + name)
            except OSError:
                continue


def _leave_invalid(directory: str) -> None:
    """Below a threaded parent, or one with processes, a cgroup is `domain invalid` until it is made threaded."""
    if files.read_or(directory + "/cgroup.type") == "domain invalid":
        files.write(directory + "/cgroup.type", "threaded")

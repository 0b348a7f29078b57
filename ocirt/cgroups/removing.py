"""Removing a cgroup: wait for what is dying in it by events, then rmdir."""

from __future__ import annotations

import posix

from ocirt.cgroups import files
from ocirt.errors import Error, doing, from_oserror

#: How long dying processes may take; a kill has been sent before.
PATIENCE = 10.0


def remove(mountpoint: str, path: str, kept: int, patience: float = PATIENCE) -> None:
    """Remove the cgroup `path` of a hierarchy, cgroups below it, and empty parents that were made for it.

    The first `kept` components stay. Raises Error if processes are left after `patience` seconds.
    """
    if kept >= path.count("/"):
        return
    try:
        posix.rmdir(mountpoint + path)
    except FileNotFoundError:
        pass
    except OSError:
        with doing("remove the cgroup"):
            _remove_busy(mountpoint + path, patience)
    for _ in range(path.count("/") - kept - 1):
        path = path[: path.rindex("/")]
        try:
            posix.rmdir(mountpoint + path)
        except OSError:
            return  # another container is in it, or took it away


def _remove_busy(directory: str, patience: float) -> None:
    import time

    until = time.monotonic() + patience
    while True:
        try:
            files.remove_tree(directory)
            posix.rmdir(directory)
            return
        except FileNotFoundError:
            if not posix.access(directory, posix.F_OK):
                return
        except OSError as error:
            if error.errno != files.EBUSY:
                raise from_oserror(error, f"rmdir {directory}") from error
        left = until - time.monotonic()
        if left <= 0:
            pids = files.processes(directory)
            raise Error(
                f"rmdir {directory}: device or resource busy "
                f"({len(pids)} process(es) left: {' '.join(str(p) for p in pids[:10])})",
                files.EBUSY,
            )
        wait_for_exit(directory, left)


def wait_for_exit(directory: str, timeout: float) -> None:
    """Wait until the cgroup changes: cgroup.events on cgroup2, the end of one of its processes on v1."""
    import select

    poll = select.poll()
    fd = -1
    try:
        try:
            fd = posix.open(directory + "/cgroup.events", posix.O_RDONLY | posix.O_CLOEXEC)
            if b"populated 0" in posix.read(fd, 256):
                timeout = 0.001  # a task that is switching out for the last time: nothing tells when it is gone
            poll.register(fd, select.POLLPRI)
        except FileNotFoundError:
            fd = _pidfd_of_first(directory)
            if fd < 0:
                timeout = 0.001
            else:
                poll.register(fd, select.POLLIN)
        poll.poll(max(1, int(min(timeout, 1.0) * 1000)))
    except OSError:
        pass
    finally:
        if fd >= 0:
            posix.close(fd)


def _pidfd_of_first(directory: str) -> int:
    for pid in files.processes(directory):
        try:
            return posix.pidfd_open(pid)
        except OSError:
            continue
    return -1

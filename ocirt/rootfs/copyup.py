"""The mount option tmpcopyup: a new tmpfs starts with what its directory holds in the image.

Everything is opened relative to its directory and never followed; nothing of the image
is executed or waited for (a FIFO is made anew, not opened).
"""

from __future__ import annotations

import os
import stat

from ocirt.errors import Error, doing

#: An image could nest directories until we run out of descriptors.
_DEPTH_MAX = 200
_ENOTSUP = 95
_ENOENT = 2
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 30


def copy(source: int, destination: int) -> None:
    """Copy what the directory `source` holds, and its owner, into the directory `destination`."""
    with doing("copy up"):
        read = os.open(".", _READ_DIRECTORY, dir_fd=source)
        write = os.open(".", _READ_DIRECTORY, dir_fd=destination)
        try:
            _copy_directory(read, write, 0)
            found = os.fstat(read)
            made = os.fstat(write)
            if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(write, found.st_uid, found.st_gid)
        finally:
            os.close(read)
            os.close(write)


def _copy_directory(source: int, destination: int, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise Error(f"directories are nested more than {_DEPTH_MAX} deep")
    for name in os.listdir(source):
        with doing(name):
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            kind = stat.S_IFMT(found.st_mode)
            if kind == stat.S_IFDIR:
                _copy_subdirectory(source, destination, name, depth)
            elif kind == stat.S_IFREG:
                _copy_file(source, destination, name)
            elif kind == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
                os.chown(name, found.st_uid, found.st_gid, dir_fd=destination, follow_symlinks=False)
            else:
                os.mknod(name, found.st_mode, found.st_rdev, dir_fd=destination)
                os.chown(name, found.st_uid, found.st_gid, dir_fd=destination, follow_symlinks=False)


def _copy_subdirectory(source: int, destination: int, name: str, depth: int) -> None:
    read = os.open(name, _READ_DIRECTORY, dir_fd=source)
    try:
        os.mkdir(name, 0o700, dir_fd=destination)
        write = os.open(name, _READ_DIRECTORY, dir_fd=destination)
        try:
            _copy_directory(read, write, depth + 1)
            _copy_metadata(read, write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def _copy_file(source: int, destination: int, name: str) -> None:
    # O_NONBLOCK: should it have become a FIFO meanwhile, opening it doesn't wait
    read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        if not stat.S_ISREG(os.fstat(read).st_mode):
            raise Error("it was replaced while it was being copied")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        write = os.open(name, flags, 0o600, dir_fd=destination)
        try:
            while os.sendfile(write, read, None, _CHUNK):
                pass
            _copy_metadata(read, write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def _copy_metadata(read: int, write: int) -> None:
    """Owner, mode, extended attributes (file capabilities among them) and times, in the order that keeps them."""
    found = os.fstat(read)
    os.fchown(write, found.st_uid, found.st_gid)
    os.fchmod(write, stat.S_IMODE(found.st_mode))
    try:
        names = os.listxattr(read)
    except OSError:
        names = []
    for name in names:
        try:
            os.setxattr(write, name, os.getxattr(read, name))
        except OSError as error:
            # tmpfs before Linux 6.6 has no user attributes; nobody may copy a label.
            if error.errno not in (_ENOTSUP, 1):
                raise
    os.utime(write, ns=(found.st_atime_ns, found.st_mtime_ns))

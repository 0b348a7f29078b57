"""Files: which file system they are on, sealed memory files."""

from __future__ import annotations

import fcntl
import posix as os
import sys

from ocirt.errors import Error
from ocirt.linux import libc

#: linux/magic.h
DEVPTS_SUPER_MAGIC = 0x1CD1
PROC_SUPER_MAGIC = 0x9FA0
CGROUP2_SUPER_MAGIC = 0x63677270

MFD_CLOEXEC = 0x1
MFD_ALLOW_SEALING = 0x2
MFD_EXEC = 0x10

_NULL = os.makedev(1, 3)

_F_ADD_SEALS = 1033
_SEAL_ALL = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE


def null_device() -> int:
    """The host's /dev/null (O_PATH), verified: an image can't have put it there (CVE-2025-31133)."""
    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    if os.fstat(null).st_rdev != _NULL:
        raise Error("/dev/null of the host is not the null device (character device 1:3)")
    return null


def filesystem_type(fd: int) -> int:
    """The f_type of fstatfs(2)."""
    buffer = libc.Buffer(256)
    libc.call("fstatfs", fd, buffer)
    return int.from_bytes(buffer.data[:8], sys.byteorder)


def sealed_memory(name: str, content: bytes) -> int:
    """memfd_create(2): an executable file in memory that nobody can change any more."""
    try:
        fd = os.memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC)
    except OSError as error:
        if error.errno != libc.EINVAL:  # before Linux 6.3 there is no MFD_EXEC
            raise Error(f"memfd_create({name}): {error.strerror}", error.errno or 0) from None
        fd = os.memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_ALL)
    return fd

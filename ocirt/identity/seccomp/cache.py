"""Filters compiled before: `<root>/.cache/seccomp/<hash>`.

The name is a hash of everything that the program depends on: the whole
`linux.seccomp` (but where the agent listens and what it is told), the
annotation that makes unknown calls an error, the machine, and the version of
this compiler. A file is believed if the directory and the file belong to the
runtime's user, nobody else may write them, and its content has the hash that
it begins with. On a hit nothing of the compiler is imported.

    file     16 bytes hash of the rest (keyed by the name), flags, notify, token (u32 each), program
"""

from __future__ import annotations

import _struct as struct
import marshal
import posix as os
import sys
from _blake2 import blake2b

from ocirt import log
from ocirt.errors import InvalidConfig, Unsupported
from ocirt.identity.seccomp import BPF_DATA, FAIL_UNKNOWN
from ocirt.identity.seccomp.filter import Filter
from ocirt.linux import numbers
from ocirt.linux import seccomp as kernel
from ocirt.linux.oslike import makedirs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: To be raised when the same profile gives another program; a test compares programs with this.
VERSION = 1

_DIRECTORY = ".cache/seccomp"
#: Files kept; more are halved, oldest first, when one is added.
_LIMIT = 128
_HASH = 16
_HEADER = struct.Struct("=III")
#: Keys of `linux.seccomp` that change with every container and leave the program alone.
_IRRELEVANT = ("listenerPath", "listenerMetadata")


def cached(seccomp: Mapping[str, Any], root: str, *, annotations: Mapping[str, str] | None = None) -> Filter:
    """The filter of `linux.seccomp`, compiled unless it is in the cache below `root`.

    Its flags are those that this kernel knows. Raises InvalidConfig if the
    profile isn't valid, Unsupported if the kernel has no filters, or no
    notifications and the profile wants them.
    """
    annotations = annotations or {}
    if BPF_DATA in annotations:
        return usable(given(annotations[BPF_DATA], seccomp))
    key = _key(seccomp, annotations)
    name = key.hex()
    directory = _open_directory(root)
    try:
        filter = _read(directory, name, key)
        if filter is None:
            from ocirt.identity.seccomp.compile import compile_filter

            filter = compile_filter(seccomp, annotations=annotations)
            if directory < 0:
                directory = _make_directory(root)
            _write(directory, name, key, filter)
    finally:
        if directory >= 0:
            os.close(directory)
    return usable(filter)


def given(data: str, seccomp: Mapping[str, Any]) -> Filter:
    """The program of the annotation run.oci.seccomp_bpf_data, with the flags of `linux.seccomp`."""
    from binascii import Error as BadBase64
    from binascii import a2b_base64

    from ocirt.identity.seccomp.compile import architectures, flags

    try:
        program = a2b_base64(data, strict_mode=True)
    except BadBase64 as error:
        raise InvalidConfig(f"annotations.{BPF_DATA}: not base64: {error}") from None
    count, rest = divmod(len(program), kernel.INSTRUCTION)
    if rest or not 0 < count <= kernel.MAX_INSTRUCTIONS:
        raise InvalidConfig(f"annotations.{BPF_DATA}: {len(program)} bytes, not 1 to 4096 instructions of 8")
    token = architectures(seccomp, numbers.MACHINE)[0].token
    return Filter(program, flags(seccomp, notify=False), notify=False, token=token)


def usable(filter: Filter) -> Filter:
    """The filter with the flags that this kernel knows; a warning names the others."""
    listener = kernel.FILTER_FLAG_NEW_LISTENER if filter.notify else 0
    if kernel.supports(filter.flags | listener):
        return filter
    if not kernel.supports(0):
        raise Unsupported("the kernel has no system call filters (CONFIG_SECCOMP_FILTER)")
    if not kernel.supports(listener):
        raise Unsupported("the kernel has no seccomp notifications for SCMP_ACT_NOTIFY (Linux 5.0)")
    from ocirt.identity.seccomp import names

    kept = 0
    for name, bit in names.FLAGS.items():
        wanted = filter.flags & bit
        if wanted and filter.notify and bit == kernel.FILTER_FLAG_TSYNC:
            wanted |= kernel.FILTER_FLAG_TSYNC_ESRCH
        if wanted and kernel.supports(kept | wanted | listener):
            kept |= wanted
        elif wanted:
            log.warning(f"{name}: the kernel doesn't know this seccomp flag, going on without it")
    return Filter(filter.program, kept, filter.notify, filter.token)


def _key(seccomp: Mapping[str, Any], annotations: Mapping[str, str]) -> bytes:
    relevant = {key: value for key, value in seccomp.items() if key not in _IRRELEVANT}
    fail = annotations.get(FAIL_UNKNOWN, "0") != "0"
    host = (VERSION, numbers.MACHINE, sys.maxsize, sys.byteorder)
    # format 2 has no references: equal values give equal bytes, different values different ones
    return blake2b(marshal.dumps((host, fail, relevant), 2), digest_size=32).digest()


def _open_directory(root: str) -> int:
    """The cache's directory, -1 if there is none that can be trusted."""
    try:
        directory = os.open(f"{root}/{_DIRECTORY}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    if _trusted(directory, 0o077):
        return directory
    os.close(directory)
    return -1


def _make_directory(root: str) -> int:
    path = root
    try:
        makedirs(root, 0o700)
        for name in _DIRECTORY.split("/"):
            path = f"{path}/{name}"
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
    except OSError as error:
        log.debug(f"seccomp: no cache: {error}")
        return -1
    directory = _open_directory(root)
    if directory < 0:
        log.debug(f"seccomp: no cache: {path} isn't a directory that only this user can use")
    return directory


def _trusted(fd: int, forbidden: int) -> bool:
    """Does it belong to this user, with none of the `forbidden` bits in its mode?"""
    stat = os.fstat(fd)
    return stat.st_uid == os.geteuid() and not stat.st_mode & forbidden


def _read(directory: int, name: str, key: bytes) -> Filter | None:
    if directory < 0:
        return None
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        if not _trusted(fd, 0o022):
            return None
        content = os.read(fd, _HASH + _HEADER.size + kernel.MAX_INSTRUCTIONS * kernel.INSTRUCTION + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    payload = content[_HASH:]
    if len(payload) <= _HEADER.size or _hash(payload, key) != content[:_HASH]:
        return None
    flags, notify, token = _HEADER.unpack_from(payload)
    return Filter(payload[_HEADER.size :], flags, bool(notify), token)


def _hash(payload: bytes, key: bytes) -> bytes:
    return blake2b(payload, key=key, digest_size=_HASH).digest()


def _write(directory: int, name: str, key: bytes, filter: Filter) -> None:
    """Add a file in one step; without a cache the next container compiles again."""
    if directory < 0:
        return
    payload = _HEADER.pack(filter.flags, filter.notify, filter.token) + filter.program
    temporary = f".{name}.{os.getpid()}"
    try:
        _make_room(directory)
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, create, 0o600, dir_fd=directory)
        try:
            os.write(fd, _hash(payload, key) + payload)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        log.debug(f"seccomp: not cached: {error}")


def _make_room(directory: int) -> None:
    found = os.listdir(directory)
    if len(found) < _LIMIT:
        return
    aged = sorted((os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns, name) for name in found)
    for _, name in aged[: len(aged) // 2]:
        os.unlink(name, dir_fd=directory)

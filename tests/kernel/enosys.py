"""Make chosen system calls answer ENOSYS, as an older kernel would: a small seccomp filter.

enosys.install("openat2", "open_tree")           this process and its children, for good
python3 -m tests.kernel.enosys openat2,open_tree COMMAND [ARG…]
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

#: Calls that the runtime has a fallback for. They have one number on every architecture.
NUMBERS = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "fchmodat2": 452,
    "statmount": 457,
    "listmount": 458,
    "open_tree_attr": 467,
}
#: What a kernel without the newer way to mount lacks.
MOUNTING = ("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "open_tree_attr")

_ENOSYS = 38
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
_LD_W_ABS = 0x20
_JEQ_K = 0x15
_RET_K = 0x06
_OFFSET_NR = 0


def program(numbers: list[int]) -> bytes:
    """The BPF instructions (struct sock_filter): ENOSYS for these numbers, everything else is allowed."""
    code = [(_LD_W_ABS, 0, 0, _OFFSET_NR)]
    for index, number in enumerate(numbers):
        code.append((_JEQ_K, len(numbers) - index, 0, number))
    code.append((_RET_K, 0, 0, _RET_ALLOW))
    code.append((_RET_K, 0, 0, _RET_ERRNO | _ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(*names: str) -> None:
    """Load the filter; raises OSError."""
    if not names:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    code = program([NUMBERS[name] for name in names])
    buffer = ctypes.create_string_buffer(code, len(code))
    length = len(code) // 8
    fprog = struct.pack("@HxxxxxxQ", length, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0) == 0:
        return
    # Without CAP_SYS_ADMIN a filter needs no_new_privs.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0):
        errno = ctypes.get_errno()
        raise OSError(errno, f"seccomp: {os.strerror(errno)}")


if __name__ == "__main__":
    install(*sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])

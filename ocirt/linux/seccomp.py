"""seccomp(2): loading a filter, what the kernel knows, and what filters are made of.

Programs are classic BPF as `struct sock_filter` in the host's byte order.
"""

from __future__ import annotations

import _struct as struct
import fcntl

from ocirt.errors import Error
from ocirt.linux import libc, numbers

SET_MODE_FILTER = 1

FILTER_FLAG_TSYNC = 1
FILTER_FLAG_LOG = 2
FILTER_FLAG_SPEC_ALLOW = 4
FILTER_FLAG_NEW_LISTENER = 8
FILTER_FLAG_TSYNC_ESRCH = 16
FILTER_FLAG_WAIT_KILLABLE_RECV = 32

# What a filter returns (linux/seccomp.h): an action and 16 bits of data, the errno or what a tracer is told.
RET_KILL_PROCESS = 0x80000000
RET_KILL_THREAD = 0x00000000
RET_TRAP = 0x00030000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_LOG = 0x7FFC0000
RET_ALLOW = 0x7FFF0000
RET_ACTION_FULL = 0xFFFF0000

# The instructions (linux/bpf_common.h) of our filters, and JSET of others'.
LD_ABS = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
JA = 0x05
JEQ = 0x15
JGT = 0x25
JGE = 0x35
JSET = 0x45
RET = 0x06

# Where struct seccomp_data has the number, the architecture and the arguments.
DATA_NR = 0
DATA_ARCH = 4
DATA_ARGS = 16

#: Size of an instruction, and how many a program may have (linux/bpf_common.h).
INSTRUCTION = 8
MAX_INSTRUCTIONS = 4096

_EFAULT = 14

# seccomp_unotify(2)
_IOCTL_NOTIF_RECV = 0xC0502100
_IOCTL_NOTIF_SEND = 0xC0182101
_USER_NOTIF_FLAG_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags, then struct seccomp_data
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, val, error, flags


def set_mode_filter(flags: int, program: bytes) -> int:
    """Install a filter for the calling thread; gives the listener's descriptor or 0.

    The descriptor comes with FILTER_FLAG_NEW_LISTENER and is close-on-exec.
    Without CAP_SYS_ADMIN the thread needs no_new_privs first. Raises Error.
    """
    instructions = libc.Buffer(program)
    fprog = struct.pack("HP", len(program) // INSTRUCTION, instructions.address)
    return libc.syscall(
        "seccomp",
        numbers.number("seccomp"),
        SET_MODE_FILTER,
        flags,
        fprog,
        shown=f"seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {len(program) // INSTRUCTION} instructions)",
    )


def supports(flags: int) -> bool:
    """Does the kernel know these flags of SET_MODE_FILTER (together)? Installs nothing.

    The flags are looked at before the program is read: EFAULT for the null
    pointer means that they are fine, EINVAL that one isn't.
    """
    try:
        libc.syscall("seccomp", numbers.number("seccomp"), SET_MODE_FILTER, flags, None)
    except Error as error:
        return error.errno == _EFAULT
    return False


def receive_notification(listener: int) -> tuple[int, int, int]:
    """The next call that waits: (cookie of the notification, AUDIT_ARCH_* token, system call number).

    Raises OSError; ENOENT if the caller is gone meanwhile.
    """
    notification = bytearray(_NOTIFICATION.size)  # has to be zero
    fcntl.ioctl(listener, _IOCTL_NOTIF_RECV, notification)
    cookie, _, _, number, token, *_ = _NOTIFICATION.unpack(notification)
    return cookie, token, number & 0xFFFFFFFF


def continue_call(listener: int, cookie: int) -> None:
    """Let the call be made as if there were no filter. Raises OSError; ENOENT if the caller is gone."""
    fcntl.ioctl(listener, _IOCTL_NOTIF_SEND, _RESPONSE.pack(cookie, 0, 0, _USER_NOTIF_FLAG_CONTINUE))

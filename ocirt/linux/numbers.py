"""System call numbers by machine, for calls that libc has no function for.

Calls numbered 424 and above have one number on every architecture we know
(alpha apart). -1 means that the machine isn't in the table; the call then
answers ENOSYS without being made.
"""

from __future__ import annotations

import posix

MACHINE = posix.uname().machine

#: The table that new architectures share (asm-generic/unistd.h).
_GENERIC = {
    "pivot_root": 41,
    "setns": 268,
    "unshare": 97,
    "clone": 220,
    "capget": 90,
    "capset": 91,
    "ioprio_set": 30,
    "ioprio_get": 31,
    "sched_setattr": 274,
    "set_mempolicy": 237,
    "keyctl": 219,
    "add_key": 217,
    "seccomp": 277,
    "bpf": 280,
    "execveat": 281,
    "memfd_create": 279,
    "prlimit64": 261,
}

_TABLES = {
    "x86_64": {
        "pivot_root": 155,
        "setns": 308,
        "unshare": 272,
        "clone": 56,
        "capget": 125,
        "capset": 126,
        "ioprio_set": 251,
        "ioprio_get": 252,
        "sched_setattr": 314,
        "set_mempolicy": 238,
        "keyctl": 250,
        "add_key": 248,
        "seccomp": 317,
        "bpf": 321,
        "execveat": 322,
        "memfd_create": 319,
        "prlimit64": 302,
    },
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": {
        "pivot_root": 203,
        "setns": 350,
        "unshare": 282,
        "clone": 120,
        "capget": 183,
        "capset": 184,
        "ioprio_set": 273,
        "ioprio_get": 274,
        "sched_setattr": 355,
        "set_mempolicy": 261,
        "keyctl": 271,
        "add_key": 269,
        "seccomp": 358,
        "bpf": 361,
        "execveat": 362,
        "memfd_create": 360,
        "prlimit64": 325,
    },
    "s390x": {
        "pivot_root": 217,
        "setns": 339,
        "unshare": 303,
        "clone": 120,
        "capget": 184,
        "capset": 185,
        "ioprio_set": 282,
        "ioprio_get": 283,
        "sched_setattr": 345,
        "set_mempolicy": 270,
        "keyctl": 280,
        "add_key": 278,
        "seccomp": 348,
        "bpf": 351,
        "execveat": 354,
        "memfd_create": 350,
        "prlimit64": 334,
    },
}

_TABLE: dict[str, int] = _TABLES.get(MACHINE, {})


def number(name: str) -> int:
    """The number of an older call on this machine, or -1."""
    return _TABLE.get(name, -1)


OPEN_TREE = 428
MOVE_MOUNT = 429
FSOPEN = 430
FSCONFIG = 431
FSMOUNT = 432
FSPICK = 433
PIDFD_OPEN = 434
CLONE3 = 435
CLOSE_RANGE = 436
OPENAT2 = 437
PIDFD_GETFD = 438
MOUNT_SETATTR = 442
STATMOUNT = 457
LISTMOUNT = 458
OPEN_TREE_ATTR = 467

"""The architectures that a filter can tell apart, and their system call numbers.

`struct seccomp_data` (linux/seccomp.h) gives a filter the audit token of the
architecture, the number and six 64-bit arguments, of which BPF loads 32-bit
halves. x32 has the token of x86_64 and bit 30 set in its numbers.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

X32_BIT = 0x40000000
#: The first of arm's private calls (breakpoint, cacheflush, set_tls…), far above the common table.
ARM_PRIVATE = 0xF0000


class Arch:
    """One architecture.

    name    as the specification has it, without SCMP_ARCH_
    token   AUDIT_ARCH_* of linux/audit.h, as the kernel reports it
    bits    width of an argument: of 32-bit ones only the low half is compared
    little  byte order: where the low half of an argument is
    table   module of `tables` with its numbers
    muxed   older programs reach sockets and System V IPC through socketcall(2) and ipc(2)
    enosys  the number of ENOSYS
    """

    __slots__ = ("bits", "enosys", "little", "muxed", "name", "table", "token")

    def __init__(self, name: str, token: int, bits: int, table: str, muxed: bool) -> None:
        self.name = name
        self.token = token
        self.bits = bits
        self.little = bool(token & 0x40000000)  # __AUDIT_ARCH_LE
        self.table = table
        self.muxed = muxed
        self.enosys = 89 if table.startswith("mips") else 251 if table.startswith("parisc") else 38


#: name: (audit token, bits of an argument, table, has socketcall and ipc)
_ARCHES: Mapping[str, tuple[int, int, str, bool]] = {
    "X86": (0x40000003, 32, "x86", True),
    "X86_64": (0xC000003E, 64, "x86_64", False),
    "X32": (0xC000003E, 32, "x32", False),
    "ARM": (0x40000028, 32, "arm", False),
    "AARCH64": (0xC00000B7, 64, "aarch64", False),
    "LOONGARCH64": (0xC0000102, 64, "loongarch64", False),
    "M68K": (0x00000004, 32, "m68k", True),
    "MIPS": (0x00000008, 32, "mips", True),
    "MIPS64": (0x80000008, 64, "mips64", False),
    "MIPS64N32": (0xA0000008, 32, "mips64n32", False),
    "MIPSEL": (0x40000008, 32, "mips", True),
    "MIPSEL64": (0xC0000008, 64, "mips64", False),
    "MIPSEL64N32": (0xE0000008, 32, "mips64n32", False),
    "PPC": (0x00000014, 32, "ppc", True),
    "PPC64": (0x80000015, 64, "ppc64", True),
    "PPC64LE": (0xC0000015, 64, "ppc64", True),
    "S390": (0x00000016, 32, "s390", True),
    "S390X": (0x80000016, 64, "s390x", True),
    "SH": (0x4000002A, 32, "sh", True),
    "SHEB": (0x0000002A, 32, "sh", True),
    "PARISC": (0x0000000F, 32, "parisc", False),
    "PARISC64": (0x8000000F, 64, "parisc64", False),
    "RISCV64": (0xC00000F3, 64, "riscv64", False),
}
PREFIX = "SCMP_ARCH_"
#: Every value of `linux.seccomp.architectures`.
NAMES = tuple(PREFIX + name for name in _ARCHES)
TABLES = tuple(sorted({table for _, _, table, _ in _ARCHES.values()}))

#: uname's machine where it isn't the lower-case name: (64-bit programs, 32-bit programs)
_MACHINES: Mapping[str, tuple[str, str]] = {
    "x86_64": ("X86_64", "X86"),
    "aarch64": ("AARCH64", "ARM"),
    "ppc64le": ("PPC64LE", "PPC64LE"),
    "ppc64": ("PPC64", "PPC"),
    "s390x": ("S390X", "S390"),
    "parisc64": ("PARISC64", "PARISC"),
    "sh4": ("SH", "SH"),
    "sh4eb": ("SHEB", "SHEB"),
}

#: The call number that socketcall(2) and ipc(2) have in their first argument (linux/net.h, linux/ipc.h).
SOCKETCALL: Mapping[str, int] = {
    "socket": 1,
    "bind": 2,
    "connect": 3,
    "listen": 4,
    "accept": 5,
    "getsockname": 6,
    "getpeername": 7,
    "socketpair": 8,
    "send": 9,
    "recv": 10,
    "sendto": 11,
    "recvfrom": 12,
    "shutdown": 13,
    "setsockopt": 14,
    "getsockopt": 15,
    "sendmsg": 16,
    "recvmsg": 17,
    "accept4": 18,
    "recvmmsg": 19,
    "sendmmsg": 20,
}
IPC: Mapping[str, int] = {
    "semop": 1,
    "semget": 2,
    "semctl": 3,
    "semtimedop": 4,
    "msgsnd": 11,
    "msgrcv": 12,
    "msgget": 13,
    "msgctl": 14,
    "shmat": 21,
    "shmdt": 22,
    "shmget": 23,
    "shmctl": 24,
}


def get(name: str) -> Arch | None:
    """The architecture of a SCMP_ARCH_ name, None if there is none."""
    known = _ARCHES.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    return Arch(name.removeprefix(PREFIX), *known) if known else None


def native(machine: str) -> Arch | None:
    """The architecture of this program on a kernel whose uname(2) says `machine`."""
    wide = sys.maxsize > 1 << 32
    if machine in _MACHINES:
        name = _MACHINES[machine][0 if wide else 1]
    elif machine.startswith("mips"):  # uname doesn't tell the byte order
        name = "MIPS" + ("EL" if sys.byteorder == "little" else "") + ("64" if wide else "")
    elif machine.startswith("arm"):
        name = "ARM"
    elif len(machine) == 4 and machine.endswith("86"):
        name = "X86"
    else:
        name = machine.upper()
    return get(PREFIX + name)


def numbers(table: str) -> dict[str, int]:
    """{system call: number} of one table; nothing is kept, the module is imported once."""
    module = __import__(f"ocirt.identity.seccomp.tables.{table}", fromlist=("NUMBERS",))
    result: dict[str, int] = {}
    number = 0
    for word in module.NUMBERS.split():
        if word.isdigit():
            number = int(word)
        else:
            result[word] = number
            number += 1
    return result

"""The last execve of a container, so that it can't get hold of the interpreter's file.

CVE-2019-5736: an image whose program is `#!/proc/self/exe`, or a link to it,
makes the kernel open the file of the process that calls execve: the host's
interpreter, through a mount that root may write. So the process first becomes a
program of some 150 bytes in a sealed memory file, and that one executes the
container's program: /proc/self/exe is then a file that nobody can change.

The program gets its file name and one descriptor baked in. It sets close-on-exec
on the descriptor (which fails when it is run a second time, by way of
/proc/self/exe: then it ends), calls execve, and when that fails writes the errno
to the descriptor, four bytes, and exits with 1.
"""

from __future__ import annotations

import _struct as struct

from ocirt.linux import files, numbers
from ocirt.linux.oslike import fsencode

_BASE = 0x400000
_HEADERS = 64 + 2 * 56


def _x86_64(fd: int) -> bytes:
    number = struct.pack("<i", fd)
    return b"".join(
        (
            b"\x48\x89\xe3",  # mov  rbx, rsp            argc, argv, NULL, envp, NULL
            b"\xbf" + number,  # mov  edi, fd
            b"\xbe\x02\0\0\0",  # mov  esi, F_SETFD
            b"\xba\x01\0\0\0",  # mov  edx, FD_CLOEXEC
            b"\xb8\x48\0\0\0",  # mov  eax, fcntl
            b"\x0f\x05",  # syscall
            b"\x85\xc0",  # test eax, eax
            b"\x78\x31",  # js   exit
            b"\x48\x8b\x0b",  # mov  rcx, [rbx]
            b"\x48\x8d\x73\x08",  # lea  rsi, [rbx + 8]
            b"\x48\x8d\x54\xcb\x10",  # lea  rdx, [rbx + rcx * 8 + 16]
            b"\x48\x8d\x3d\x2c\0\0\0",  # lea  rdi, [rip + name]
            b"\xb8\x3b\0\0\0",  # mov  eax, execve
            b"\x0f\x05",  # syscall
            b"\xf7\xd8",  # neg  eax
            b"\x50",  # push rax
            b"\x48\x89\xe6",  # mov  rsi, rsp
            b"\xbf" + number,  # mov  edi, fd
            b"\xba\x04\0\0\0",  # mov  edx, 4
            b"\xb8\x01\0\0\0",  # mov  eax, write
            b"\x0f\x05",  # syscall
            b"\xbf\x01\0\0\0",  # exit: mov edi, 1
            b"\xb8\xe7\0\0\0",  # mov  eax, exit_group
            b"\x0f\x05",  # syscall
            b"\x0f\x0b",  # ud2
        )
    )


def _aarch64(fd: int) -> bytes:
    words = (
        0x910003F3,  # mov  x19, sp
        0xD2800000 | (fd & 0xFFFF) << 5,  # mov  x0, fd
        0xD2800041,  # mov  x1, F_SETFD
        0xD2800022,  # mov  x2, FD_CLOEXEC
        0xD2800328,  # mov  x8, fcntl
        0xD4000001,  # svc  0
        0xB7F801E0,  # tbnz x0, 63, exit
        0xF9400263,  # ldr  x3, [x19]
        0x91002261,  # add  x1, x19, 8
        0x8B030C22,  # add  x2, x1, x3, lsl 3
        0x91002042,  # add  x2, x2, 8
        0x100001C0,  # adr  x0, name
        0xD2801BA8,  # mov  x8, execve
        0xD4000001,  # svc  0
        0x4B0003E4,  # neg  w4, w0
        0xB81F0FE4,  # str  w4, [sp, -16]!
        0x910003E1,  # mov  x1, sp
        0xD2800000 | (fd & 0xFFFF) << 5,  # mov  x0, fd
        0xD2800082,  # mov  x2, 4
        0xD2800808,  # mov  x8, write
        0xD4000001,  # svc  0
        0xD2800020,  # exit: mov x0, 1
        0xD2800BC8,  # mov  x8, exit_group
        0xD4000001,  # svc  0
        0xD4200000,  # brk  0
    )
    return struct.pack(f"<{len(words)}I", *words)


_MACHINES = {"x86_64": (62, _x86_64), "aarch64": (183, _aarch64)}

AVAILABLE = numbers.MACHINE in _MACHINES


def image(executable: bytes, fd: int, machine: str = numbers.MACHINE) -> bytes:
    """The ELF file that executes `executable` and reports a failure on `fd`."""
    elf_machine, code = _MACHINES[machine]
    body = code(fd) + executable + b"\0"
    size = _HEADERS + len(body)
    identification = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identification, 2, elf_machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    # without PT_GNU_STACK the stack would be executable, and the personality of what follows changed
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + load + stack + body


def make(executable: str, fd: int) -> int:
    """The trampoline as a sealed memory file; raises Error."""
    return files.sealed_memory("ocirt-init", image(fsencode(executable), fd))

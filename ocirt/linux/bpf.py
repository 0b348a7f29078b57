"""bpf(2): an assembler for the few instructions we need, and programs attached to cgroups."""

from __future__ import annotations

import os
import struct
import sys

from ocirt.errors import Error
from ocirt.linux import libc, numbers

#: Commands (linux/bpf.h, enum bpf_cmd).
PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 5, 8, 9, 13, 15, 16

PROG_TYPE_CGROUP_DEVICE = 15
CGROUP_DEVICE = 6  # enum bpf_attach_type
F_ALLOW_MULTI, F_REPLACE = 2, 4

#: Operation codes (linux/bpf_common.h, linux/bpf.h).
LDX_W = 0x61
MOV_REG, MOV_IMM = 0xBF, 0xB7
AND_IMM, RSH_IMM = 0x57, 0x77
JEQ_IMM, JNE_IMM = 0x15, 0x55
EXIT = 0x95


def instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One struct bpf_insn; the two registers share a byte, in the machine's order of bits."""
    registers = target | source << 4 if sys.byteorder == "little" else source | target << 4
    return struct.pack("=BBhi", code, registers, offset, immediate)


def load(kind: int, program: bytes, name: str, attach_type: int) -> int:
    """BPF_PROG_LOAD; a descriptor (close-on-exec by birth). Raises Error."""
    instructions = libc.Buffer(program)
    license = libc.Buffer(b"Apache\0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(kind, len(program) // 8, instructions.address, license.address),
        *(0, 0, 0, 0, 0, name.encode()[:15], 0, attach_type),
    )
    try:
        return _bpf(PROG_LOAD, attributes, "BPF_PROG_LOAD")
    except Error as error:
        if error.errno != libc.EPERM:
            raise
    # before Linux 5.11 programs count as locked memory
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return _bpf(PROG_LOAD, attributes, "BPF_PROG_LOAD")


def attach(cgroup: int, program: int, attach_type: int, replaced: int = -1) -> None:
    """BPF_PROG_ATTACH beside what is attached, or in the place of the program `replaced` (Linux 5.6)."""
    flags = F_ALLOW_MULTI | (F_REPLACE if replaced >= 0 else 0)
    attributes = struct.pack("=IIIII", cgroup, program, attach_type, flags, max(replaced, 0))
    _bpf(PROG_ATTACH, attributes, "BPF_PROG_ATTACH")


def detach(cgroup: int, program: int, attach_type: int) -> None:
    """BPF_PROG_DETACH."""
    _bpf(PROG_DETACH, struct.pack("=IIII", cgroup, program, attach_type, 0), "BPF_PROG_DETACH")


def attached(cgroup: int, attach_type: int) -> list[int]:
    """BPF_PROG_QUERY: ids of the programs attached to the cgroup itself."""
    room = 64
    ids = libc.Buffer(4 * room)
    attributes = libc.Buffer(struct.pack("=IIIIQIIQQQQ", cgroup, attach_type, 0, 0, ids.address, room, 0, 0, 0, 0, 0))
    _call(PROG_QUERY, attributes, "BPF_PROG_QUERY")
    (count,) = struct.unpack_from("=I", attributes.data, 24)
    return list(struct.unpack_from(f"={min(count, room)}I", ids.data))


def by_id(program: int) -> int:
    """BPF_PROG_GET_FD_BY_ID."""
    return _bpf(PROG_GET_FD_BY_ID, struct.pack("=III", program, 0, 0), "BPF_PROG_GET_FD_BY_ID")


def name(program: int) -> str:
    """BPF_OBJ_GET_INFO_BY_FD: the name that the program was loaded with."""
    info = libc.Buffer(128)
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, 128, info.address), "BPF_OBJ_GET_INFO_BY_FD")
    return bytes(info.data[64:80]).partition(b"\0")[0].decode("ascii", "replace")


def _bpf(command: int, attributes: bytes, shown: str) -> int:
    return _call(command, libc.Buffer(attributes), shown)


def _call(command: int, attributes: libc.Buffer, shown: str) -> int:
    size = len(attributes.data)
    return libc.syscall("bpf", numbers.number("bpf"), command, attributes, size, shown=f"bpf({shown}, {{…}}, {size})")


def close(fd: int) -> None:
    """Close a program's descriptor; what is attached stays."""
    os.close(fd)

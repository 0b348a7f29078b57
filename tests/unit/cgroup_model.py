"""What the device rules mean, said once more and slowly; and a machine for the program that is made of them."""

from __future__ import annotations

import struct

from ocirt.cgroups.devices import Rule

_REGISTERS = 11


class Allowed:
    """For each of mknod, read and write the last rule that speaks of it decides; none is denied."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules

    def one(self, kind: str, major: int, minor: int, access: int) -> bool:
        for allow, of, a, b, mask in reversed(self.rules):
            if of == kind and a in (None, major) and b in (None, minor) and mask & access:
                return allow
        return False

    def all(self, kind: str, major: int, minor: int, access: int) -> bool:
        return all(self.one(kind, major, minor, bit) for bit in (1, 2, 4) if access & bit)


def run(program: bytes, kind: str, major: int, minor: int, access: int) -> bool:
    """Run the program on a struct bpf_cgroup_dev_ctx."""
    context = struct.pack("=III", access << 16 | (1 if kind == "b" else 2), major, minor)
    code = [struct.unpack_from("=BBhi", program, at) for at in range(0, len(program), 8)]
    registers = [0] * _REGISTERS
    at = 0
    while True:
        operation, pair, offset, immediate = code[at]
        target, source = pair & 15, pair >> 4
        at += 1
        if operation == 0x95:
            return registers[0] == 1
        if operation == 0x61:
            assert source == 1
            (registers[target],) = struct.unpack_from("=I", context, offset)
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0xB7:
            registers[target] = immediate
        elif operation == 0x57:
            registers[target] &= immediate
        elif operation == 0x77:
            registers[target] >>= immediate
        elif operation == 0x15:
            at += offset if registers[target] == immediate else 0
        elif operation == 0x55:
            at += offset if registers[target] != immediate else 0
        else:
            raise AssertionError(f"unknown operation {operation:#x}")

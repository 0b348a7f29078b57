"""What people are shown of a filter."""

from __future__ import annotations

import re
from base64 import b64encode

from ocirt.identity.seccomp import BPF_DATA
from ocirt.identity.seccomp.compile import compile_filter
from ocirt.identity.seccomp.dump import dump, listing
from ocirt.identity.seccomp.filter import verdict

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {"names": ["read", "write", "nonsense"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mkdir"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [
                {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x17E020000, "valueTwo": 0},
                {"index": 1, "op": "SCMP_CMP_LT", "value": 0x123456789},
            ],
        },
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "op": "SCMP_CMP_NE", "value": 40}],
        },
    ],
}


def test_a_filter_in_words() -> None:
    head, body = dump(PROFILE, machine="x86_64").split("\n", 1)
    assert re.fullmatch(r"\d+ instructions, flags: LOG", head)
    assert body == (
        "X86_64, X86; calls of other architectures: KILL_THREAD\n"
        "unknown names: nonsense\n"
        "\n"
        "X86_64\n"
        "  ALLOW: read write\n"
        "  TRACE 7: mkdir\n"
        "  ERRNO EACCES: mount\n"
        "  socket if arg0 != 0x28: ALLOW\n"
        "  socket otherwise: ERRNO EPERM\n"
        "  clone if arg0 & 0x17e020000 == 0 and arg1 < 0x123456789: ALLOW\n"
        "  clone otherwise: ERRNO EPERM\n"
        "  numbers above 165 (mount): ERRNO ENOSYS\n"
        "  all others: ERRNO EPERM\n"
        "\n"
        "X86\n"
        "  ALLOW: read write\n"
        "  ERRNO EACCES: mount\n"
        "  TRACE 7: mkdir\n"
        "  socketcall (socket) if arg0 == 1: ALLOW\n"
        "  socketcall otherwise: ERRNO EPERM\n"
        "  clone if arg0 & 0x7e020000 == 0 and arg1 < 0x23456789: ALLOW\n"
        "  clone otherwise: ERRNO EPERM\n"
        "  socket if arg0 != 0x28: ALLOW\n"
        "  socket otherwise: ERRNO EPERM\n"
        "  numbers above 359 (socket): ERRNO ENOSYS\n"
        "  all others: ERRNO EPERM\n"
    )


def test_no_filter_in_words() -> None:
    assert dump(None) == dump({}) == "no filter: every system call is allowed\n"


def test_big_endian_values_are_put_together() -> None:
    assert "clone if arg0 & 0x17e020000 == 0 and arg1 < 0x123456789: ALLOW" in dump(PROFILE, machine="s390x")


def test_a_permissive_filter_has_no_numbers_above() -> None:
    text = dump({"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL"}]})
    assert "numbers above" not in text
    assert "KILL_THREAD: read" in text


def run(lines: list[str], arch: str, number: int, args: list[int]) -> str:
    """Follow the listing by hand."""
    fields = {"arch": arch, "number": number}
    for index, value in enumerate(args):
        fields |= {f"arg{index}": value & 0xFFFFFFFF, f"arg{index} + 4": value >> 32}
    accumulator: object = 0
    at = 0
    while True:
        shown, code, rest = lines[at].split(None, 2)
        assert int(shown) == at
        at += 1
        if code == "return":
            return rest
        if code == "load":
            accumulator = fields[rest]
        elif code == "and":
            accumulator = int(str(accumulator)) & int(rest, 16)
        elif code == "jump":
            at = int(rest)
        else:
            operand, true, false = rest.split(", ")
            value = operand if operand.isidentifier() else int(operand, 0)
            holds = {"jeq": lambda a, b: a == b, "jgt": lambda a, b: a > b, "jge": lambda a, b: a >= b}
            at = int(true) if holds[code](accumulator, value) else int(false)


def test_the_listing_is_the_program() -> None:
    program = compile_filter(PROFILE, machine="x86_64").program
    lines = listing(program)
    assert len(lines) == len(program) // 8
    assert dump(PROFILE, bpf=True, machine="x86_64").endswith("\n\n" + "\n".join(lines) + "\n")
    words = {
        0x7FFF0000: "ALLOW", 0x7FF00007: "TRACE 7", 0x5000D: "ERRNO EACCES", 0x50001: "ERRNO EPERM",
        0x50026: "ERRNO ENOSYS", 0: "KILL_THREAD",
    }  # fmt: skip
    seen = set()
    for name, token in (("X86_64", 0xC000003E), ("X86", 0x40000003), ("ARM", 0x40000028)):
        for number in range(400):
            for args in ([0, 0], [40, 1], [1, 0x23456788], [0x20000, 0], [0, 1 << 40]):
                word = verdict(program, token, number, args)
                assert run(lines, name, number, [*args, 0, 0, 0, 0]) == words[word or 0]
                seen.add(word)
    assert seen == set(words)


def test_the_program_of_an_annotation_is_listed() -> None:
    program = compile_filter(PROFILE, machine="x86_64").program
    text = dump(PROFILE, annotations={BPF_DATA: b64encode(program).decode()})
    assert text.startswith(f"the program of the annotation {BPF_DATA}\n\n    0 load arch\n")
    assert text.splitlines()[2:] == listing(program)


def test_what_is_no_instruction_of_ours_is_shown_in_hex() -> None:
    assert listing(b"\0\0\0\0\1\0\0\0" + b"\x45\0\1\2\x10\0\0\0" + b"\6\0\0\0\x34\x12\xfe\x7f") == [
        "    0 0x0000 0 0 0x1",
        "    1 jset 0x10, 3, 4",
        "    2 return 0x7ffe1234",
    ]

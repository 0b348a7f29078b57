"""A filter for people: what each architecture's calls get, and the program itself.

dump      by architecture and action: calls, conditions in words, the numbers above
listing   the instructions, as bpf_asm(1) writes them, with names and targets
"""

from __future__ import annotations

import errno
import textwrap

from ocirt.identity.seccomp import BPF_DATA, arches, names
from ocirt.identity.seccomp.cache import given
from ocirt.identity.seccomp.compile import Meaning, compile_filter
from ocirt.linux import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.identity.seccomp.arches import Arch
    from ocirt.identity.seccomp.layout import Rule, Test

_WIDTH = 110
_ALL = 0xFFFFFFFF
_JUMPS = {kernel.JEQ: "jeq", kernel.JGT: "jgt", kernel.JGE: "jge", kernel.JSET: "jset"}
#: The action's name by its word; KILL and KILL_THREAD are one.
_ACTIONS = {word: name.removeprefix("SCMP_ACT_") for name, word in names.ACTIONS.items()}


def dump(
    seccomp: Mapping[str, Any] | None,
    *,
    annotations: Mapping[str, str] | None = None,
    bpf: bool = False,
    machine: str = "",
) -> str:
    """The filter of `linux.seccomp` as text; `bpf` adds the program. Raises InvalidConfig as compile_filter does."""
    if not seccomp:
        return "no filter: every system call is allowed\n"
    if annotations and BPF_DATA in annotations:
        program = given(annotations[BPF_DATA], seccomp).program
        return "\n".join([f"the program of the annotation {BPF_DATA}", "", *listing(program)]) + "\n"
    filter = compile_filter(seccomp, annotations=annotations, machine=machine)
    meaning = Meaning(seccomp, annotations, machine)
    flags = [name.removeprefix("SECCOMP_FILTER_FLAG_") for name, bit in names.FLAGS.items() if filter.flags & bit]
    text = [
        f"{len(filter.program) // kernel.INSTRUCTION} instructions, flags: {' '.join(flags) or 'none'}",
        f"{', '.join(arch.name for arch in meaning.arches)}; calls of other architectures: {action(0)}",
    ]
    named = {call for calls, _, _ in meaning.listed for call in calls}
    unknown = named.difference(*meaning.known.values())
    if unknown:
        text += textwrap.wrap(f"unknown names: {' '.join(sorted(unknown))}", _WIDTH)
    for arch in meaning.arches:
        text += ["", *_architecture(meaning, arch)]
    if bpf:
        text += ["", *listing(filter.program)]
    return "\n".join(text) + "\n"


def action(word: int) -> str:
    """A SECCOMP_RET_* word: ALLOW, ERRNO EPERM, TRACE 7."""
    name = _ACTIONS.get(word & kernel.RET_ACTION_FULL)
    if name is None:
        return f"{word:#010x}"
    if word & kernel.RET_ACTION_FULL == kernel.RET_ERRNO:
        number = word & ~kernel.RET_ACTION_FULL
        return f"{name} {errno.errorcode.get(number, number)}"
    return f"{name} {word & ~kernel.RET_ACTION_FULL}" if word & kernel.RET_ACTION_FULL in names.WITH_NUMBER else name


def _architecture(meaning: Meaning, arch: Arch) -> list[str]:
    """One architecture: an action a paragraph, the default last."""
    called: dict[int, str] = {}
    for call, number in arches.numbers(arch.table).items():
        called.setdefault(number, call)
    always: dict[int, list[str]] = {}
    sometimes: list[str] = []
    for number, verdict in sorted(meaning.said[arch.name].items()):
        name = called.get(number, str(number))
        if isinstance(verdict, int):
            always.setdefault(verdict, []).append(name)
        else:
            sometimes += [_rule(name, rule, arch) for rule in verdict]
            sometimes.append(f"{name} otherwise: {action(meaning.default)}")
    text = [arch.name]
    for word, calls in sorted(always.items(), key=lambda item: -len(item[1])):
        text += _wrap(f"{action(word)}: ", " ".join(sorted(calls)))
    for line in sometimes:
        text += _wrap("", line)
    last = meaning.last[arch.name]
    newer = meaning.newer(arch)
    if newer != meaning.default:
        text += _wrap("", f"numbers above {last} ({called.get(last, '?')}): {action(newer)}")
    text += _wrap("", f"all others: {action(meaning.default)}")
    return text


def _rule(name: str, rule: Rule, arch: Arch) -> str:
    tests, word = rule
    inner = ""
    for shared, calls in (("socketcall", arches.SOCKETCALL), ("ipc", arches.IPC)):
        first = tests[0]
        if name == shared and first[0] == "==" and first[1][-1][0] in (kernel.DATA_ARGS, kernel.DATA_ARGS + 4):
            inner = next((f" ({call})" for call, number in calls.items() if number == first[1][-1][2]), "")
    return f"{name}{inner} if {' and '.join(condition(test, arch) for test in tests)}: {action(word)}"


def condition(test: Test, arch: Arch) -> str:
    """A test in words: `arg1 & 0x7e020000 == 0`. Arguments of 32-bit architectures are their low halves."""
    comparison, words = test
    index = (words[0][0] - kernel.DATA_ARGS) // 8
    mask = value = 0
    for offset, part, wanted in words:
        high = bool(offset % 8) == arch.little
        mask |= part << 32 if high else part
        value |= wanted << 32 if high else wanted
    masked = "" if mask == (1 << arch.bits) - 1 else f" & {mask:#x}"
    return f"arg{index}{masked} {comparison} {value if value < 10 else hex(value)}"


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        head + text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="      ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def listing(program: bytes) -> list[str]:
    """The instructions, one a line: its number, what it does, where it goes on if that isn't the next one."""
    import struct

    tokens: dict[int, str] = {}
    for name in arches.NAMES:
        arch = arches.get(name)
        if arch and arch.name != "X32":
            tokens[arch.token] = arch.name
    lines: list[str] = []
    loaded: dict[int, str] = {}  # what the accumulator holds at an instruction
    for at, (code, true, false, k) in enumerate(struct.iter_unpack("=HBBI", program)):
        here, follows = loaded.get(at, ""), at + 1
        targets = [follows]
        if code == kernel.LD_ABS:
            here = _field(k)
            text = f"load {here}"
        elif code == kernel.AND:
            text = f"and {k:#x}"
        elif code == kernel.JA:
            targets = [follows + k]
            text = f"jump {follows + k}"
        elif code in _JUMPS:
            targets = [follows + true, follows + false]
            operand = tokens.get(k, hex(k)) if here == "arch" else str(k) if here == "number" else hex(k)
            text = f"{_JUMPS[code]} {operand}, {follows + true}, {follows + false}"
        elif code == kernel.RET:
            targets = []
            text = f"return {action(k)}"
        else:
            text = f"{code:#06x} {true} {false} {k:#x}"
        loaded.update((target, here) for target in targets)
        lines.append(f"{at:5} {text}")
    return lines


def _field(offset: int) -> str:
    if offset == kernel.DATA_NR:
        return "number"
    if offset == kernel.DATA_ARCH:
        return "arch"
    if offset < kernel.DATA_ARGS:
        return "instruction pointer" + (" + 4" if offset % 8 else "")
    index, second = divmod(offset - kernel.DATA_ARGS, 8)
    return f"arg{index}" + (" + 4" if second else "")

"""Classic BPF, written from the end to the start.

Every jump goes forward, so whoever is written last knows where all its targets
are. A label is how many instructions were in the program when its instruction
was appended; the program is the list turned around. Conditional jumps reach
255 instructions: a target farther away gets a stepping stone in reach, which
for a return is simply another return.
"""

from __future__ import annotations

import struct

from ocirt.linux.seccomp import AND, JA, JEQ, JGE, JGT, LD_ABS, RET

#: A conditional jump reaches 255; both its targets may need a stepping stone first.
_REACH = 253


class Assembler:
    """The instructions so far, last one first. Equal code is written once where it can be reached."""

    __slots__ = ("_code", "_known")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._known: dict[tuple[int, int, int, int], int] = {}

    def ret(self, value: int) -> int:
        """Return `value`, a SECCOMP_RET_* word."""
        return self._append(RET, 0, 0, value)

    def load(self, offset: int, mask: int, then: int) -> int:
        """Load the word at `offset`, keep the bits of `mask`, go on at `then`."""
        if mask != 0xFFFFFFFF:
            then = self._append(AND, 0, 0, mask, self._next(then))
        return self._append(LD_ABS, 0, 0, offset, self._next(then))

    def jump(self, code: int, k: int, true: int, false: int) -> int:
        """Compare the loaded word with `k`; a jump that doesn't matter isn't written."""
        if true == false:
            return true
        true, false = self._near(true), self._near(false)
        return self._append(code, true, false, k)

    def program(self, start: int) -> bytes:
        """The program that begins at `start`, as struct sock_filter."""
        code = self._code
        pack = struct.Struct("=HBBI").pack
        return b"".join(
            pack(op, at - true - 1, at - false - 1, k)
            if op in (JEQ, JGT, JGE)
            else pack(op, 0, 0, at - true - 1 if op == JA else k)
            for at in range(start, -1, -1)
            for op, true, false, k in (code[at],)
        )

    def _append(self, code: int, true: int, false: int, k: int, follows: int = -1) -> int:
        key = (code, true if follows < 0 else follows, false, k)
        at = len(self._code)
        known = self._known.get(key)
        if known is not None and at - known < _REACH:
            return known
        self._code.append((code, true, false, k))
        self._known[key] = at
        return at

    def _near(self, label: int) -> int:
        if len(self._code) - label <= _REACH:
            return label
        code, true, false, k = self._code[label]
        if code == RET:
            return self._append(RET, true, false, k)
        return self._append(JA, label, 0, 0)

    def _next(self, label: int) -> int:
        """Make `label` the instruction that follows the one to be appended."""
        if label == len(self._code) - 1:
            return label
        code, true, false, k = self._code[label]
        at = len(self._code)
        if code == RET:
            self._code.append((RET, true, false, k))
        else:
            self._code.append((JA, label, 0, 0))
        return at

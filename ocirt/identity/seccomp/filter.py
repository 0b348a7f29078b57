"""A compiled filter: loading it, and asking it what it would say."""

from __future__ import annotations

import _struct as struct
import sys

from ocirt.linux import numbers
from ocirt.linux import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Filter:
    """What seccomp(2) needs.

    program  struct sock_filter[], host byte order
    flags    SECCOMP_FILTER_FLAG_*, without NEW_LISTENER
    notify   some calls are answered by an agent: loading it gives a descriptor
    token    AUDIT_ARCH_* of this runtime's own calls
    """

    __slots__ = ("flags", "notify", "program", "token")

    def __init__(self, program: bytes, flags: int, notify: bool, token: int) -> None:
        self.program = program
        self.flags = flags
        self.notify = notify
        self.token = token


def allows(filter: Filter, call: str) -> bool:
    """Does a call of this runtime's architecture run, whatever its arguments are? False for unknown calls."""
    number = numbers.number(call)
    if number < 0:
        from ocirt.identity.seccomp import arches

        native = arches.native(numbers.MACHINE)
        number = arches.numbers(native.table).get(call, -1) if native else -1
    word = verdict(filter.program, filter.token, number, None) if number >= 0 else None
    return word is not None and word & kernel.RET_ACTION_FULL in (kernel.RET_ALLOW, kernel.RET_LOG)


def load(filter: Filter) -> int:
    """Install the filter for this thread; gives the listener's descriptor, -1 if there is none.

    Nothing is imported. Without CAP_SYS_ADMIN the thread needs no_new_privs first.
    """
    if not filter.notify:
        kernel.set_mode_filter(filter.flags, filter.program)
        return -1
    return kernel.set_mode_filter(filter.flags | kernel.FILTER_FLAG_NEW_LISTENER, filter.program)


def verdict(program: bytes, token: int, number: int, args: Sequence[int] | None) -> int | None:
    """The SECCOMP_RET_* word that `program` returns for a call.

    args  up to six 64-bit arguments, None if they aren't known

    None if that can't be told: the answer depends on unknown arguments, or the
    program has instructions that ours never have.
    """
    data = struct.pack("=II8x6Q", number & 0xFFFFFFFF, token, *((*(args or ()), 0, 0, 0, 0, 0, 0)[:6]))
    instruction = struct.Struct("=HBBI").unpack_from
    at = accumulator = 0
    while 8 * at < len(program):
        code, true, false, k = instruction(program, 8 * at)
        at += 1
        if code == kernel.RET:
            return int(k)
        if code == kernel.LD_ABS:
            if k >= kernel.DATA_ARGS and args is None:
                return None
            accumulator = int.from_bytes(data[k : k + 4], sys.byteorder)
        elif code == kernel.AND:
            accumulator &= k
        elif code == kernel.JA:
            at += k
        elif code == kernel.JEQ:
            at += true if accumulator == k else false
        elif code == kernel.JGT:
            at += true if accumulator > k else false
        elif code == kernel.JGE:
            at += true if accumulator >= k else false
        elif code == kernel.JSET:
            at += true if accumulator & k else false
        else:
            break
    return None

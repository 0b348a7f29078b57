"""The meaning of `linux.seccomp` (config-linux.md, Seccomp), as libseccomp and runc give it.

For every architecture of the filter (the runtime's own is always one) each
system call number gets a verdict:

- The first rule without conditions decides. Rules with conditions count only
  if there is no such rule; of those that apply the one decides that comes first
  in libseccomp's order: by the lowest argument they look at, higher arguments
  first, then equality, then less, then greater, then by the value; a rule comes
  before those that add conditions to it.
- Conditions of a rule are ANDed. A rule that names an argument twice means one
  rule a condition.
- A rule whose action is the default action is nothing.
- On 32-bit architectures the low halves of argument and value are compared.
- Sockets and System V IPC have a second entrance, socketcall(2) and ipc(2),
  on some architectures: a rule for `bind` is also one for its call number there.
  The arguments themselves are then in memory, where no filter can see them.
- Numbers above the highest one that the profile names answer ENOSYS if the
  default action is neither allow, log, trace nor notify: the profile is older
  than those calls, and libc has a fall-back only for ENOSYS.
"""

from __future__ import annotations

from ocirt import log
from ocirt.errors import InvalidConfig
from ocirt.identity.seccomp import FAIL_UNKNOWN, arches, layout, names
from ocirt.identity.seccomp.filter import Filter
from ocirt.linux import numbers as kernel_numbers
from ocirt.linux import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.identity.seccomp.arches import Arch
    from ocirt.identity.seccomp.layout import Ranges, Rule, Test, Verdict, Word

    #: (argument, comparison, mask or None, value)
    Condition = tuple[int, str, int | None, int]
    #: (names, word, alternatives; one empty alternative: without conditions)
    Entry = tuple[list[str], int, list[tuple[Condition, ...]]]
    #: (number, the condition on the first argument if others share the number)
    Entrance = tuple[int, Condition | None]
    Order = tuple[tuple[int, int, int], ...]

PATH = "linux.seccomp"
_LOW = 0xFFFFFFFF
#: Default actions that leave calls the profile doesn't know to somebody who knows better.
_PERMISSIVE = (kernel.RET_ALLOW, kernel.RET_LOG, kernel.RET_TRACE, kernel.RET_USER_NOTIF)
#: libseccomp's order of the comparisons of one argument
_PRECEDENCE = {"==": 3, "!=": 3, "<": 2, "<=": 2, ">": 1, ">=": 1}


class Meaning:
    """What a profile says on a machine, before it is a program.

    arches   architectures of the filter, the native one first
    default  the default action's SECCOMP_RET_* word
    known    {architecture: {call: where it enters the kernel}}
    said     {architecture: {number: verdict}} for the calls that get something other than the default
    last     {architecture: the highest number that the profile names, -1 if none}
    notify   some calls are answered by an agent

    Raises InvalidConfig for names that don't exist, an errnoRet for an action
    that takes none, and contradicting rules.
    """

    __slots__ = ("arches", "default", "known", "last", "listed", "notify", "said")

    def __init__(self, seccomp: Mapping[str, Any], annotations: Mapping[str, str] | None, machine: str) -> None:
        number = seccomp.get("defaultErrnoRet")
        self.default = action_word(seccomp["defaultAction"], number, "defaultAction", "defaultErrnoRet")
        self.arches = architectures(seccomp, machine or kernel_numbers.MACHINE)
        self.listed = entries(seccomp)
        self.known = {arch.name: entrances(arch, arches.numbers(arch.table)) for arch in self.arches}
        _unknown(self.listed, self.known, (annotations or {}).get(FAIL_UNKNOWN, "0") != "0")
        self.said = {
            arch.name: verdicts(arch, self.known[arch.name], self.listed, self.default) for arch in self.arches
        }
        self.last = {arch.name: last_number(arch, self.known[arch.name], self.listed) for arch in self.arches}
        self.notify = kernel.RET_USER_NOTIF in [self.default, *(word for _, word, _ in self.listed)]

    def newer(self, arch: Arch) -> int:
        """What numbers above the last one get."""
        if self.last[arch.name] < 0 or self.default & kernel.RET_ACTION_FULL in _PERMISSIVE:
            return self.default
        return kernel.RET_ERRNO | arch.enosys


def compile_filter(
    seccomp: Mapping[str, Any], *, annotations: Mapping[str, str] | None = None, machine: str = ""
) -> Filter:
    """Compile `linux.seccomp` for the kernel of `machine` (uname's, by default this one's).

    Raises InvalidConfig as Meaning does, for flags that don't exist, and for a
    program that is too long.
    """
    meaning = Meaning(seccomp, annotations, machine)
    sections = [
        (arch.token, _ranges(arch, meaning))
        for arch in meaning.arches
        if arch.name != "X32"  # a part of X86_64
    ]
    program = layout.program(sections, meaning.default, kernel.RET_KILL_THREAD)
    count = len(program) // kernel.INSTRUCTION
    if count > kernel.MAX_INSTRUCTIONS:
        raise InvalidConfig(f"{PATH}: {count} instructions, the kernel takes {kernel.MAX_INSTRUCTIONS}")
    return Filter(program, flags(seccomp, meaning.notify), meaning.notify, meaning.arches[0].token)


def action_word(action: str, number: int | None, where: str, number_where: str) -> int:
    """The SECCOMP_RET_* word of an action and its errnoRet; the last two say where they stand."""
    if action not in names.ACTIONS:
        raise InvalidConfig(f'{PATH}.{where}: "{action}": not one of {", ".join(names.ACTIONS)}')
    word = names.ACTIONS[action]
    if number is None:
        return word | (names.EPERM if word in names.WITH_NUMBER else 0)
    where = f"{PATH}.{number_where}: {number}"
    if word not in names.WITH_NUMBER:
        raise InvalidConfig(f"{where}: {action} takes no errno, only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do")
    if not 0 <= number <= 0xFFFF:
        raise InvalidConfig(f"{where}: a filter returns 16 bits, so 0 to 65535")
    return word | number


def architectures(seccomp: Mapping[str, Any], machine: str) -> list[Arch]:
    """The architectures of the filter: the native one first, then those asked for."""
    native = arches.native(machine)
    if native is None:
        raise InvalidConfig(f"{PATH}: system calls of {machine} are not known")
    chosen = {native.name: native}
    for at, name in enumerate(seccomp.get("architectures") or ()):
        arch = arches.get(name)
        if arch is None:
            raise InvalidConfig(f'{PATH}.architectures[{at}]: "{name}": not one of {", ".join(arches.NAMES)}')
        chosen.setdefault(arch.name, arch)
    return list(chosen.values())


def entries(seccomp: Mapping[str, Any]) -> list[Entry]:
    """`syscalls` with actions as words and conditions as alternatives."""
    found: list[Entry] = []
    syscalls: list[dict[str, Any]] = seccomp.get("syscalls") or []
    for at, entry in enumerate(syscalls):
        where = f"syscalls[{at}]"
        word = action_word(entry["action"], entry.get("errnoRet"), f"{where}.action", f"{where}.errnoRet")
        args: list[dict[str, Any]] = entry.get("args") or []
        conditions = [_condition(arg, f"{where}.args[{i}]") for i, arg in enumerate(args)]
        alternatives: list[tuple[Condition, ...]] = [tuple(sorted(conditions, key=lambda condition: condition[0]))]
        if len({condition[0] for condition in conditions}) < len(conditions):
            alternatives = [(condition,) for condition in conditions]
        found.append((entry["names"], word, alternatives))
    return found


def _condition(arg: Mapping[str, Any], where: str) -> Condition:
    index, operator = arg["index"], arg["op"]
    if not 0 <= index < 6:
        raise InvalidConfig(f"{PATH}.{where}.index: {index}: a system call has six arguments, 0 to 5")
    if operator not in names.OPERATORS:
        raise InvalidConfig(f'{PATH}.{where}.op: "{operator}": not one of {", ".join(names.OPERATORS)}')
    value, two = arg.get("value", 0), arg.get("valueTwo") or 0
    if operator == "SCMP_CMP_MASKED_EQ":
        return index, "==", value, two & value
    return index, names.OPERATORS[operator], None, value


def entrances(arch: Arch, numbers: dict[str, int]) -> dict[str, list[Entrance]]:
    """{call: where it enters the kernel}: its number, and one that it shares with others under a condition."""
    found: dict[str, list[Entrance]] = {call: [(number, None)] for call, number in numbers.items()}
    if arch.muxed:
        for shared, calls in (("socketcall", arches.SOCKETCALL), ("ipc", arches.IPC)):
            if shared in numbers:
                for call, first in calls.items():
                    found.setdefault(call, []).append((numbers[shared], (0, "==", None, first)))
    return found


def verdicts(arch: Arch, known: dict[str, list[Entrance]], listed: list[Entry], default: int) -> dict[int, Verdict]:
    """{number: verdict} of the calls for which the profile says something other than the default."""
    fixed: dict[int, int] = {}
    conditional: dict[int, list[tuple[Order, Rule]]] = {}
    for calls, word, alternatives in listed:
        if word == default:
            continue
        for call in calls:
            for number, entrance in known.get(call, ()):
                for conditions in alternatives:
                    if entrance:
                        conditions = _override(conditions, entrance)
                    tests = _tests(arch, conditions)
                    if tests:
                        conditional.setdefault(number, []).append((_order(arch, conditions), (tests, word)))
                    else:
                        fixed.setdefault(number, word)
    found: dict[int, Verdict] = {
        number: _first(rules, known, number) for number, rules in conditional.items() if number not in fixed
    }
    found.update(fixed)
    return found


def _override(conditions: tuple[Condition, ...], entrance: Condition) -> tuple[Condition, ...]:
    return (entrance, *(condition for condition in conditions if condition[0] != entrance[0]))


def _tests(arch: Arch, conditions: tuple[Condition, ...]) -> tuple[Test, ...]:
    """Conditions as comparisons of 32-bit words; one that always holds is left out."""
    tests: list[Test] = []
    for index, comparison, mask, value in conditions:
        low, high = kernel.DATA_ARGS + 8 * index, kernel.DATA_ARGS + 8 * index + 4
        if not arch.little:
            low, high = high, low
        words: list[Word] = []
        if arch.bits == 64:
            words.append((high, _LOW if mask is None else mask >> 32, value >> 32))
        words.append((low, _LOW if mask is None else mask & _LOW, value & _LOW))
        words = [word for word in words if word[1]]
        if words:
            tests.append((comparison, tuple(words)))
    return tuple(tests)


def _order(arch: Arch, conditions: tuple[Condition, ...]) -> Order:
    """What libseccomp sorts by: it compares high and low words one after the other, the greatest comes first.

    The end is greater than every word: a rule comes before those that add conditions to it.
    """
    key: list[tuple[int, int, int]] = []
    for index, comparison, mask, value in conditions:
        if mask is not None and not mask & ((1 << arch.bits) - 1):
            continue  # always holds
        sign = -1 if comparison in ("<", "<=") else 1
        if arch.bits == 64:
            key.append((2 * index + 1, _PRECEDENCE[comparison], sign * (value >> 32)))
        key.append((2 * index, _PRECEDENCE[comparison], sign * (value & _LOW)))
    return (*key, (2 * 6, 0, 0))


def _first(rules: list[tuple[Order, Rule]], known: dict[str, list[Entrance]], number: int) -> tuple[Rule, ...]:
    """Rules in the order in which they decide; those that never do, because a wider one comes first, are left out.

    InvalidConfig if two with the same tests disagree.
    """
    said: dict[tuple[Test, ...], int] = {}
    for _, (tests, word) in sorted(rules, key=lambda rule: rule[0], reverse=True):
        if len(tests) > 1 and any(set(wider) < set(tests) for wider in said):
            continue
        if said.setdefault(tests, word) != word:
            call = next(call for call, found in known.items() if (number, None) in found)
            raise InvalidConfig(f"{PATH}.syscalls: {call}: two rules with the same conditions have different actions")
    return tuple(said.items())


def last_number(arch: Arch, known: dict[str, list[Entrance]], listed: list[Entry]) -> int:
    """The highest number that the profile names, -1 if it names none."""
    end = arches.ARM_PRIVATE if arch.name == "ARM" else 1 << 32
    last = -1
    for calls, _, _ in listed:
        for call in calls:
            for number, _ in known.get(call, ()):
                if last < number < end:
                    last = number
    return last


def _ranges(arch: Arch, meaning: Meaning) -> Ranges:
    """Verdicts of all numbers of `arch`, x32's among those of X86_64.

    -1 is how a tracer skips a call: it gets the default action. X86_64 without
    X32 kills x32's numbers like those of another architecture.
    """
    end = _LOW  # -1
    newer = meaning.newer(arch)
    if newer != meaning.default and arch.table in ("s390", "s390x"):
        # number 0 means "in a register", and stays 0 for a number that the kernel doesn't know
        meaning.said[arch.name].setdefault(0, newer)
    found: Ranges = []
    if arch.name == "X86_64":
        _fill(found, meaning, arch, (0, arches.X32_BIT), newer)
        x32 = [other for other in meaning.arches if other.name == "X32"]
        if x32:
            _fill(found, meaning, x32[0], (arches.X32_BIT, end), meaning.newer(x32[0]))
        else:
            found.append((arches.X32_BIT, kernel.RET_KILL_THREAD))
    elif arch.name == "ARM":
        _fill(found, meaning, arch, (0, arches.ARM_PRIVATE), newer)
        _fill(found, meaning, arch, (arches.ARM_PRIVATE, end), meaning.default)
    else:
        _fill(found, meaning, arch, (0, end), newer)
    found.append((end, meaning.default))
    return found


def _fill(found: Ranges, meaning: Meaning, arch: Arch, bounds: tuple[int, int], newer: int) -> None:
    """Append the ranges of the numbers in `bounds`: the default between the verdicts, `newer` above the last number."""
    verdicts, last = meaning.said[arch.name], meaning.last[arch.name]
    at, end = bounds
    for number in sorted(verdicts):
        if at <= number < end:
            if at < number:
                found.append((at, meaning.default))
            found.append((number, verdicts[number]))
            at = number + 1
    if at <= last < end:
        found.append((at, meaning.default))
        at = last + 1
    if at < end:
        found.append((at, newer))


def flags(seccomp: Mapping[str, Any], notify: bool) -> int:
    """The flags for seccomp(2); SPEC_ALLOW if the profile has no `flags` (as runc and crun do).

    Flags that this kernel lacks are left out with a warning.
    """
    listed = seccomp.get("flags")
    if listed is None:
        listed = ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    bits = 0
    for at, name in enumerate(listed):
        if name not in names.FLAGS:
            raise InvalidConfig(f'{PATH}.flags[{at}]: "{name}": not one of {", ".join(names.FLAGS)}')
        bits |= names.FLAGS[name]
    if not notify:
        bits &= ~kernel.FILTER_FLAG_WAIT_KILLABLE_RECV  # says how the agent is waited for; EINVAL without one
    elif bits & kernel.FILTER_FLAG_TSYNC:
        bits |= kernel.FILTER_FLAG_TSYNC_ESRCH  # or the result could be a descriptor as well as a thread's id
    return bits


def _unknown(listed: list[Entry], known: dict[str, dict[str, list[Entrance]]], fail: bool) -> None:
    """Calls that no architecture of the filter has are skipped; those that none at all has are an error if asked."""
    if not (fail or log.enabled(log.DEBUG)):
        return
    missing = {call for calls, _, _ in listed for call in calls}
    for calls in known.values():
        missing.difference_update(calls)
    for call in sorted(missing):
        if fail and not any(call in arches.numbers(table) for table in arches.TABLES):
            raise InvalidConfig(f'{PATH}.syscalls: "{call}": no architecture has this call ({FAIL_UNKNOWN})')
        log.debug(f'seccomp: no system call "{call}" on {", ".join(known)}, skipped')

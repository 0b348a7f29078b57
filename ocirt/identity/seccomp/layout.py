"""From verdicts to a program: a binary tree over the numbers, then tests of the arguments.

A verdict is a SECCOMP_RET_* word, or a tuple of rules for the arguments: a
rule is (tests, word) and applies if all its tests hold; the first rule that
applies decides. A test compares one argument:

    (comparison, words)
    comparison  "==", "!=", ">", ">=", "<", "<="
    words       ((offset, mask, value), …): the argument's high word, if it has one, and its low word.
                Offsets are those of struct seccomp_data. Masks are for "==" and "!=".
"""

from __future__ import annotations

from ocirt.identity.seccomp.assemble import Assembler
from ocirt.linux.seccomp import DATA_ARCH, DATA_NR, JEQ, JGE, JGT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Word = tuple[int, int, int]
    Test = tuple[str, tuple[Word, ...]]
    Rule = tuple[tuple[Test, ...], int]
    Verdict = int | tuple[Rule, ...]
    #: (first number, verdict) in ascending order from 0 on
    Ranges = list[tuple[int, Verdict]]
    #: (offset, mask) of what the accumulator holds, None if that isn't known
    Loaded = tuple[int, int] | None
    #: What comes next, as a label that depends on what is loaded on arrival
    Then = Callable[[Loaded], int]
    #: (first number, verdict, the one number that differs or -1, its verdict)
    Cell = tuple[int, Verdict, int, Verdict]

_ALL = 0xFFFFFFFF
#: After so many rules of one call what is loaded is forgotten, which bounds the recursion.
_FORGET = 32


def program(arches: list[tuple[int, Ranges]], default: int, bad_arch: int) -> bytes:
    """The filter of [(audit token, verdicts by number)].

    `default` is what a call gets when none of its rules applies, `bad_arch`
    what calls of other architectures get.
    """
    asm = Assembler()
    sections = [(token, _section(asm, ranges, default)) for token, ranges in reversed(arches)]
    start = asm.ret(bad_arch)
    for token, label in sections:
        start = asm.jump(JEQ, token, label, start)
    return asm.program(asm.load(DATA_ARCH, _ALL, start))


def _section(asm: Assembler, ranges: Ranges, default: int) -> int:
    """The part for one architecture: load the number, search it, judge the arguments."""
    cells = _cells(ranges)
    judged: dict[Verdict, int] = {}

    def leaf(verdict: Verdict) -> int:
        if isinstance(verdict, int):
            return asm.ret(verdict)
        if verdict not in judged:
            judged[verdict] = _rules(asm, tuple(map(_by_word, verdict)), lambda _: asm.ret(default))(None)
        return judged[verdict]

    def tree(low: int, high: int) -> int:
        _, verdict, number, other = cells[low]
        if high - low > 1:
            middle = (low + high) // 2
            right = tree(middle, high)
            return asm.jump(JGE, cells[middle][0], right, tree(low, middle))
        if number < 0:
            return leaf(verdict)
        return asm.jump(JEQ, number, leaf(other), leaf(verdict))

    return asm.load(DATA_NR, _ALL, tree(0, len(cells)))


def _cells(ranges: Ranges) -> list[Cell]:
    """The leaves of the tree: a range with one verdict, or with one number in it that differs."""
    parts: Ranges = []
    for number, verdict in ranges:
        if parts and parts[-1][1] == verdict:
            continue
        parts.append((number, verdict))
    cells: list[Cell] = []
    at = 0
    while at < len(parts):
        start, verdict = parts[at]
        odd, other = -1, verdict
        while at + 2 < len(parts) and parts[at + 2] == (parts[at + 1][0] + 1, verdict):
            if odd >= 0:
                cells.append((start, verdict, odd, other))
                start = parts[at + 1][0]
            odd, other = parts[at + 1]
            at += 2
        cells.append((start, verdict, odd, other))
        at += 1
    return cells


def _by_word(rule: Rule) -> Rule:
    """The same rule with "==" taken apart into words: rules then share the test of the high one."""
    tests: list[Test] = []
    for comparison, words in rule[0]:
        tests += [("==", (word,)) for word in words] if comparison == "==" else [(comparison, words)]
    return tuple(tests), rule[1]


def _rules(asm: Assembler, rules: tuple[Rule, ...], otherwise: Then) -> Then:
    """The first rule that applies, else `otherwise`. Neighbours that begin with the same test share it."""
    groups: list[tuple[Rule, ...]] = []
    for rule in rules:
        if groups and groups[-1][0][0][:1] == rule[0][:1]:
            groups[-1] += (rule,)
        else:
            groups.append((rule,))
    then = otherwise
    for count, group in enumerate(reversed(groups), 1):
        then = _group(asm, group, then)
        if count % _FORGET == 0:
            then = _fixed(then(None))
    return then


def _group(asm: Assembler, group: tuple[Rule, ...], otherwise: Then) -> Then:
    tests, word = group[0]
    if not tests:
        return lambda _: asm.ret(word)
    rest = tuple((tests[1:], word) for tests, word in group)
    return _test(asm, tests[0], _rules(asm, rest, otherwise), otherwise)


def _test(asm: Assembler, test: Test, yes: Then, no: Then) -> Then:
    """Go on at `yes` if the test holds, else at `no`."""
    comparison, words = test
    if comparison in ("!=", "<", "<="):
        yes, no = no, yes
    if comparison in ("==", "!="):
        for word in reversed(words):
            yes = _compare(asm, JEQ, word, yes, no)
        return yes
    low = _compare(asm, JGT if comparison in (">", "<=") else JGE, words[-1], yes, no)
    if len(words) == 1:
        return low
    return _compare(asm, JGT, words[0], yes, _compare(asm, JEQ, words[0], low, no))


def _compare(asm: Assembler, code: int, word: Word, yes: Then, no: Then) -> Then:
    offset, mask, value = word
    here = (offset, mask)
    made: dict[bool, int] = {}

    def then(loaded: Loaded) -> int:
        present = loaded == here
        if present not in made:
            false = no(here)
            label = asm.jump(code, value, yes(here), false)
            made[present] = label if present else asm.load(offset, mask, label)
        return made[present]

    return then


def _fixed(label: int) -> Then:
    return lambda _: label

"""What a profile means, said once more and directly: evaluated for one call, nothing compiled."""

from __future__ import annotations

import functools

from ocirt.identity.seccomp import arches, names
from ocirt.linux import seccomp as kernel
from tests.unit.seccomp_oracle import word

COMPARE = {
    "SCMP_CMP_NE": lambda value, want, _: value != want,
    "SCMP_CMP_LT": lambda value, want, _: value < want,
    "SCMP_CMP_LE": lambda value, want, _: value <= want,
    "SCMP_CMP_EQ": lambda value, want, _: value == want,
    "SCMP_CMP_GE": lambda value, want, _: value >= want,
    "SCMP_CMP_GT": lambda value, want, _: value > want,
    "SCMP_CMP_MASKED_EQ": lambda value, mask, want: value & mask == want & mask,
}
numbers_of = functools.cache(arches.numbers)
#: Higher decides first.
PRECEDENCE = {"GT": 1, "GE": 1, "LT": 2, "LE": 2, "NE": 3, "EQ": 3, "MASKED_EQ": 3}
AFTER_ALL = 99


def holds(arg: dict, args: list[int], bits: int) -> bool:
    """Does one condition hold?"""
    cut = (1 << bits) - 1
    return COMPARE[arg["op"]](args[arg["index"]] & cut, arg["value"] & cut, arg.get("valueTwo", 0) & cut)


def rank(group: list[dict], bits: int) -> list[tuple[int, int, int]]:
    """Of the rules that apply the one with the greatest rank decides."""
    ranks = []
    for arg in sorted(group, key=lambda arg: arg["index"]):
        if always([arg], bits):
            continue
        operator = arg["op"].removeprefix("SCMP_CMP_")
        masked = operator == "MASKED_EQ"
        value = arg.get("valueTwo", 0) & arg["value"] if masked else arg["value"]
        sign = -1 if operator in ("LT", "LE") else 1
        if bits == 64:
            ranks.append((2 * arg["index"] + 1, PRECEDENCE[operator], sign * (value >> 32)))
        ranks.append((2 * arg["index"], PRECEDENCE[operator], sign * (value & 0xFFFFFFFF)))
    return [*ranks, (AFTER_ALL, 0, 0)]


def always(group: list[dict], bits: int) -> bool:
    """No condition at all, or only masks of nothing."""
    cut = (1 << bits) - 1
    return all(arg["op"] == "SCMP_CMP_MASKED_EQ" and not arg["value"] & cut for arg in group)


def groups(arch: arches.Arch, profile: dict, number: int) -> list[tuple[list[dict], int]]:
    """(conditions, word) of every rule about the number, in the profile's order."""
    numbers = numbers_of(arch.table)
    default = word(profile["defaultAction"], profile.get("defaultErrnoRet"))
    found = []
    for entry in profile["syscalls"]:
        action = word(entry["action"], entry.get("errnoRet"))
        if action == default:
            continue
        args = entry.get("args") or []
        repeated = len({arg["index"] for arg in args}) < len(args)
        alternatives = [[arg] for arg in args] if repeated else [args]
        for call in entry["names"]:
            if numbers.get(call) == number:
                found += [(group, action) for group in alternatives]
            for shared, calls in (("socketcall", arches.SOCKETCALL), ("ipc", arches.IPC)):
                if arch.muxed and call in calls and numbers.get(shared) == number:
                    first = {"index": 0, "op": "SCMP_CMP_EQ", "value": calls[call]}
                    found += [([first, *(a for a in group if a["index"])], action) for group in alternatives]
    return found


def expected(profile: dict, arch: arches.Arch, number: int, args: list[int]) -> int:
    """The word that the filter has to return for a call of an architecture in the profile."""
    if newer(profile, arch, number):
        return kernel.RET_ERRNO | arch.enosys
    rules = groups(arch, profile, number)
    for group, action in rules:
        if always(group, arch.bits):
            return action
    applying = [
        (rank(group, arch.bits), action) for group, action in rules if all(holds(a, args, arch.bits) for a in group)
    ]
    if applying:
        return max(applying, key=lambda rule: rule[0])[1]
    return word(profile["defaultAction"], profile.get("defaultErrnoRet"))


def newer(profile: dict, arch: arches.Arch, number: int) -> bool:
    """Is the call one that the profile can't know, so that it gets ENOSYS?"""
    if profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"):
        return False
    end = {"ARM": arches.ARM_PRIVATE, "X86_64": arches.X32_BIT}.get(arch.name, 0xFFFFFFFF)
    numbers = numbers_of(arch.table)
    named = {call for entry in profile["syscalls"] for call in entry["names"]}
    if arch.muxed:
        named |= {"socketcall"} if named & set(arches.SOCKETCALL) else set()
        named |= {"ipc"} if named & set(arches.IPC) else set()
    known = [numbers[call] for call in named if call in numbers]
    last = max((known_ for known_ in known if known_ < end), default=end)
    return last < number < end or (arch.name in ("S390", "S390X") and number == 0 and bool(known))


def contradicts(profile: dict, arch: arches.Arch) -> bool:
    """Two rules with the same conditions and different actions, both of which could decide."""
    for number in numbers_of(arch.table).values():
        rules = groups(arch, profile, number)
        if any(always(group, arch.bits) for group, _ in rules):
            continue
        said: dict[frozenset[tuple], set[int]] = {}
        cut = (1 << arch.bits) - 1
        for group, action in rules:
            same = set()
            for arg in sorted(group, key=lambda a: a["index"]):
                value, operator = arg["value"] & cut, names.OPERATORS[arg["op"]]
                masked = arg["op"] == "SCMP_CMP_MASKED_EQ"
                mask = value if masked else cut
                if mask:
                    want = arg.get("valueTwo", 0) & mask if masked else value
                    same.add((arg["index"], operator, mask, want))
            said.setdefault(frozenset(same), set()).add(action)
        for same, actions in said.items():
            # where a wider rule applies, too, it decides
            if len(actions) > 1 and not any(wider < same for wider in said):
                return True
    return False

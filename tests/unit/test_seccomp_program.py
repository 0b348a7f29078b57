"""Programs say what profiles mean, and what libseccomp's programs say."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ocirt.errors import InvalidConfig
from ocirt.identity.seccomp import arches, names
from ocirt.identity.seccomp.compile import compile_filter
from ocirt.identity.seccomp.filter import verdict
from ocirt.linux import seccomp as kernel
from tests.unit.seccomp_model import contradicts, expected, newer, numbers_of
from tests.unit.seccomp_oracle import Libseccomp, Refused, word
from tests.unit.seccomp_profiles import profile as engine_profile

MACHINE = "x86_64"
X86_64 = "SCMP_ARCH_X86_64"
CALLS = (  # noqa: SIM905
    "read write socket bind accept accept4 connect shmget semop msgctl clone personality ioctl _llseek mmap2"
    " openat execve set_tls no_such_call statx"
).split()
#: Values around the borders of words and halves.
VALUES = sorted(
    {0, 1, 2, 3, 9, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 32) + 9, (1 << 64) - 1, 1 << 63}
    | {0x7E020000, (5 << 32) + 3, (5 << 32) + 2, 10, 8, 0x7E01FFFF, 16, 17}
)
ACTIONS = [action for action in names.ACTIONS if action != "SCMP_ACT_NOTIFY"]
LITTLE_ENDIAN = ("X86", "X32", "ARM", "AARCH64", "RISCV64", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC64LE")
ORDERINGS = ("SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_GT", "SCMP_CMP_GE")
EQUALITIES = ("SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ")
WORDS = (0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
SLOW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

values = st.sampled_from(VALUES)
arguments = st.fixed_dictionaries(
    {
        "index": st.integers(0, 5),
        "op": st.sampled_from(sorted(names.OPERATORS)),
        "value": values,
        "valueTwo": values,
    }
)


@st.composite
def entries(draw: st.DrawFn) -> dict:
    """One entry of `syscalls`."""
    entry = {
        "names": draw(st.lists(st.sampled_from(CALLS), min_size=1, max_size=4)),
        "action": draw(st.sampled_from(ACTIONS)),
    }
    args = draw(st.lists(arguments, max_size=3))
    if args:
        entry["args"] = args
    if entry["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        entry["errnoRet"] = draw(st.sampled_from([1, 2, 22, 38]))
    return entry


@st.composite
def profiles(draw: st.DrawFn, others: tuple[str, ...] = tuple(arches.NAMES)) -> dict:
    """`linux.seccomp` for an x86_64 host."""
    return {
        "defaultAction": draw(st.sampled_from(ACTIONS)),
        "architectures": draw(st.lists(st.sampled_from(others), max_size=3, unique=True) if others else st.just([])),
        "syscalls": draw(st.lists(entries(), max_size=8)),
    }


@pytest.fixture(scope="module")
def libseccomp() -> Libseccomp:
    return Libseccomp()


def chosen(profile: dict) -> list[arches.Arch]:
    return [arches.get(name) for name in dict.fromkeys([X86_64, *profile.get("architectures", ())])]


def samples(profile: dict, numbers: list[int], count: int, seed: int) -> list[tuple[int, list[int]]]:
    """Calls to try: the numbers with arguments that are about to meet conditions."""
    random_ = random.Random(seed)
    wanted = [
        arg[key]
        for entry in profile["syscalls"]
        for arg in entry.get("args") or ()
        for key in ("value", "valueTwo")
        if key in arg
    ]
    pool = [*VALUES, *wanted, *(value ^ 1 << 32 for value in wanted), *((value + 1) % (1 << 64) for value in wanted)]
    tried = []
    for number in numbers:
        for _ in range(count):
            args = [random_.choice(pool) for _ in range(6)]
            if random_.random() < 0.3:
                args[0] = random_.randint(1, 24)  # the calls of socketcall and ipc
            tried.append((number, args))
    return tried


def interesting(profile: dict, arch: arches.Arch) -> list[int]:
    """Numbers that the profile is about, the shared entrances, and neighbours."""
    numbers = numbers_of(arch.table)
    calls = {call for entry in profile["syscalls"] for call in entry["names"]} | {"socketcall", "ipc", "getpid"}
    found = {numbers[call] for call in calls if call in numbers}
    bit = arches.X32_BIT if arch.name == "X32" else 0
    return sorted(found | {number + 1 for number in found} | {max(bit, number - 1) for number in found})


def of(arch: arches.Arch, number: int, profile: dict) -> bool:
    """Is the number one of this architecture? X86_64 and X32 share theirs."""
    if arch.name == "X32":
        return arches.X32_BIT <= number < 0xFFFFFFFF
    if arch.name == "X86_64" and "SCMP_ARCH_X32" in profile["architectures"]:
        return number < arches.X32_BIT or number == 0xFFFFFFFF
    return True


def as_seen(arch: arches.Arch, args: list[int]) -> list[int]:
    """Arguments as a kernel of that architecture would lay them out, read by this one."""
    return args if arch.little else [arg >> 32 | (arg & 0xFFFFFFFF) << 32 for arg in args]


@SLOW
@given(profiles(), st.integers(0, 1 << 30))
def test_the_program_says_what_the_profile_means(profile: dict, seed: int) -> None:
    archs = chosen(profile)
    if any(contradicts(profile, arch) for arch in archs):
        with pytest.raises(InvalidConfig, match="same conditions"):
            compile_filter(profile, machine=MACHINE)
        return
    program = compile_filter(profile, machine=MACHINE).program
    for arch in archs:
        for number, args in samples(profile, interesting(profile, arch), 12, seed):
            assert verdict(program, arch.token, number, as_seen(arch, args)) == expected(profile, arch, number, args), (
                arch.name,
                number,
                args,
            )


def comparable(profile: dict) -> bool:
    """Is this a profile on which libseccomp does what it documents?

    Its trees go wrong where two order comparisons of one argument meet, and where
    a rule with several conditions of which one isn't an equality meets another
    rule (docs/seccomp.md).
    """
    orderings: Counter[tuple[str, int]] = Counter()
    rules: Counter[str] = Counter()
    lonely = set()
    for entry in profile["syscalls"]:
        args = entry.get("args") or []
        for call in entry["names"]:
            shared = shared_entrance(call)
            rules[shared] += 1
            orderings.update((shared, arg["index"]) for arg in args if arg["op"] in ORDERINGS)
            # socketcall and ipc add a condition of their own
            several = len(args) + (shared != call) > 1
            if several and any(arg["op"] not in EQUALITIES for arg in args):
                lonely.add(shared)
    return max(orderings.values(), default=0) < 2 and all(rules[call] == 1 for call in lonely)


def shared_entrance(call: str) -> str:
    """The call that a call may go through."""
    return "socketcall" if call in arches.SOCKETCALL else "ipc" if call in arches.IPC else call


def one_action_a_call(profile: dict) -> None:
    """Give every rule with conditions about a call the same action: then their order doesn't matter."""
    actions: dict[str, tuple[str, int | None]] = {}
    apart = []
    for entry in profile["syscalls"]:
        for call in entry["names"]:
            shared = shared_entrance(call)
            action, number = actions.setdefault(shared, (entry["action"], entry.get("errnoRet")))
            new = {**entry, "names": [call], "action": action}
            new.pop("errnoRet", None)
            if number is not None:
                new["errnoRet"] = number
            apart.append(new)
    profile["syscalls"] = apart


@SLOW
@given(profiles(tuple("SCMP_ARCH_" + name for name in LITTLE_ENDIAN)), st.integers(0, 1 << 30))
def test_verdicts_are_those_of_libseccomp(libseccomp: Libseccomp, profile: dict, seed: int) -> None:
    one_action_a_call(profile)
    assume(comparable(profile))
    _compare(libseccomp, profile, seed, 12)


@SLOW
@given(profiles(()), st.integers(0, 1 << 30))
def test_rules_with_different_actions_decide_in_libseccomps_order(
    libseccomp: Libseccomp, profile: dict, seed: int
) -> None:
    for entry in profile["syscalls"]:
        for arg in entry.get("args", ()):
            arg["op"] = "SCMP_CMP_EQ"
    _compare(libseccomp, profile, seed, 12)


def _compare(libseccomp: Libseccomp, profile: dict, seed: int, count: int) -> None:
    try:
        theirs = libseccomp.program(profile)
    except Refused:
        assume(False)
    ours = compile_filter(profile, machine=MACHINE).program
    for arch in chosen(profile):
        numbers = [number for number in (*interesting(profile, arch), 0, *WORDS) if of(arch, number, profile)]
        for number, args in samples(profile, numbers, count, seed):
            got = verdict(ours, arch.token, number, args)
            want = verdict(theirs, arch.token, number, args)
            if newer(profile, arch, number):
                want = kernel.RET_ERRNO | arch.enosys
            assert got == want, (arch.name, number, [hex(a) for a in args], hex(got or 0), hex(want or 0))
    for token in (0xC00000B8, 0, 0x40000004):
        assert verdict(ours, token, 0, [0] * 6) == verdict(theirs, token, 0, [0] * 6)


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize(
    "capabilities", [None, [], ["CAP_SYS_ADMIN", "CAP_AUDIT_WRITE"]], ids=["default", "none", "admin"]
)
def test_default_profiles_of_engines(
    libseccomp: Libseccomp, engine: str, capabilities: list[str] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    profile = engine_profile(engine, tmp_path_factory.getbasetemp() / "debian", capabilities)
    theirs = libseccomp.program(profile)
    ours = compile_filter(profile, machine=MACHINE).program
    assert len(ours) < len(theirs) / 4
    for arch in chosen(profile):
        bit = arches.X32_BIT if arch.name == "X32" else 0
        numbers = [bit + number for number in range(600)]
        for number, args in samples(profile, numbers, 12, 1):
            want = kernel.RET_ERRNO | 38 if newer(profile, arch, number) else verdict(theirs, arch.token, number, args)
            assert verdict(ours, arch.token, number, args) == want, (arch.name, number, args)


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_calls_newer_than_the_profile_answer_enosys(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    profile = engine_profile(engine, tmp_path_factory.getbasetemp() / "debian")
    program = compile_filter(profile, machine=MACHINE).program
    named = {call for entry in profile["syscalls"] for call in entry["names"]}
    for arch in chosen(profile):
        bit = arches.X32_BIT if arch.name == "X32" else 0
        numbers = numbers_of(arch.table)
        last = max(numbers[call] for call in named & set(numbers))
        assert verdict(program, arch.token, last, [0] * 6) != kernel.RET_ERRNO | 38
        for number in (last + 1, last + 2, bit + 5000, bit + 0x3FFFFFFE):
            assert verdict(program, arch.token, number, [0] * 6) == kernel.RET_ERRNO | 38, (arch.name, number)


def rule(action: str, *calls: str, **more: object) -> dict:
    return {"names": list(calls), "action": action, **more}


def ask(profile: dict, arch: str, number: int, *args: int, machine: str = MACHINE) -> int | None:
    found = arches.get("SCMP_ARCH_" + arch)
    assert found
    return verdict(compile_filter(profile, machine=machine).program, found.token, number, args)


@pytest.mark.parametrize("action", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"])
def test_permissive_defaults_have_no_enosys(action: str) -> None:
    profile = {"defaultAction": action, "syscalls": [rule("SCMP_ACT_KILL", "read")]}
    assert ask(profile, "X86_64", 470) == word(action, None)


@pytest.mark.parametrize("action", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_TRAP", "SCMP_ACT_KILL_PROCESS"])
def test_other_defaults_have_it_above_the_highest_call_named(action: str) -> None:
    profile = {"defaultAction": action, "syscalls": [rule("SCMP_ACT_ALLOW", "read", "openat")]}
    assert ask(profile, "X86_64", 257) == kernel.RET_ALLOW
    assert ask(profile, "X86_64", 200) == word(action, None)
    assert ask(profile, "X86_64", 258) == kernel.RET_ERRNO | 38
    assert ask(profile, "X86_64", 0x40000000) == kernel.RET_KILL_THREAD
    assert ask(profile, "X86_64", 0xFFFFFFFF) == word(action, None)


def test_a_call_with_the_default_action_counts_as_named() -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ERRNO", "statx")]}
    assert ask(profile, "X86_64", 331) == kernel.RET_ERRNO | 1
    assert ask(profile, "X86_64", 333) == kernel.RET_ERRNO | 38


def test_a_profile_that_names_no_call_denies_all_alike() -> None:
    assert ask({"defaultAction": "SCMP_ACT_ERRNO"}, "X86_64", 400) == kernel.RET_ERRNO | 1


@pytest.mark.parametrize(
    ("machine", "arch", "number"), [("mips64", "MIPSEL64", 89), ("parisc64", "PARISC64", 251), ("s390x", "S390X", 38)]
)
def test_enosys_is_the_architectures_own(machine: str, arch: str, number: int) -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ALLOW", "read")]}
    assert ask(profile, arch, 6000, machine=machine) == kernel.RET_ERRNO | number


def test_s390_number_zero_is_a_call_unknown_to_the_kernel() -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ALLOW", "read")]}
    assert ask(profile, "S390X", 0, machine="s390x") == kernel.RET_ERRNO | 38


def test_arms_private_calls_are_no_measure_of_a_profiles_age() -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ALLOW", "read", "set_tls")]}
    assert ask(profile, "ARM", 0xF0005, machine="armv7l") == kernel.RET_ALLOW
    assert ask(profile, "ARM", 0xF0002, machine="armv7l") == kernel.RET_ERRNO | 1
    assert ask(profile, "ARM", 400, machine="armv7l") == kernel.RET_ERRNO | 38


def test_the_first_unconditional_rule_decides() -> None:
    condition = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 1}]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            rule("SCMP_ACT_KILL", "read", args=condition),
            rule("SCMP_ACT_LOG", "read"),
            rule("SCMP_ACT_ALLOW", "read"),
        ],
    }
    assert ask(profile, "X86_64", 0, 1) == ask(profile, "X86_64", 0, 2) == kernel.RET_LOG


def test_big_endian_halves() -> None:
    args = [{"index": 1, "op": "SCMP_CMP_EQ", "value": (7 << 32) + 9}]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ALLOW", "read", args=args)]}
    # seccomp_data is in the host's order, so here the halves have to be exchanged by hand
    assert ask(profile, "S390X", 3, 0, (9 << 32) + 7, machine="s390x") == kernel.RET_ALLOW
    assert ask(profile, "S390X", 3, 0, (7 << 32) + 9, machine="s390x") == kernel.RET_ERRNO | 1


def test_many_rules_for_one_call() -> None:
    rules = [
        rule("SCMP_ACT_ALLOW", "ioctl", args=[{"index": 1, "op": "SCMP_CMP_EQ", "value": value << 33}])
        for value in range(1000)
    ]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}
    assert ask(profile, "X86_64", 16, 0, 999 << 33) == kernel.RET_ALLOW
    assert ask(profile, "X86_64", 16, 0, 1000 << 33) == kernel.RET_ERRNO | 1


def test_too_many_rules_are_refused() -> None:
    rules = [
        rule("SCMP_ACT_ALLOW", "ioctl", args=[{"index": 1, "op": "SCMP_CMP_EQ", "value": value << 32}])
        for value in range(3000)
    ]
    with pytest.raises(InvalidConfig, match="instructions, the kernel takes 4096"):
        compile_filter({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}, machine=MACHINE)

"""What isn't a profile is refused with where it is wrong; flags."""

from __future__ import annotations

import pytest

from ocirt import log
from ocirt.errors import InvalidConfig, Unsupported
from ocirt.identity.seccomp import cache, names
from ocirt.identity.seccomp.compile import compile_filter
from ocirt.identity.seccomp.filter import Filter, allows, verdict
from ocirt.linux import seccomp as kernel

ALLOW = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
TSYNC, LOG, SPEC_ALLOW, LISTENER, ESRCH, KILLABLE = 1, 2, 4, 8, 16, 32


def condition(**change: object) -> list[dict]:
    return [{"index": 0, "op": "SCMP_CMP_EQ", "value": 1, **change}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaultAction": "ALLOW"}, r'linux\.seccomp\.defaultAction: "ALLOW": not one of SCMP_ACT_KILL, '),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1},
            r"linux\.seccomp\.defaultErrnoRet: 1: SCMP_ACT_ALLOW takes no errno, only SCMP_ACT_ERRNO and",
        ),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}, r"defaultErrnoRet: 65536: .* 0 to 65535"),
        ({"architectures": ["SCMP_ARCH_X86", "amd64"]}, r'linux\.seccomp\.architectures\[1\]: "amd64": not one of'),
        ({"flags": ["LOG"]}, r'linux\.seccomp\.flags\[0\]: "LOG": not one of SECCOMP_FILTER_FLAG_TSYNC'),
        (
            {"syscalls": [ALLOW, {**ALLOW, "action": "KILL"}]},
            r'linux\.seccomp\.syscalls\[1\]\.action: "KILL": not one of',
        ),
        (
            {"syscalls": [{**ALLOW, "errnoRet": 38}]},
            r"linux\.seccomp\.syscalls\[0\]\.errnoRet: 38: SCMP_ACT_ALLOW takes no errno",
        ),
        (
            {"syscalls": [{**ALLOW, "args": condition(index=6)}]},
            r"linux\.seccomp\.syscalls\[0\]\.args\[0\]\.index: 6: a system call has six arguments, 0 to 5",
        ),
        (
            {"syscalls": [{**ALLOW, "args": [*condition(), *condition(op="EQ", index=1)]}]},
            r'linux\.seccomp\.syscalls\[0\]\.args\[1\]\.op: "EQ": not one of SCMP_CMP_NE',
        ),
        (
            {
                "syscalls": [
                    {**ALLOW, "args": condition()},
                    {"names": ["read"], "action": "SCMP_ACT_LOG", "args": condition()},
                ]
            },
            r"linux\.seccomp\.syscalls: read: two rules with the same conditions have different actions",
        ),
    ],
)
def test_what_is_wrong_is_said(change: dict, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        compile_filter({"defaultAction": "SCMP_ACT_ERRNO", **change}, machine="x86_64")


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="system calls of pdp11 are not known"):
        compile_filter({"defaultAction": "SCMP_ACT_ERRNO"}, machine="pdp11")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "s390x", "ppc64le", "loongarch64"])
def test_absent_and_null_lists_are_empty(machine: str) -> None:
    short = compile_filter({"defaultAction": "SCMP_ACT_ERRNO"}, machine=machine)
    empty = {"architectures": [], "syscalls": [], "flags": None}
    null = {"architectures": None, "syscalls": None}
    assert compile_filter({"defaultAction": "SCMP_ACT_ERRNO", **empty}, machine=machine).program == short.program
    assert compile_filter({"defaultAction": "SCMP_ACT_ERRNO", **null}, machine=machine).program == short.program
    args = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{**ALLOW, "args": None}]}
    assert compile_filter(args, machine=machine).program != short.program


def test_a_call_unknown_to_the_filter_is_a_line_of_the_debug_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log._target, "level", log.DEBUG)
    compile_filter({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{**ALLOW, "names": ["raed"]}]}, machine="x86_64")
    assert 'seccomp: no system call "raed" on X86_64, skipped' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("listed", "notify", "bits"),
    [
        (None, False, SPEC_ALLOW),
        ([], False, 0),
        (["LOG"], False, LOG),
        (["TSYNC"], False, TSYNC),
        (["TSYNC", "LOG", "SPEC_ALLOW"], False, TSYNC | LOG | SPEC_ALLOW),
        (["WAIT_KILLABLE_RECV"], False, 0),
        (["WAIT_KILLABLE_RECV"], True, KILLABLE),
        (["TSYNC"], True, TSYNC | ESRCH),
    ],
)
def test_flags(listed: list[str] | None, notify: bool, bits: int) -> None:
    profile: dict = {"defaultAction": "SCMP_ACT_ALLOW"}
    if listed is not None:
        profile["flags"] = ["SECCOMP_FILTER_FLAG_" + name for name in listed]
    if notify:
        profile["syscalls"] = [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
    filter = compile_filter(profile)
    assert (filter.flags, filter.notify) == (bits, notify)


def kernel_with(known: int) -> object:
    """A kernel that has these flags, checked the way seccomp_set_mode_filter() of the kernel does."""

    def supports(flags: int) -> bool:
        if flags & ~known:
            return False
        if flags & TSYNC and flags & LISTENER and not flags & ESRCH:
            return False
        return not (flags & KILLABLE and not flags & LISTENER)

    return supports


@pytest.mark.parametrize(
    ("known", "wanted", "notify", "kept", "warned"),
    [
        (63, TSYNC | LOG | SPEC_ALLOW, False, TSYNC | LOG | SPEC_ALLOW, []),
        (TSYNC, TSYNC | LOG | SPEC_ALLOW, False, TSYNC, ["LOG", "SPEC_ALLOW"]),
        (63 - KILLABLE, KILLABLE | LOG, True, LOG, ["WAIT_KILLABLE_RECV"]),
        (63 - ESRCH, TSYNC | ESRCH | LOG, True, LOG, ["TSYNC"]),
        (63, TSYNC | ESRCH | KILLABLE, True, TSYNC | ESRCH | KILLABLE, []),
    ],
)
def test_flags_that_the_kernel_lacks_are_left_out(
    known: int,
    wanted: int,
    notify: bool,
    kept: int,
    warned: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kernel, "supports", kernel_with(known))
    filter = cache.usable(Filter(b"\6\0\0\0\0\0\0\0", wanted, notify, 0))
    assert filter.flags == kept
    assert capfd.readouterr().err.splitlines() == [
        f"warning: SECCOMP_FILTER_FLAG_{name}: the kernel doesn't know this seccomp flag, going on without it"
        for name in warned
    ]


def test_notifications_cannot_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "supports", kernel_with(7))
    with pytest.raises(Unsupported, match="no seccomp notifications"):
        cache.usable(Filter(b"\6\0\0\0\0\0\0\0", 0, notify=True, token=0))


def test_a_kernel_without_filters_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "supports", lambda flags: False)
    with pytest.raises(Unsupported, match="no system call filters"):
        cache.usable(Filter(b"\6\0\0\0\0\0\0\0", 4, notify=False, token=0))


def test_what_a_filter_allows() -> None:
    rules = [
        {"names": ["read", "execveat", "openat2"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": condition()},
        {"names": ["mount"], "action": "SCMP_ACT_LOG"},
    ]
    filter = compile_filter({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})
    assert all(allows(filter, call) for call in ("read", "execveat", "openat2", "mount"))
    assert not any(allows(filter, call) for call in ("write", "fcntl", "no_such_call"))


@pytest.mark.parametrize(
    "program",
    [
        b"\x07\0\0\0\0\0\0\0" + b"\6\0\0\0\0\0\xff\x7f",  # tax
        b"\x05\0\0\0\xff\0\0\0" + b"\6\0\0\0\0\0\xff\x7f",  # a jump beyond the end
        b"",
    ],
)
def test_what_a_foreign_program_says_may_be_unknown(program: bytes) -> None:
    assert verdict(program, 0, 0, None) is None
    assert not allows(Filter(program, 0, notify=False, token=0), "read")


def test_features_tell_what_is_implemented() -> None:
    assert set(names.supported_flags()) <= set(names.FLAGS)

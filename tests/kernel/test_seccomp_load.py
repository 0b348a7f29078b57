"""Filters in a real kernel: loaded in a child, which then makes the calls."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ocirt.identity import seccomp
from ocirt.identity.seccomp import arches
from ocirt.identity.seccomp.compile import compile_filter
from ocirt.linux import numbers, prctl
from ocirt.linux import seccomp as kernel
from tests.unit.seccomp_profiles import profile as engine_profile

LIBC = ctypes.CDLL(None, use_errno=True)
NATIVE = arches.native(numbers.MACHINE)
NUMBERS = arches.numbers(NATIVE.table) if NATIVE else {}
#: What a child needs to tell its story and to end.
PLUMBING = ["write", "exit_group", "exit", "munmap", "mmap", "brk", "futex", "close", "rt_sigreturn", "madvise"]


def call(name: str, *args: int) -> int:
    """syscall(2): the result, or minus errno."""
    return raw(NUMBERS[name], *args)


def raw(number: int, *args: int) -> int:
    converted = [ctypes.c_long(arg - (1 << 64) if arg >= 1 << 63 else arg) for arg in args]
    result = LIBC.syscall(ctypes.c_long(number), *converted)
    return -ctypes.get_errno() if result == -1 else result


def in_child(story: Callable[[], object]) -> tuple[str, int]:
    """What `story` gives, told by a forked child: (its repr, the child's wait status)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.write(writer, repr(story()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    return text, os.waitpid(pid, 0)[1]


def under(profile: dict, story: Callable[[], object]) -> tuple[str, int]:
    """Tell the story with the profile's filter loaded."""
    filter = compile_filter(profile)

    def confined() -> object:
        prctl.prctl(prctl.PR_SET_NO_NEW_PRIVS, 1)
        assert seccomp.load(filter) == -1
        return story()

    return in_child(confined)


def deny(action: str, *calls: str, **more: object) -> dict:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": list(calls), "action": action, **more}]}


@pytest.mark.parametrize(
    ("profile", "answer"),
    [
        (deny("SCMP_ACT_ERRNO", "getppid"), -errno.EPERM),
        (deny("SCMP_ACT_ERRNO", "getppid", errnoRet=95), -errno.EOPNOTSUPP),
        (deny("SCMP_ACT_ERRNO", "getppid", errnoRet=0), 0),
        (deny("SCMP_ACT_TRACE", "getppid"), -errno.ENOSYS),  # nobody traces
        (deny("SCMP_ACT_LOG", "getppid"), "parent"),
        (deny("SCMP_ACT_ERRNO", "getpgid"), "parent"),
    ],
)
def test_actions_that_answer(profile: dict, answer: int | str) -> None:
    text, status = under(profile, lambda: call("getppid"))
    assert (text, status) == (str(os.getpid() if answer == "parent" else answer), 0)


@pytest.mark.parametrize(
    ("action", "number"),
    [
        ("SCMP_ACT_KILL", signal.SIGSYS),
        ("SCMP_ACT_KILL_THREAD", signal.SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", signal.SIGSYS),
        ("SCMP_ACT_TRAP", signal.SIGSYS),
    ],
)
def test_actions_that_kill(action: str, number: int) -> None:
    text, status = under(deny(action, "getppid"), lambda: call("getppid"))
    assert text == ""
    assert os.WTERMSIG(status) == number


def test_a_trap_can_be_caught() -> None:
    def story() -> object:
        caught: list[int] = []
        signal.signal(signal.SIGSYS, lambda number, _: caught.append(number))
        call("getppid")
        return caught

    assert under(deny("SCMP_ACT_TRAP", "getppid"), story) == (f"[{int(signal.SIGSYS)}]", 0)


@pytest.mark.parametrize(
    ("operator", "value", "two", "denied", "passed"),
    [
        ("EQ", 1 << 40, 0, [1 << 40], [0, 1, (1 << 40) + 1]),
        ("NE", 1 << 40, 0, [0, 1, (1 << 40) + 1], [1 << 40]),
        ("LT", (1 << 40) + 5, 0, [0, 1 << 40, (1 << 40) + 4], [(1 << 40) + 5, 1 << 41, (1 << 64) - 1]),
        ("LE", (1 << 40) + 5, 0, [0, 1 << 40, (1 << 40) + 5], [(1 << 40) + 6, 1 << 41, (1 << 64) - 1]),
        ("GT", (1 << 40) + 5, 0, [(1 << 40) + 6, 1 << 41, (1 << 64) - 1], [0, 1 << 40, (1 << 40) + 5, 6]),
        ("GE", (1 << 40) + 5, 0, [(1 << 40) + 5, 1 << 41, (1 << 64) - 1], [0, 1 << 40, (1 << 40) + 4, 6]),
        ("MASKED_EQ", (3 << 40) | 3, 1 << 40, [1 << 40, (1 << 40) + 4, 5 << 40], [0, 3 << 40, (1 << 40) + 1]),
    ],
)
def test_operators_compare_64_bits(operator: str, value: int, two: int, denied: list[int], passed: list[int]) -> None:
    args = [{"index": 3, "op": "SCMP_CMP_" + operator, "value": value, "valueTwo": two}]
    profile = deny("SCMP_ACT_ERRNO", "getppid", args=args, errnoRet=95)
    text, _ = under(profile, lambda: [call("getppid", 0, 0, 0, arg) for arg in denied + passed])
    assert text == str([-95] * len(denied) + [os.getpid()] * len(passed))


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": [*PLUMBING, "openat2"], "action": "SCMP_ACT_ALLOW"}],
    }
    text, _ = under(
        profile, lambda: [call("getppid"), raw(5000), call("openat2", -100, 0, 0, 0), call("mount_setattr")]
    )
    assert text == str([-errno.EPERM, -errno.ENOSYS, -errno.EINVAL, -errno.ENOSYS])


@pytest.mark.skipif(numbers.MACHINE != "x86_64", reason="x32 is an architecture of x86_64 kernels")
def test_x32_is_another_architecture() -> None:
    _, status = under(deny("SCMP_ACT_ERRNO", "mkdir"), lambda: raw(arches.X32_BIT + 39))
    assert os.WTERMSIG(status) == signal.SIGSYS
    with_x32 = {**deny("SCMP_ACT_ERRNO", "getpid", errnoRet=95), "architectures": ["SCMP_ARCH_X32"]}
    assert under(with_x32, lambda: raw(arches.X32_BIT + 39)) == ("-95", 0)


@pytest.mark.skipif(numbers.MACHINE != "x86_64", reason="int 0x80 is x86's")
def test_a_program_of_another_architecture(tmp_path: Path) -> None:
    """A 64-bit program may make calls of the 32-bit table: they are judged by that table."""
    source = tmp_path / "call.c"
    source.write_text(
        "#include <stdio.h>\n"
        "static long call(long n, long a) { long r; __asm__ volatile"
        '("int $0x80" : "=a"(r) : "a"(n), "b"(a) : "memory"); return r; }\n'
        'int main(void) { printf("%ld %ld %ld", call(64, 0), call(24, 0), call(102, 1)); return 0; }\n'
    )
    subprocess.run(["gcc", "-o", str(tmp_path / "call"), str(source)], check=True, timeout=60)

    def run(profile: dict) -> tuple[str, int]:
        def story() -> object:
            done = subprocess.run([tmp_path / "call"], capture_output=True, text=True, check=False, timeout=10)
            return done.stdout, done.returncode

        text, _ = under(profile, story)
        told, code = eval(text)
        return str(told), int(code)

    # 64 is getppid, 24 getuid, 102 socketcall, of which 1 is socket
    if run({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"]})[1] == -signal.SIGSEGV:
        pytest.skip("the kernel runs no 32-bit calls (CONFIG_IA32_EMULATION)")
    profile = deny("SCMP_ACT_ERRNO", "getuid", "socket", errnoRet=95)
    told, code = run({**profile, "architectures": ["SCMP_ARCH_X86"]})
    assert (told.split()[1:], code) == (["-95", "-95"], 0)
    assert run(profile) == ("", -signal.SIGSYS)


def test_flags_reach_the_kernel() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]}
    assert under(profile, lambda: 7) == ("7", 0)
    assert kernel.supports(0)
    assert not kernel.supports(1 << 30)


def test_a_filter_needs_no_new_privs_or_its_capability() -> None:
    filter = compile_filter({"defaultAction": "SCMP_ACT_ALLOW"})

    def story() -> object:
        if os.geteuid() == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        return seccomp.load(filter)

    text, _ = in_child(story)
    assert re.search(r"seccomp\(SECCOMP_SET_MODE_FILTER, 0x4, \d+ instructions\): permission denied", text)


def test_loading_imports_and_opens_nothing() -> None:
    import sys

    filter = compile_filter({"defaultAction": "SCMP_ACT_ALLOW"})
    assert seccomp.load

    def story() -> object:
        prctl.prctl(prctl.PR_SET_NO_NEW_PRIVS, 1)
        events: list[str] = []
        sys.addaudithook(lambda event, _: events.append(event))
        sys.meta_path.clear()
        sys.path.clear()
        seccomp.load(filter)
        return [event for event in events if event in ("import", "open", "ctypes.dlopen", "exec", "compile")]

    assert in_child(story) == ("[]", 0)


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_default_profiles_of_engines_work(engine: str, tmp_path: Path) -> None:
    profile = engine_profile(engine, tmp_path / "debian")

    def story() -> object:
        done = subprocess.run(
            ["sh", "-c", "echo $(( $(ls /proc/self | wc -l) > 3 )); unshare -m true 2>/dev/null || echo denied"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        return done.stdout, call("bpf", 0, 0, 0), call("keyctl", 0, 0, 0), raw(5000), call("clone3", 0, 0)

    text, status = under(profile, story)
    assert status == 0
    told, bpf, keyctl, newer, clone3 = eval(text)
    assert told.split()[0] == "1"
    if engine == "docker":
        assert told.split()[1] == "denied"
        assert (bpf, keyctl) == (-errno.EPERM, -errno.EPERM)
        assert clone3 == -errno.ENOSYS
    else:
        assert bpf == -errno.EPERM
        assert keyctl != -errno.EPERM
    assert newer == -errno.ENOSYS

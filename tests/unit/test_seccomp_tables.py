"""The tables of system call numbers agree with libseccomp and with the host's headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ocirt.identity.seccomp import arches
from ocirt.linux import numbers as linux_numbers
from tests.unit.seccomp_oracle import Libseccomp

HEADERS = {"X86_64": "asm/unistd_64.h", "X86": "asm/unistd_32.h", "X32": "asm/unistd_x32.h"}


@pytest.fixture(scope="module")
def libseccomp() -> Libseccomp:
    return Libseccomp()


@pytest.mark.parametrize("name", arches.NAMES)
def test_numbers_are_those_of_libseccomp(libseccomp: Libseccomp, name: str) -> None:
    arch = arches.get(name)
    assert arch
    token = libseccomp.token(name)
    if not token:
        # 2.6 knows LOONGARCH64, M68K, SH and SHEB; before it nothing is known to compare with
        assert arch.name in ("LOONGARCH64", "M68K", "SH", "SHEB")
        return
    if arch.name != "X32":  # the library's own token
        assert token == arch.token
    compared = 0
    for call, number in arches.numbers(arch.table).items():
        theirs = libseccomp.number(name, call)
        if theirs >= 0:
            assert theirs == number, call
            compared += 1
    assert compared > 250


@pytest.mark.parametrize("name", arches.NAMES)
def test_no_call_of_libseccomp_is_missing(libseccomp: Libseccomp, name: str) -> None:
    arch = arches.get(name)
    assert arch
    ours = arches.numbers(arch.table)
    everywhere = {call for table in arches.TABLES for call in arches.numbers(table)}
    if libseccomp.token(name):
        missing = {call for call in everywhere - set(ours) if libseccomp.number(name, call) >= 0}
        # the kernel's parisc64 never had _llseek, libseccomp before 2.6 has one table for both
        assert missing <= ({"_llseek"} if name == "SCMP_ARCH_PARISC64" else set())


def test_the_names_that_libseccomp_knows_are_known() -> None:
    header = Path("/usr/include/seccomp-syscalls.h")
    if not header.exists():
        pytest.skip("libseccomp's headers (libseccomp-dev) aren't installed")
    everywhere = {call for table in arches.TABLES for call in arches.numbers(table)}
    assert set(re.findall(r"__SNR_(\w+)", header.read_text())) <= everywhere


@pytest.mark.parametrize("name", HEADERS)
def test_the_hosts_headers_agree(name: str) -> None:
    headers = [path for path in Path("/usr/include").glob(f"*/{HEADERS[name]}") if path.parts[3].startswith("x86_64")]
    if not headers:
        pytest.skip("the kernel's headers (linux-libc-dev) aren't installed")
    bit = arches.X32_BIT if name == "X32" else 0
    table = arches.numbers(name.lower())
    found = re.findall(r"__NR_(\w+) (?:\(__X32_SYSCALL_BIT \+ )?(\d+)", headers[0].read_text())
    assert len(found) > 300
    for call, number in found:
        if call not in ("syscalls",):
            assert table[call] == bit + int(number), call


@pytest.mark.parametrize("name", arches.NAMES)
def test_numbers_are_in_their_range(name: str) -> None:
    arch = arches.get(name)
    assert arch
    table = arches.numbers(arch.table)
    first = {"X32": arches.X32_BIT, "MIPS": 4000, "MIPSEL": 4000}.get(arch.name, 0)
    assert all(first <= number < first + 0x100000 for number in table.values())
    for call in ("read", "write", "execve", "openat", "seccomp"):
        assert call in table
    if arch.muxed:
        assert {"socketcall", "ipc"} & set(table)


def test_the_package_has_one_truth() -> None:
    """ocirt.linux.numbers, written by hand for the calls that the runtime makes, agrees."""
    native = arches.native(linux_numbers.MACHINE)
    assert native
    table = arches.numbers(native.table)
    for call in ("execveat", "seccomp", "bpf", "setns", "pivot_root", "memfd_create"):
        assert linux_numbers.number(call) == table[call]


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("x86_64", "X86_64"), ("aarch64", "AARCH64"), ("armv7l", "ARM"), ("i686", "X86"), ("riscv64", "RISCV64"),
        ("ppc64le", "PPC64LE"), ("s390x", "S390X"), ("loongarch64", "LOONGARCH64"), ("mips64", "MIPSEL64"),
        ("mips", "MIPSEL64"), ("m68k", "M68K"), ("sh4", "SH"), ("parisc64", "PARISC64"),
    ],
)  # fmt: skip
def test_native_architecture(machine: str, name: str) -> None:
    found = arches.native(machine)
    assert found
    assert found.name == name


def test_unknown_machines_have_none() -> None:
    assert arches.native("pdp11") is None
    assert arches.get("SCMP_ARCH_PDP11") is None
    assert arches.get("X86_64") is None

"""The cache of filters: what it depends on, and whom it believes."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from ocirt.errors import InvalidConfig
from ocirt.identity import seccomp
from ocirt.identity.seccomp import arches, cache, compile, names
from ocirt.identity.seccomp.filter import Filter, allows, verdict
from ocirt.linux import seccomp as kernel

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [
        {"names": ["read", "write", "execveat", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x7E020000, "valueTwo": 0}],
        },
    ],
}


def files(root: Path) -> list[Path]:
    return sorted((root / ".cache/seccomp").iterdir())


def fields(filter: Filter) -> tuple[bytes, int, bool, int]:
    return filter.program, filter.flags, filter.notify, filter.token


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often something was compiled."""
    calls: list[int] = []
    compile_filter = compile.compile_filter

    def count(*args: object, **options: object) -> Filter:
        calls.append(1)
        return compile_filter(*args, **options)

    monkeypatch.setattr(compile, "compile_filter", count)
    return calls


def test_a_second_use_compiles_nothing(tmp_path: Path, counted: list[int]) -> None:
    first = seccomp.cached(PROFILE, str(tmp_path))
    second = seccomp.cached(dict(PROFILE), str(tmp_path))
    assert fields(first) == fields(second)
    assert len(counted) == 1
    (file,) = files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700


def test_a_hit_imports_nothing_of_the_compiler(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(seccomp.__file__).parents[3])!r})\n"
        "from ocirt.identity import seccomp\n"
        f"filter = seccomp.cached({PROFILE!r}, {str(tmp_path)!r})\n"
        "assert seccomp.allows(filter, 'execveat')\n"
        "print(' '.join(sorted(m for m in sys.modules if m.startswith('ocirt.identity.seccomp.'))))\n"
        "print(' '.join(sorted(set(sys.modules) & {'json', 're', 'ctypes', 'hashlib', 'typing', 'enum'})))\n"
    )
    for expected in ("compile", None):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True, timeout=30
        )
        ours, others = done.stdout.splitlines()
        modules = {name.removeprefix("ocirt.identity.seccomp.") for name in ours.split()}
        assert ("compile" in modules) == (expected == "compile")
        assert others == ""
    assert modules == {"cache", "filter"}


@pytest.mark.parametrize(
    "change",
    [
        {"defaultAction": "SCMP_ACT_KILL"},
        {"defaultErrnoRet": 38},
        {"architectures": ["SCMP_ARCH_X86_64"]},
        {"flags": []},
        {"flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"syscalls": []},
        {"syscalls": [{**PROFILE["syscalls"][0], "action": "SCMP_ACT_LOG"}, PROFILE["syscalls"][1]]},
        {"syscalls": [{**PROFILE["syscalls"][0], "names": ["read"]}, PROFILE["syscalls"][1]]},
        {
            "syscalls": [
                PROFILE["syscalls"][0],
                {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ]
        },
        {
            "syscalls": [
                PROFILE["syscalls"][0],
                {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            ]
        },
        {
            "syscalls": [
                PROFILE["syscalls"][0],
                {**PROFILE["syscalls"][1], "args": [{**PROFILE["syscalls"][1]["args"][0], "valueTwo": 0x20000}]},
            ]
        },
    ],
)
def test_everything_in_the_profile_matters(tmp_path: Path, counted: list[int], change: dict) -> None:
    seccomp.cached(PROFILE, str(tmp_path))
    seccomp.cached({**PROFILE, **change}, str(tmp_path))
    assert len(counted) == 2
    assert len(files(tmp_path)) == 2


def test_where_the_agent_listens_does_not(tmp_path: Path, counted: list[int]) -> None:
    profile = {**PROFILE, "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}], "listenerPath": "/a"}
    assert seccomp.cached(profile, str(tmp_path)).notify
    assert seccomp.cached({**profile, "listenerPath": "/b", "listenerMetadata": "c"}, str(tmp_path)).notify
    assert len(counted) == 1


def test_a_profile_cached_before_is_still_an_error_where_unknown_calls_are(tmp_path: Path) -> None:
    seccomp.cached(PROFILE, str(tmp_path), annotations={seccomp.FAIL_UNKNOWN: "0"})
    with pytest.raises(InvalidConfig, match=r'linux\.seccomp\.syscalls: "no_such_call": no architecture has this call'):
        seccomp.cached(PROFILE, str(tmp_path), annotations={seccomp.FAIL_UNKNOWN: "1"})


def test_calls_of_other_architectures_are_known(tmp_path: Path) -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["set_tls"], "action": "SCMP_ACT_ALLOW"}]}
    seccomp.cached(profile, str(tmp_path), annotations={seccomp.FAIL_UNKNOWN: "1"})


def spoil_content(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def link(file: Path) -> None:
    file.rename(file.parent.parent / "moved")
    file.symlink_to(file.parent.parent / "moved")


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def writable(file: Path) -> None:
    file.chmod(0o622)


@pytest.mark.parametrize("spoil", [spoil_content, cut, empty, link, fifo, directory, writable])
def test_a_file_that_cannot_be_trusted_is_replaced(tmp_path: Path, counted: list[int], spoil: object) -> None:
    good = seccomp.cached(PROFILE, str(tmp_path))
    (file,) = files(tmp_path)
    spoil(file)
    assert fields(seccomp.cached(PROFILE, str(tmp_path))) == fields(good)
    assert len(counted) == 2
    assert fields(seccomp.cached(PROFILE, str(tmp_path))) == fields(good)
    assert len(counted) == (3 if spoil is directory else 2)


def test_a_file_under_another_name_is_not_believed(tmp_path: Path, counted: list[int]) -> None:
    seccomp.cached(PROFILE, str(tmp_path))
    (first,) = files(tmp_path)
    other = {**PROFILE, "defaultAction": "SCMP_ACT_KILL"}
    seccomp.cached(other, str(tmp_path))
    (second,) = [file for file in files(tmp_path) if file != first]
    second.write_bytes(first.read_bytes())
    filter = seccomp.cached(other, str(tmp_path))
    assert verdict(filter.program, filter.token, 2, None) == kernel.RET_KILL_THREAD
    assert len(counted) == 3


def test_a_directory_open_to_others_is_not_used(tmp_path: Path, counted: list[int]) -> None:
    seccomp.cached(PROFILE, str(tmp_path))
    (tmp_path / ".cache/seccomp").chmod(0o770)
    seccomp.cached(PROFILE, str(tmp_path))
    assert len(counted) == 2
    (tmp_path / ".cache/seccomp").chmod(0o700)
    (tmp_path / ".cache/seccomp").rename(tmp_path / "elsewhere")
    (tmp_path / ".cache/seccomp").symlink_to(tmp_path / "elsewhere")
    seccomp.cached(PROFILE, str(tmp_path))
    assert len(counted) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", [".cache/seccomp", "file"])
def test_what_belongs_to_others_is_not_used(tmp_path: Path, counted: list[int], what: str) -> None:
    seccomp.cached(PROFILE, str(tmp_path))
    os.chown(files(tmp_path)[0] if what == "file" else tmp_path / what, 65534, 65534)
    seccomp.cached(PROFILE, str(tmp_path))
    assert len(counted) == 2


def test_without_a_place_there_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("")
    assert seccomp.cached(PROFILE, str(tmp_path)).program
    assert seccomp.cached(PROFILE, str(tmp_path / ".cache/root")).program


def test_the_first_container_makes_the_root_directory(tmp_path: Path, counted: list[int]) -> None:
    seccomp.cached(PROFILE, str(tmp_path / "a/root"))
    assert stat.S_IMODE((tmp_path / "a/root").stat().st_mode) == 0o700
    seccomp.cached(PROFILE, str(tmp_path / "a/root"))
    assert len(counted) == 1


def test_the_cache_does_not_grow_for_ever(tmp_path: Path) -> None:
    for number in range(cache._LIMIT + 5):
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": number}
        seccomp.cached(profile, str(tmp_path))
    assert cache._LIMIT // 2 <= len(files(tmp_path)) <= cache._LIMIT
    assert all(len(file.name) == 64 for file in files(tmp_path))


def test_the_program_of_an_annotation_replaces_the_profile(tmp_path: Path) -> None:
    program = compile.compile_filter({"defaultAction": "SCMP_ACT_ALLOW"}).program
    given = {seccomp.BPF_DATA: b64encode(program).decode()}
    filter = seccomp.cached({**PROFILE, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}, str(tmp_path), annotations=given)
    assert (filter.program, filter.flags, filter.notify) == (program, 2, False)
    assert allows(filter, "mount")
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("data", ["%%%", "", "AAAA", b64encode(bytes(8 * 4097)).decode()])
def test_a_bad_program_in_an_annotation_is_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(InvalidConfig, match=r"annotations\.run\.oci\.seccomp_bpf_data"):
        seccomp.cached(PROFILE, str(tmp_path), annotations={seccomp.BPF_DATA: data})


def test_the_version_changes_with_the_programs() -> None:
    """Programs cached by an older ocirt must not be taken for those of this one.

    If this fails the compiler makes other programs than before, or knows other
    calls: raise cache.VERSION and put the new hash here.
    """
    profiles = [
        {**PROFILE, "architectures": [name]} for name in ("SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64")
    ]
    profiles += [{**profile, "defaultAction": "SCMP_ACT_KILL", "syscalls": []} for profile in profiles]
    profiles.append(
        {
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "syscalls": [
                {
                    "names": ["ioctl", "fcntl", "prctl", "bind", "rseq_slice_yield"],
                    "action": "SCMP_ACT_TRACE",
                    "errnoRet": 7,
                    "args": [{"index": 1, "op": operator, "value": value, "valueTwo": 3}],
                }
                for value, operator in enumerate(names.OPERATORS)
            ]
            + [
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": value}],
                }
                for value in (0, 8, 0x20000, 0xFFFFFFFF)
            ],
        }
    )
    programs = [compile.compile_filter(profile, machine="x86_64").program for profile in profiles]
    tables = [sorted(arches.numbers(table).items()) for table in arches.TABLES]
    made = hashlib.sha256(b"".join(programs) + repr(tables).encode()).hexdigest()
    assert (cache.VERSION, made[:16]) == (1, "9be9b7e5eb0b64b2")

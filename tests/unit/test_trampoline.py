"""The trampoline: machine code that executes a program, and tells when it can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ocirt.process import trampoline

QEMU = shutil.which("qemu-aarch64-static")


def execute(program: str, arguments: list[str]) -> tuple[bytes, bytes, int]:
    """(stdout, what was reported, wait status) of a trampoline run in a child."""
    out_read, out = os.pipe()
    report_read, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(out, 1)
            os.dup2(report, 100)
            os.execve(trampoline.make(program, 100), arguments, {"NAME": "value"})
        finally:
            os._exit(99)
    os.close(out)
    os.close(report)
    with open(out_read, "rb") as a, open(report_read, "rb") as b:
        output, reported = a.read(), b.read()
    return output, reported, os.waitpid(pid, 0)[1]


@pytest.mark.skipif(
    not trampoline.AVAILABLE, reason="no machine code for this machine: the interpreter is sealed instead"
)
class TestHere:
    def test_arguments_and_environment_pass_through(self) -> None:
        output, reported, status = execute("/bin/sh", ["sh", "-c", 'echo "$0 $1 $NAME"', "zero", "one"])
        assert (output, reported, status) == (b"zero one value\n", b"", 0)

    def test_the_report_descriptor_is_closed_in_the_program(self) -> None:
        output, _, _ = execute("/bin/sh", ["sh", "-c", "ls /proc/self/fd"])
        assert b"100" not in output.split()

    @pytest.mark.parametrize(("program", "errno"), [("/nonexistent", 2), ("/etc", 13), ("/proc/version", 13)])
    def test_an_errno_is_reported(self, program: str, errno: int) -> None:
        assert execute(program, ["x"]) == (b"", errno.to_bytes(4, sys.byteorder), 1 << 8)

    def test_no_format(self, tmp_path: Path) -> None:
        file = tmp_path / "noexec"
        file.write_bytes(b"neither ELF nor script")
        file.chmod(0o755)
        assert execute(str(file), ["x"]) == (b"", (8).to_bytes(4, sys.byteorder), 1 << 8)

    @pytest.mark.parametrize("kind", ["script", "link"])
    def test_proc_self_exe_is_the_trampoline_and_ends(self, tmp_path: Path, kind: str) -> None:
        """CVE-2019-5736: neither the interpreter runs again, nor the trampoline for ever."""
        file = tmp_path / "evil"
        if kind == "script":
            file.write_text("#!/proc/self/exe -c open('/ran','w')\n")
            file.chmod(0o755)
        else:
            file.symlink_to("/proc/self/exe")
        assert execute(str(file), ["x"]) == (b"", b"", 1 << 8)


@pytest.mark.skipif(
    QEMU is None, reason="needs qemu-aarch64-static (package qemu-user-static) to run the code of aarch64"
)
def test_aarch64_reports_the_errno(tmp_path: Path) -> None:
    assert QEMU is not None
    read, write = os.pipe()
    file = tmp_path / "trampoline"
    file.write_bytes(trampoline.image(b"/nonexistent", write, "aarch64"))
    file.chmod(0o755)
    try:
        result = subprocess.run([QEMU, str(file), "x"], pass_fds=(write,), check=False)
    finally:
        os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == (2).to_bytes(4, sys.byteorder)
    assert result.returncode == 1


def test_images_are_small() -> None:
    for machine in ("x86_64", "aarch64"):
        image = trampoline.image(b"/bin/true", 3, machine)
        assert image[:4] == b"\x7fELF"
        assert len(image) < 400

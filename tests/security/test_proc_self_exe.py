"""CVE-2019-5736: no file of the host can be written through /proc/PID/exe, whatever the image does."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import pytest

from tests.conftest import MakeBox
from tests.harness.box import Box
from tests.harness.helpers import Helpers
from tests.harness.peers import peer_fails

LOADER = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}


def programs_of_the_runtime(box: Box) -> list[Path]:
    """The files that run when the runtime does: its program, and the interpreter of its first line."""
    path = Path(box.runtime.path).resolve()
    found = [path]
    with path.open("rb") as file:
        first = file.readline()
    if first.startswith(b"#!"):
        found.append(Path(os.fsdecode(first[2:].split()[0])).resolve())
    return found


class Watch:
    """The programs before and after, and what an attacker reports to have opened for writing."""

    def __init__(self, box: Box) -> None:
        self.files = programs_of_the_runtime(box)
        self.before = self.hashes()

    def hashes(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files]

    def check(self, report: str) -> None:
        assert self.hashes() == self.before, "a program of the host was overwritten"
        host = {}
        for path in self.files:
            status = path.stat()
            host[f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}:{status.st_ino}"] = path
        opened = [str(host[line]) for line in report.split() if line in host]
        assert not opened, f"could be opened for writing: {opened}"


@pytest.fixture
def attacker(box: Box, helpers: Helpers) -> Box:
    """A container that holds on to every /proc/PID/exe it sees, with all that Docker's default lacks to do so."""
    (box.rootfs / "reopen").write_bytes(helpers("reopen").read_bytes())
    (box.rootfs / "reopen").chmod(0o755)
    box.capabilities("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
    return box


def test_the_attack_works_where_nothing_defends(attacker: Box) -> None:
    """A program of the image's own is found: the test below can fail."""
    attacker.sh("cp /bin/busybox /busybox-victim; /busybox-victim sleep 1 & exec /reopen 3")
    report = attacker.run().out
    victim = (attacker.rootfs / "busybox-victim").stat()
    assert f"{os.major(victim.st_dev)}:{os.minor(victim.st_dev)}:{victim.st_ino}" in report.split()


def test_exec_into_a_container_that_waits_for_it(attacker: Box) -> None:
    watch = Watch(attacker)
    attacker.args("/reopen", "9")
    attacker.create_and_start()
    attacker.wait_for_output("up")
    for _ in range(30):
        attacker.exec("/bin/true", check=False)
    attacker.wait_for("stopped", 30)
    watch.check(attacker.out)


@peer_fails("crun", "1.8.1 can be opened for writing by a neighbour that may trace it", always=False)
def test_a_container_in_the_attackers_pid_namespace(attacker: Box, make_box: MakeBox) -> None:
    """As the containers of a pod that share their processes: the attacker sees the other's init from its birth on."""
    watch = Watch(attacker)
    attacker.args("/reopen", "9")
    attacker.create_and_start()
    attacker.wait_for_output("up")
    for _ in range(12):
        other = make_box()
        other.namespace("pid", f"/proc/{attacker.pid}/ns/pid")
        other.args("/bin/true")
        other.run(check=False)
    attacker.wait_for("stopped", 30)
    watch.check(attacker.out)


@pytest.mark.parametrize("kind", ["script", "link", "shell"])
def test_program_that_leads_to_proc_self_exe(attacker: Box, helpers: Helpers, kind: str) -> None:
    """The image's own dynamic loader would run in the runtime's program; here the attacker is the loader."""
    watch = Watch(attacker)
    loader = attacker.rootfs / LOADER[platform.machine()]
    loader.parent.mkdir(parents=True, exist_ok=True)
    loader.write_bytes(helpers("reopen").read_bytes())
    loader.chmod(0o755)
    if kind == "script":
        (attacker.rootfs / "evil").write_text("#!/proc/self/exe\n")
        (attacker.rootfs / "evil").chmod(0o755)
    elif kind == "link":
        (attacker.rootfs / "evil").symlink_to("/proc/self/exe")
    else:
        (attacker.rootfs / "bin/sh").unlink()
        (attacker.rootfs / "bin/sh").symlink_to("/proc/self/exe")
        (attacker.rootfs / "evil").write_text("#!/bin/sh\n")
        (attacker.rootfs / "evil").chmod(0o755)
    attacker.args("/evil")
    result = attacker.run(check=False, timeout=20)
    assert result.rc != 0 or "ran as" in result.out
    watch.check(result.out)
    if attacker.runtime.name == "ocirt":
        assert "ran as" not in result.out, "the image's loader ran in a program of the host"


@pytest.mark.parametrize("kind", ["script", "link"])
def test_exec_of_proc_self_exe(attacker: Box, helpers: Helpers, kind: str) -> None:
    watch = Watch(attacker)
    loader = attacker.rootfs / LOADER[platform.machine()]
    loader.parent.mkdir(parents=True, exist_ok=True)
    loader.write_bytes(helpers("reopen").read_bytes())
    loader.chmod(0o755)
    if kind == "script":
        (attacker.rootfs / "evil").write_text("#!/proc/self/exe\n")
        (attacker.rootfs / "evil").chmod(0o755)
    else:
        (attacker.rootfs / "evil").symlink_to("/proc/self/exe")
    attacker.create_and_start("sleep 1000")
    result = attacker.exec("/evil", check=False, timeout=20)
    watch.check(result.out)
    assert result.rc != 0 or "ran as" in result.out
    if attacker.runtime.name == "ocirt":
        assert "ran as" not in result.out, "the image's loader ran in a program of the host"


def test_the_final_program_is_the_images(box: Box) -> None:
    """Nothing of the runtime's way to execute shows."""
    box.args("/bin/sleep", "1000")
    box.create_and_start()
    assert os.readlink(f"/proc/{box.pid}/exe") == "/bin/busybox"
    assert Path(f"/proc/{box.pid}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00"
    assert Path(f"/proc/{box.pid}/comm").read_text() == "sleep\n"

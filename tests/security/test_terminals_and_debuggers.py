"""What a container could do to its caller's terminal and to processes of the runtime that it sees."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

from tests.conftest import MakeBox
from tests.harness.box import Box
from tests.harness.helpers import Helpers


def test_no_input_can_be_forged_on_the_callers_terminal(box: Box, helpers: Helpers) -> None:
    """CVE-2017-5226: without a pty of its own the process still is in a session of its own, without the terminal."""
    box.bind(helpers("tiocsti"), "/tiocsti", "bind", "ro")
    box.args("/tiocsti")
    box.write()
    master, slave = pty.openpty()
    argv = ["setsid", "--ctty", "--wait", *box.runtime.argv(["run", "--bundle", box.path, box.id])]
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    shown = b""
    while process.poll() is None or select.select([master], [], [], 0.1)[0]:
        if select.select([master], [], [], 0.1)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
    process.wait(20)
    os.close(master)
    assert b"injected" not in shown
    assert b"TIOCSTI" in shown


def test_init_that_waits_is_not_dumpable(box: Box) -> None:
    """CVE-2016-9962: files of /proc/PID belong to root of the host, so that nobody of the container can open them."""
    box.add_user_namespace()
    box.create()
    status = os.stat(f"/proc/{box.pid}/environ")
    assert (status.st_uid, status.st_gid) == (0, 0)


def test_a_process_with_ptrace_sees_nothing_of_the_host(box: Box, make_box: MakeBox) -> None:
    """Links of every process in sight, read while containers start in the same pid namespace and are exec'd into."""
    script = """
    echo up
    end=$(($(date +%s) + 8))
    while [ $(date +%s) -lt $end ]; do
        for p in /proc/[0-9]*; do readlink $p/cwd $p/root $p/fd/*; done
    done > /seen 2>/dev/null
    """
    box.capabilities("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
    box.create_and_start(script)
    box.wait_for_output("up")
    for _ in range(10):
        other = make_box()
        other.namespace("pid", f"/proc/{box.pid}/ns/pid")
        other.args("/bin/true")
        other.run(check=False)
        box.exec("/bin/true", check=False)
    box.wait_for("stopped", 30)
    seen = set((box.rootfs / "seen").read_text().split())
    state = box.runtime.root
    leaks = {s for s in seen if s.startswith((str(state), "/sys/fs/cgroup", "/etc", "/usr/lib", "/home", "/root/"))}
    assert not leaks


def test_environment_of_the_caller_is_not_readable_inside(box: Box, make_box: MakeBox) -> None:
    """/proc/PID/environ of an init that waits is what the runtime was called with."""
    secret = "SECRET_OF_THE_ENGINE=42"
    other = make_box()
    box.create_and_start("sleep 1000")
    other.namespace("pid", f"/proc/{box.pid}/ns/pid")
    name, value = secret.split("=")
    other.create(env={**os.environ, name: value})
    result = box.exec("/bin/sh", "-c", "cat /proc/[0-9]*/environ", check=False)
    assert secret not in result.out


def test_state_directory_is_for_root_alone(box: Box) -> None:
    box.create()
    for path in (p for p in box.runtime.root.rglob("*") if box.id in str(p)):
        mode = path.lstat().st_mode & 0o777
        if path.is_dir() or path.is_file():
            assert not mode & 0o022, path
    if box.runtime.name == "ocirt":
        record = list(box.runtime.root.rglob("*.json"))
        assert record
        assert not any(Path(p).stat().st_mode & 0o077 for p in record)

"""exec: one more process, by options or by a file; what it gets and what it is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.harness.box import Box, alive, end_process
from tests.harness.bundle import CAPABILITIES, PATH
from tests.harness.helpers import Helpers
from tests.harness.peers import lacks, peer_fails
from tests.harness.terminal import ConsoleSocket

SLEEP = "sleep 1000"


@pytest.fixture
def running(box: Box) -> Box:
    """A container that sleeps."""
    box.create_and_start(SLEEP)
    return box


def sh(box: Box, script: str, *flags: str, **options: object) -> str:
    """`exec` of a shell script; its output."""
    return box.exec("/bin/sh", "-c", script, flags=flags, **options).out  # type: ignore[arg-type]


def status(box: Box, *flags: str) -> dict[str, str]:
    """/proc/self/status of a process that exec runs."""
    text = box.exec("/bin/cat", "/proc/self/status", flags=flags).out
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def with_file(box: Box, place: Path, *flags: str, rc: int = 0, **changes: object) -> str:
    """`exec --process`: the container's process with changes; what it wrote."""
    process = {**box.process, "terminal": False, **changes}
    file = place / "process.json"
    file.write_text(json.dumps(process))
    result = box.runtime("exec", "--process", file, *flags, box.id, check=False)
    assert result.rc == rc, result
    return result.out


# what it runs and how it ends


@pytest.mark.parametrize("code", [0, 1, 3, 42, 254, 255])
def test_exit_status(running: Box, code: int) -> None:
    assert running.exec("/bin/sh", "-c", f"exit {code}", check=False).rc == code


def test_signal_that_ends_it(running: Box) -> None:
    assert running.exec("/bin/sh", "-c", "kill -TERM $$", check=False).rc == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("/nonexistent", "no such file or directory"),
        ("nonexistent", "executable file not found in $PATH"),
        ("/etc", "permission denied"),
        ("/etc/passwd", "permission denied"),
    ],
)
@peer_fails("crun", "has other words")
def test_program_that_cannot_run(running: Box, program: str, text: str) -> None:
    result = running.exec(program, check=False)
    assert result.rc == 255
    assert text in result.err


def test_file_that_is_no_program(running: Box) -> None:
    (running.rootfs / "noexec").write_text("\n\0\0 no program\n")
    (running.rootfs / "noexec").chmod(0o755)
    result = running.exec("/noexec", check=False)
    assert result.rc in (255, 1)
    assert "exec format error" in result.err.lower()


def test_failure_is_always_told(running: Box) -> None:
    """A process that fails at once must not make the runtime complain of its own messages to it."""
    for _ in range(25):
        result = running.exec("/nonexistent", check=False)
        assert re.search("no such file or directory", result.err, re.IGNORECASE), result


def test_output_and_input(running: Box) -> None:
    result = running.exec("/bin/sh", "-c", "cat; echo err >&2", stdin="given")
    assert (result.out, result.err) == ("given", "err\n")


def test_flags_of_the_command_are_the_commands(running: Box) -> None:
    assert running.exec("/bin/echo", "--tty", "-d", "--", "-e").out == "--tty -d -- -e\n"


@peer_fails("runc", "passes arguments as JSON, which has no such bytes")
def test_arguments_are_bytes(running: Box) -> None:
    """Names of files need not be UTF-8."""
    script = 'printf %s "$1$A" | od -An -tx1'
    odd = os.fsdecode(b"\xe9")
    result = running.exec("/bin/sh", "-c", script, "sh", odd, flags=("--env", f"A={odd}"))
    assert result.out.split() == ["e9", "e9"]


# states


@peer_fails("crun", "gives 1")
def test_without_a_container(box: Box) -> None:
    result = box.exec("/bin/true", check=False)
    assert result.rc == 255
    assert "does not exist" in result.err


def test_in_a_created_container(box: Box) -> None:
    box.sh(SLEEP)
    box.create()
    assert sh(box, "echo here") == "here\n"
    assert box.status == "created"


@peer_fails("crun", "gives 1")
def test_in_a_stopped_container(running: Box) -> None:
    pid = running.pid
    running.kill("KILL")
    running.exit_status(pid)
    result = running.exec("/bin/true", check=False)
    assert result.rc == 255
    assert "cannot exec in a stopped container" in result.err


@peer_fails("crun", "has other words and no --ignore-paused")
def test_in_a_paused_container(running: Box) -> None:
    running.runtime("pause", running.id)
    result = running.exec("/bin/true", check=False)
    assert result.rc == 255
    assert "cannot exec in a paused container (use --ignore-paused to override)" in result.err
    waiting = running.runtime.popen("exec", "--ignore-paused", running.id, "/bin/true")
    time.sleep(0.5)
    assert waiting.poll() is None, "it stands still with the container"
    running.runtime("resume", running.id)
    assert waiting.wait(10) == 0


# the process: options


@peer_fails("crun", "replaces the environment")
def test_environment(running: Box) -> None:
    assert sh(running, "echo $A $B $TERM", "--env", "A=1", "--env", "B=x=y").split() == ["1", "x=y", "dumb"]


def test_cwd(running: Box) -> None:
    assert sh(running, "pwd", "--cwd", "/tmp") == "/tmp\n"


@peer_fails("runc", "makes no directory for exec")
@peer_fails("crun", "makes no directory for exec")
def test_cwd_is_made(running: Box) -> None:
    """As it is for the container's first process."""
    assert sh(running, "pwd", "--cwd", "/new/directory") == "/new/directory\n"


@peer_fails("crun", "takes a relative one")
def test_cwd_must_be_absolute(running: Box) -> None:
    assert running.exec("/bin/true", flags=("--cwd", "tmp"), check=False).rc != 0


def test_user(running: Box) -> None:
    assert sh(running, "id -u; id -g", "--user", "1000:2000").split() == ["1000", "2000"]
    assert sh(running, "id -u", "-u", "1000").split() == ["1000"]


@pytest.mark.parametrize(
    "user",
    ["", ":", "-1", "+1", " 1", "1 ", "1:", "1:-1", "1_0", "0x1", "1:2:3", "root", "٣", "4294967295", "1e3", "1:x"],
)
@peer_fails("crun", "takes what strtol(3) takes", always=False)
@peer_fails("runc", "takes an empty user and a sign, and words its errors otherwise", always=False)
def test_user_is_parsed_strictly(running: Box, user: str) -> None:
    """A user that is not understood must not become root (CVE-2026-30892)."""
    result = running.exec("/bin/id", "-u", flags=("--user", user), check=False)
    assert result.rc == 255
    assert "0" not in result.out
    assert "user" in result.err


@peer_fails("runc", "gives 1 for a usage error")
@lacks("crun", what="--additional-gids")
def test_additional_groups(running: Box) -> None:
    assert status(running, "-g", "77", "-g", "78")["Groups"].split() == ["77", "78"]
    assert running.exec("/bin/true", flags=("-g", "x"), check=False).rc == 255


@lacks("runc", "crun", what="the flag in the error", always=False)
@pytest.mark.parametrize(("flag", "name"), [("-u", "--user"), ("-g", "--additional-gids")])
def test_errors_of_ids_name_the_flag(running: Box, flag: str, name: str) -> None:
    told = running.exec("/bin/true", flags=(flag, "foo"), check=False).err
    assert f"{name}: 'foo' is not a user or group id" in told


def test_no_new_privileges(box: Box) -> None:
    box.process["noNewPrivileges"] = False
    box.create_and_start(SLEEP)
    assert status(box)["NoNewPrivs"] == "0"
    assert status(box, "--no-new-privs")["NoNewPrivs"] == "1"


def test_capabilities_are_the_containers(running: Box) -> None:
    found = status(running)
    assert int(found["CapBnd"], 16).bit_count() == len(CAPABILITIES)
    assert found["CapBnd"] == found["CapEff"] == found["CapPrm"]
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0


@peer_fails("crun", "replaces the sets")
def test_capability_is_added_but_never_inheritable(running: Box) -> None:
    """CVE-2022-29162: an inheritable capability makes a file's permitted ones effective."""
    before, found = status(running), status(running, "--cap", "CAP_NET_ADMIN", "--cap", "CAP_NET_RAW")
    added = 1 << 12 | 1 << 13
    for kind in ("CapBnd", "CapEff", "CapPrm"):
        assert int(found[kind], 16) == int(before[kind], 16) | added
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0


@peer_fails("runc", "warns of unknown capabilities", always=False)
@peer_fails("crun", "passes over unknown capabilities")
def test_unknown_capability(running: Box) -> None:
    assert running.exec("/bin/true", flags=("--cap", "CAP_BOGUS"), check=False).rc != 0


def test_user_has_no_capabilities(running: Box) -> None:
    found = status(running, "--user", "1000")
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0


@peer_fails("crun", "passes over labels where there is no SELinux")
def test_label_and_profile_that_this_host_cannot_give(running: Box) -> None:
    """They must fail, not be passed over."""
    for flags, file in (
        (("--process-label", "system_u:system_r:container_t:s0"), "/sys/fs/selinux/enforce"),
        (("--apparmor", "no-such-profile"), "/sys/kernel/security/apparmor/profiles-of-tests"),
    ):
        if not os.path.exists(file):
            result = running.exec("/bin/true", flags=flags, check=False)
            assert result.rc == 255, result


# the process: a file


def test_process_from_a_file(running: Box, place: Path) -> None:
    script = "id -u; id -g; pwd; echo $A"
    out = with_file(
        running,
        place,
        args=["/bin/sh", "-c", script],
        user={"uid": 1000, "gid": 2000, "additionalGids": [5]},
        cwd="/tmp",
        env=["PATH=/bin", "A=b"],
    )
    assert out.split() == ["1000", "2000", "/tmp", "b"]


@peer_fails("runc", "leaves oomScoreAdj of config.md's process out in exec")
@peer_fails("crun", "leaves oomScoreAdj of config.md's process out in exec")
def test_rlimits_and_oom_score_of_a_file(running: Box, place: Path) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}]
    script = "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj"
    out = with_file(running, place, args=["/bin/sh", "-c", script], rlimits=limits, oomScoreAdj=500)
    assert out.split() == ["55", "66", "500"]


def test_capabilities_of_a_file(running: Box, place: Path) -> None:
    """What the file leaves out is the container's; what it gives, even if it is nothing, is its own."""
    command = {"args": ["/bin/cat", "/proc/self/status"], "cwd": "/", "env": [PATH], "user": {"uid": 0, "gid": 0}}
    file = place / "process.json"
    for given, number in (command, len(CAPABILITIES)), ({**command, "capabilities": {}}, 0):
        file.write_text(json.dumps(given))
        out = running.runtime("exec", "--process", file, running.id).out
        found = re.findall(r"^Cap(?:Bnd|Eff|Prm):\t(\w+)$", out, re.MULTILINE)
        assert [int(bits, 16).bit_count() for bits in found] == [number] * 3


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cwd": "/"}', '{"args": [], "cwd": "/"}', '{"args": 5}'])
def test_file_that_is_no_process(running: Box, place: Path, text: str) -> None:
    file = place / "process.json"
    file.write_text(text)
    result = running.runtime("exec", "--process", file, running.id, check=False)
    assert result.rc in (255, 1)


def test_missing_command(running: Box) -> None:
    assert running.runtime("exec", running.id, check=False).rc in (1, 255)


# what applies to every process of the container


def test_seccomp_applies(box: Box) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    box.create_and_start(SLEEP)
    result = box.exec("/bin/mkdir", "/x", check=False)
    assert result.rc == 1
    assert "Function not implemented" in result.err
    assert status(box)["Seccomp"] == "2"


def test_namespaces_are_the_containers(running: Box) -> None:
    names = ("pid", "mnt", "net", "ipc", "uts")
    inside = sh(running, " ".join(f"readlink /proc/self/ns/{name};" for name in names)).split()
    assert inside == [os.readlink(f"/proc/{running.pid}/ns/{name}") for name in names]


def test_in_a_user_namespace(box: Box) -> None:
    box.add_user_namespace()
    box.create_and_start(SLEEP)
    assert sh(box, "id -u; cat /proc/self/uid_map").split() == ["0", "0", "100000", "65536"]
    assert sh(box, "id -u; touch /tmp/x", "--user", "1000").split() == ["1000"]
    assert (box.rootfs / "tmp/x").stat().st_uid == 101000


def test_shared_pid_namespace(box: Box) -> None:
    box.namespace("pid", remove=True)
    box.create_and_start(SLEEP)
    assert sh(box, "readlink /proc/self/ns/pid").strip() == os.readlink("/proc/self/ns/pid")
    assert sh(box, "exit 0") == ""


def test_cgroup_is_the_containers(running: Box) -> None:
    inside = sh(running, "cat /proc/self/cgroup").splitlines()
    wanted = Path(f"/proc/{running.pid}/cgroup").read_text().splitlines()
    assert sorted(inside) == sorted(wanted)


@peer_fails("crun", "wants the group to exist in its own way", always=False)
def test_cgroup_below_the_containers(running: Box) -> None:
    lines = [line.split(":", 2) for line in Path(f"/proc/{running.pid}/cgroup").read_text().splitlines()]
    on_v1 = any("pids" in controllers.split(",") for _, controllers, _ in lines)
    point = "/sys/fs/cgroup/pids" if on_v1 else "/sys/fs/cgroup"
    (path,) = [path for _, controllers, path in lines if controllers == ("pids" if on_v1 else "")]
    os.mkdir(f"{point}{path}/sub")
    prefix = "pids:" if on_v1 else ""
    groups = sh(running, "cat /proc/self/cgroup", "--cgroup", f"{prefix}sub").splitlines()
    assert [line for line in groups if line.endswith("/sub")]
    for wrong in ("../..", "missing", "nothing:sub"):
        assert running.exec("/bin/true", flags=("--cgroup", f"{prefix}{wrong}"), check=False).rc == 255


# descriptors, files, sockets


def test_only_three_descriptors(running: Box, helpers: Helpers) -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        out = sh(running, "ls /proc/self/fd", pass_fds=(fd,))
    finally:
        os.close(fd)
    assert [int(number) for number in out.split()] == [0, 1, 2, 3]  # 3 is ls's own


def test_preserve_fds(running: Box, place: Path) -> None:
    file = place / "kept"
    file.write_text("kept")
    words = running.runtime.argv(["exec", "--preserve-fds", "1", running.id, "/bin/cat", "/proc/self/fd/3"])
    assert running.runtime(argv=["sh", "-c", f"exec 3<{file}; exec {' '.join(words)}"]).out == "kept"


@peer_fails("crun", "passes on what there is")
def test_preserve_fds_beyond_what_is_open_is_an_error(running: Box) -> None:
    result = running.exec("/bin/true", flags=("--preserve-fds", "50"), check=False)
    assert result.rc == 255
    assert "preserve" in result.err


def test_detached_with_pid_file(running: Box, place: Path) -> None:
    file = place / "exec.pid"
    running.exec("/bin/sleep", "1000", flags=("--detach", "--pid-file", str(file)))
    pid = int(file.read_text())
    assert file.read_text() == str(pid), "no newline: containerd's shim reads it all"
    assert alive(pid)
    assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(f"/proc/{running.pid}/ns/mnt")
    end_process(pid)


def test_no_pid_file_of_a_failure(running: Box, place: Path) -> None:
    file = place / "exec.pid"
    running.exec("/nonexistent", flags=("--detach", "--pid-file", str(file)), check=False)
    assert not file.exists()


@lacks("runc", "crun", what="--pidfd-socket")
def test_pidfd_socket(running: Box, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "pidfd"))
        listener.listen(1)
        listener.settimeout(20)
        running.exec("/bin/sleep", "1000", flags=("--detach", "--pidfd-socket", str(place / "pidfd")))
        connection, _ = listener.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 100, 4)
    assert len(descriptors) == 1
    signal.pidfd_send_signal(descriptors[0], signal.SIGKILL)
    info = Path(f"/proc/self/fdinfo/{descriptors[0]}").read_text()
    pid = int(re.search(r"^Pid:\t(-?\d+)", info, re.MULTILINE).group(1))  # type: ignore[union-attr]
    os.close(descriptors[0])
    end_process(pid)


def test_terminal_for_an_engine(running: Box, place: Path) -> None:
    with ConsoleSocket(place / "console") as console:
        file = place / "exec.pid"
        flags = ("--tty", "--detach", "--pid-file", str(file), "--console-socket", str(console.path))
        running.exec("/bin/sh", "-c", "tty; read line; echo got $line; exit 5", flags=flags)
        console.receive()
        assert b"/dev/pts/" in console.read_until(b"/dev/pts/")
        console.write(b"typed\n")
        console.read_until(b"got typed")
        assert running.exit_status(int(file.read_text())) == 5


@peer_fails("crun", "sets the size some time after the process has started", always=False)
def test_terminal_size_of_a_file(running: Box, place: Path) -> None:
    with ConsoleSocket(place / "console") as console:
        size = {"height": 40, "width": 101}
        flags = ("--detach", "--pid-file", str(place / "pid"), "--console-socket", str(console.path))
        with_file(running, place, *flags, terminal=True, consoleSize=size, args=["/bin/stty", "size"])
        console.receive()
        assert b"40 101" in console.read_until(b"40 101")
        running.exit_status(int((place / "pid").read_text()))


def test_detached_terminal_needs_a_socket(running: Box) -> None:
    assert running.exec("/bin/true", flags=("--tty", "--detach"), check=False).rc in (1, 255)


def test_signals_are_forwarded(running: Box) -> None:
    script = "trap 'exit 8' USR1; echo ready > /ready; while :; do sleep 0.05; done"
    command = running.runtime.popen("exec", running.id, "/bin/sh", "-c", script)
    end = time.monotonic() + 10
    while not (running.rootfs / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    command.send_signal(signal.SIGUSR1)
    assert command.wait(10) == 8


def test_signals_are_as_ever(running: Box) -> None:
    found = status(running)
    assert int(found["SigIgn"], 16) == int(found["SigBlk"], 16) == 0


def test_many_at_once(running: Box) -> None:
    started = [running.runtime.popen("exec", running.id, "/bin/sh", "-c", f"exit {n}") for n in range(12)]
    assert [process.wait(30) for process in started] == list(range(12))

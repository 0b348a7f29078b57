"""The process: arguments, directory, environment, user, limits and everything else of config.md's `process`."""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.helpers import Helpers
from tests.harness.peers import fails, peer_fails


def status_of(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def proc_status(box: Box) -> dict[str, str]:
    """/proc/self/status of a process that is the container's program itself."""
    box.args("/bin/cat", "/proc/self/status")
    return status_of(box.run().out)


def test_args_are_passed_as_they_are(box: Box) -> None:
    args = ["", "two words", "$HOME", "ü", "-n", "a\nb", "\\"]
    box.args("/bin/sh", "-c", 'for a; do printf "%s\\0" "$a"; done', "sh", *args)
    assert box.run().out.split("\0")[:-1] == args


def test_program_is_found_in_the_containers_path(box: Box) -> None:
    (box.rootfs / "opt/bin").mkdir(parents=True)
    program = box.rootfs / "opt/bin/mine"
    program.write_text("#!/bin/sh\necho $0 $1\n")
    program.chmod(0o755)
    box.process["env"] = ["PATH=/nothing:/opt/bin:/bin"]
    box.args("mine", "arg")
    assert box.run().out == "/opt/bin/mine arg\n"


def test_program_by_a_path_relative_to_cwd(box: Box) -> None:
    program = box.rootfs / "tmp/mine"
    program.write_text("#!/bin/sh\necho from $(pwd)\n")
    program.chmod(0o755)
    box.process["cwd"] = "/tmp"
    box.args("./mine")
    assert box.run().out == "from /tmp\n"


def test_cwd(box: Box) -> None:
    box.process["cwd"] = "/var/tmp"
    assert box.run("pwd; echo $PWD").out == "/var/tmp\n/var/tmp\n"


def test_cwd_is_made_if_missing(box: Box) -> None:
    box.process["cwd"] = "/new/deep/cwd"
    assert box.run("pwd").out == "/new/deep/cwd\n"
    assert (box.rootfs / "new/deep/cwd").is_dir()


def test_cwd_that_only_the_user_may_enter(box: Box) -> None:
    home = box.rootfs / "home/user"
    home.mkdir(mode=0o700)
    os.chown(home, 1000, 1000)
    box.process.update(cwd="/home/user", user={"uid": 1000, "gid": 1000})
    assert box.run("pwd; id -u").out == "/home/user\n1000\n"


def test_cwd_that_is_a_file_is_an_error(box: Box) -> None:
    (box.rootfs / "cwd").write_text("")
    box.process["cwd"] = "/cwd"
    result = box.create(check=False)
    assert result.rc == 1


def test_env_is_exact(box: Box) -> None:
    box.process["env"] = ["PATH=/bin", "A=1", "B=", "C=with=equals", "HOME=/x", "U=ü"]
    box.args("/bin/env")
    out = box.run(env={**os.environ, "LEAK": "1", "OCIRT_LEAK": "1"}).out
    assert sorted(out.splitlines()) == ["A=1", "B=", "C=with=equals", "HOME=/x", "PATH=/bin", "U=ü"]


def test_the_last_of_two_equal_names_counts(box: Box) -> None:
    box.process["env"] += ["A=1", "A=2"]
    assert box.run("echo $A").out == "2\n"


@pytest.mark.parametrize(
    ("uid", "home"),
    [
        (0, "/root"),
        (1000, "/home/user"),
        pytest.param(4321, "/", marks=peer_fails("crun", "leaves HOME unset for a user that has no entry")),
    ],
)
def test_home_comes_from_the_containers_passwd(box: Box, uid: int, home: str) -> None:
    box.process["user"] = {"uid": uid, "gid": 0}
    box.args("/bin/env")
    assert f"HOME={home}" in box.run().out.splitlines()


@peer_fails("runc", "stops at a long line")
def test_home_with_a_strange_passwd(box: Box) -> None:
    (box.rootfs / "etc/passwd").write_text("\n:::\nuser:x:notanumber:0::/no:\nme:x:0:0:x:/mine:\n" + "x" * 100_000)
    box.args("/bin/env")
    assert "HOME=/mine" in box.run().out.splitlines()


def test_user_and_groups(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 2000, "additionalGids": [5, 6000]}
    status = proc_status(box)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["2000"] * 4
    assert sorted(map(int, status["Groups"].split())) in ([5, 6000], [5, 2000, 6000])


def test_groups_of_the_caller_are_dropped(box: Box) -> None:
    box.args("/bin/cat", "/proc/self/status")
    out = box.run(extra_groups=[44, 55]).out
    groups = status_of(out)["Groups"].split()
    assert "44" not in groups
    assert "55" not in groups


def test_umask(box: Box) -> None:
    box.process["user"]["umask"] = 0o27
    assert box.run("umask").out == "0027\n"


@pytest.mark.parametrize(
    "umask", [0o22, 0, pytest.param(0o77, marks=fails("runc crun", "makes directories with the caller's umask"))]
)
def test_umask_of_the_caller_does_not_matter_to_what_is_made(box: Box, umask: int) -> None:
    """Mount points and cwd are made with the mode that they ought to have."""
    box.mount("/made/here", "tmpfs")
    box.process["cwd"] = "/cwd/here"
    box.run("true", umask=umask)
    assert (box.rootfs / "made/here").stat().st_mode & 0o777 == 0o755
    assert (box.rootfs / "cwd/here").stat().st_mode & 0o777 == 0o755


def test_rlimits(box: Box) -> None:
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 22},
        {"type": "RLIMIT_RTTIME", "soft": 1000, "hard": 2000},
    ]
    box.args("/bin/cat", "/proc/self/limits")
    limits = {line[:25].strip(): line[25:].split()[:2] for line in box.run().out.splitlines()}
    assert limits["Max open files"] == ["100", "200"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max stack size"] == [str(1 << 20), str(1 << 22)]
    assert limits["Max realtime timeout"] == ["1000", "2000"]


def test_rlimits_that_are_not_named_are_the_callers(box: Box) -> None:
    box.args("/bin/cat", "/proc/self/limits")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 31))

    limits = {line[:25].strip(): line[25:].split()[:2] for line in box.run(preexec_fn=limit).out.splitlines()}
    assert limits["Max file size"] == [str(1 << 30), str(1 << 31)]


@peer_fails("runc", "limits init before it is done")
@peer_fails("crun", "limits itself before it is done")
def test_a_limit_of_few_descriptors_does_not_stop_the_set_up(box: Box) -> None:
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}]
    box.args("/bin/true")
    for number in range(20):
        box.mount(f"/mnt/{number}")
    box.run()


@pytest.mark.parametrize(
    "value",
    [500, 0, -1],
)
def test_oom_score_adj(box: Box, value: int) -> None:
    if value < int(Path("/proc/self/oom_score_adj").read_text()) and not may_lower_oom_score():
        value = int(Path("/proc/self/oom_score_adj").read_text()) + 1
    box.process["oomScoreAdj"] = value
    assert box.run("cat /proc/self/oom_score_adj").out == f"{value}\n"


def may_lower_oom_score() -> bool:
    """Without CAP_SYS_RESOURCE nobody may."""
    return bool(int(status_of(Path("/proc/self/status").read_text())["CapEff"], 16) >> 24 & 1)


def test_oom_score_adj_unset_is_the_callers(box: Box) -> None:
    own = Path("/proc/self/oom_score_adj").read_text()
    assert box.run("cat /proc/self/oom_score_adj").out == own


def test_no_new_privileges(box: Box) -> None:
    for value in (True, False):
        box.process["noNewPrivileges"] = value
        assert proc_status(box)["NoNewPrivs"] == str(int(value))


@peer_fails("runc", "keeps the mask of the caller")
def test_signal_dispositions_and_mask_are_reset(box: Box) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; a caller may ignore and block what it likes."""
    box.args("/bin/cat", "/proc/self/status")

    def ignore() -> None:
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM, signal.SIGRTMIN + 3])

    status = status_of(box.run(preexec_fn=ignore).out)
    assert int(status["SigIgn"], 16) == 0
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigPnd"], 16) == 0


def test_process_is_leader_of_a_session_of_its_own(box: Box) -> None:
    box.args("/bin/cat", "/proc/self/stat")
    fields = box.run().out.split()
    assert fields[0] == "1"
    assert fields[4:6] == ["1", "1"]
    assert fields[6] == "0", "no controlling terminal"


def test_hostname_and_domainname(box: Box) -> None:
    box.config["hostname"] = "myhost.example"
    assert box.run("hostname; cat /proc/sys/kernel/hostname").out == "myhost.example\nmyhost.example\n"


@peer_fails("runc", "1.1.5 ignores domainname, which came with runtime-spec 1.1")
def test_domainname(box: Box) -> None:
    box.config["domainname"] = "example.org"
    assert box.run("cat /proc/sys/kernel/domainname").out == "example.org\n"


def test_sysctl(box: Box) -> None:
    box.linux["sysctl"] = {
        "net.ipv4.ip_forward": "1",
        "kernel.shmmni": "1234",
        "fs.mqueue.msg_max": "9",
        "net/ipv4/conf/lo/forwarding": "1",
    }
    host = Path("/proc/sys/kernel/shmmni").read_text()
    script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmni fs/mqueue/msg_max net/ipv4/conf/lo/forwarding"
    assert box.run(script).out.split() == ["1", "1234", "9", "1"]
    assert Path("/proc/sys/kernel/shmmni").read_text() == host


def test_a_sysctl_that_does_not_exist_is_an_error(box: Box) -> None:
    box.linux["sysctl"] = {"net.ipv4.no_such_thing": "1"}
    result = box.create(check=False)
    assert result.rc == 1
    assert "no_such_thing" in result.err


OLD = "not in 1.1.5, nor in 1.8.1"


@pytest.mark.parametrize(
    ("policy", "more", "line"),
    [
        ("SCHED_BATCH", {"nice": 5}, "3"),
        ("SCHED_IDLE", {}, "5"),
        ("SCHED_OTHER", {"nice": 7}, "0"),
    ],
)
@peer_fails("runc", OLD)
@peer_fails("crun", OLD)
def test_scheduler(box: Box, policy: str, more: dict[str, int], line: str) -> None:
    box.process["scheduler"] = {"policy": policy, **more}
    box.args("/bin/cat", "/proc/self/stat")
    fields = box.run().out.split()
    assert fields[40] == line
    if more:
        assert fields[18] == str(more["nice"])


@pytest.mark.parametrize("name", ["IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE", "IOPRIO_CLASS_RT"])
@peer_fails("runc", OLD)
@peer_fails("crun", OLD)
def test_io_priority(box: Box, name: str) -> None:
    box.process["ioPriority"] = {"class": name, "priority": 3}
    out = box.run("ionice -p 1; sh -c 'ionice -p $$'").out
    kind = {"IOPRIO_CLASS_BE": "best-effort", "IOPRIO_CLASS_IDLE": "idle", "IOPRIO_CLASS_RT": "realtime"}[name]
    assert out.count(kind) == 2
    if kind != "idle":
        assert "3" in out


@pytest.mark.parametrize(("domain", "machine"), [("LINUX32", "i[3-6]86|armv8l"), ("LINUX", "x86_64|aarch64")])
def test_personality(box: Box, domain: str, machine: str) -> None:
    if domain == "LINUX32" and box.runtime.name == "runc":
        pytest.xfail("runc 1.1.5 ignores personality")
    box.linux["personality"] = {"domain": domain}
    out = box.run("uname -m").out.strip()
    assert re.fullmatch(machine, out)


@peer_fails("runc", OLD)
@peer_fails("crun", OLD)
def test_memory_policy(box: Box, helpers: Helpers) -> None:
    box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    out = box.run("cat /proc/self/numa_maps | head -n 1").out
    assert "bind" in out.split()[1]


def test_exec_affinity_does_not_touch_init(box: Box) -> None:
    box.process["execCPUAffinity"] = {"initial": "0", "final": "0"}
    allowed = status_of(Path("/proc/self/status").read_text())["Cpus_allowed_list"]
    assert proc_status(box)["Cpus_allowed_list"] == allowed


@peer_fails("runc", "1.1.5 keeps the caller's")
@peer_fails("crun", "keeps the caller's")
def test_cpu_affinity_of_the_caller_is_not_inherited(box: Box) -> None:
    """An engine pinned to one processor must not pin its containers (runc since 1.2)."""
    everything = status_of(Path("/proc/self/status").read_text())["Cpus_allowed_list"]
    box.args("/bin/cat", "/proc/self/status")
    out = box.run(preexec_fn=lambda: os.sched_setaffinity(0, {0})).out
    assert status_of(out)["Cpus_allowed_list"] == everything


@pytest.mark.parametrize("flags", [(), ("--no-new-keyring",)], ids=["new", "kept"])
def test_session_keyring(box: Box, helpers: Helpers, flags: tuple[str, ...]) -> None:
    box.bind(helpers("keyring"), "/keyring", "bind", "ro")
    box.args("/keyring")
    name = box.run(None, *flags).out.strip()
    if flags:
        assert box.id not in name
    else:
        assert name in (f"_ses.{box.id}", box.id)


def test_terminal_false_ignores_the_console_size(box: Box) -> None:
    box.process["consoleSize"] = {"height": 11, "width": 22}
    assert box.run("echo ok").out == "ok\n"


def test_stdio_belongs_to_the_user(box: Box) -> None:
    """An unprivileged process can reopen its own streams (/dev/stdout)."""
    box.process["user"] = {"uid": 1000, "gid": 1000}
    assert box.run("test -w /proc/self/fd/1 && echo ok").out == "ok\n"


@pytest.mark.parametrize("missing", ["/etc/passwd", "/etc/group"])
def test_numeric_users_need_no_database(box: Box, missing: str) -> None:
    (box.rootfs / missing.lstrip("/")).unlink()
    box.process["user"] = {"uid": 77, "gid": 88}
    status = proc_status(box)
    assert status["Uid"].split()[0] == "77"

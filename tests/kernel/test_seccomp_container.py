"""Filters of real containers, through the command line."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.kernel.seccomp_agent import CONTINUE, MKDIR, Agent
from tests.unit.seccomp_profiles import profile as engine_profile

DENY_CHOWN = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chown", "fchownat", "lchown"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}],
}


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_the_program_runs_under_the_filter(box: Box, no_new_privileges: bool) -> None:
    box.process["noNewPrivileges"] = no_new_privileges
    box.linux["seccomp"] = DENY_CHOWN
    result = box.run("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; touch /tmp/a; chown 1 /tmp/a; echo $?")
    assert result.out.split() == ["NoNewPrivs:", str(int(no_new_privileges)), "Seccomp:", "2", "1"]
    assert "Invalid cross-device link" in result.err


def test_a_killed_program_has_sigsys(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    box.process["args"] = ["mkdir", "/tmp/a"]
    assert box.run(check=False).rc == 128 + 31


def test_exec_has_the_filter_too(box: Box) -> None:
    box.linux["seccomp"] = DENY_CHOWN
    box.create_and_start("sleep 100")
    result = box.exec("sh", "-c", "grep ^Seccomp: /proc/self/status; chown 1 /tmp; true")
    assert result.out.split() == ["Seccomp:", "2"]
    assert "Invalid cross-device link" in result.err


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_default_profiles_of_engines(box: Box, engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    box.linux["seccomp"] = engine_profile(engine, tmp_path_factory.getbasetemp() / "debian")
    result = box.run("ls / | grep -c .; cp /bin/busybox /tmp/echo; /tmp/echo copied; reboot -f; echo $?")
    assert result.out.split()[1:] == ["copied", "1"], result.text
    assert "Operation not permitted" in result.err


def test_a_filter_is_compiled_once(box: Box) -> None:
    box.linux["seccomp"] = DENY_CHOWN
    box.process["args"] = ["true"]
    box.run()
    (file,) = (box.runtime.root / ".cache/seccomp").iterdir()
    made = file.stat()
    box.run()
    assert file.stat().st_mtime_ns == made.st_mtime_ns
    assert (made.st_mode & 0o7777, file.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    assert json.loads(box.runtime("list", "--format", "json").out) in ([], None)


def test_an_agent_gets_the_state_and_answers(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": str(box.directory / "agent"),
        "listenerMetadata": "what the agent wants to know",
    }
    box.config["annotations"] = {"org.example": "yes"}
    agent = Agent(
        box.directory / "agent", lambda number, _: (0, -errno.EXDEV, 0) if number == MKDIR else (0, 0, CONTINUE)
    )
    agent.thread.start()
    box.create_and_start("mkdir /tmp/a; ls /tmp; echo end")
    box.wait_for("stopped")
    pid = agent.states[0]["pid"]
    box.exit_status(pid)
    agent.close()
    assert "Invalid cross-device link" in box.err
    assert box.out == "end\n"
    (state,) = agent.states
    assert state["fds"] == ["seccompFd"]
    assert state["metadata"] == "what the agent wants to know"
    assert state["ociVersion"] == box.config["ociVersion"]
    assert state["state"]["id"] == box.id
    assert state["state"]["pid"] == pid
    assert state["state"]["status"] in ("creating", "created", "running")
    assert state["state"]["bundle"] == str(box.path)
    assert state["state"]["annotations"] == {"org.example": "yes"}


def test_crun_s_annotation_names_the_agent(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }
    box.config["annotations"] = {"run.oci.seccomp.receiver": str(box.directory / "agent")}
    agent = Agent(box.directory / "agent", lambda _, __: (0, -errno.EXDEV, 0))
    agent.thread.start()
    result = box.run("mkdir /tmp/a; true")
    agent.close()
    assert "Invalid cross-device link" in result.err


def test_without_its_agent_a_container_does_not_start(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": str(box.directory / "nobody"),
    }
    box.process["args"] = ["true"]
    result = box.run(check=False)
    assert result.rc == 1
    assert "nobody" in result.err
    assert "no such file or directory" in result.err


def test_an_annotation_gives_the_program(box: Box) -> None:
    from base64 import b64encode

    from ocirt.identity.seccomp.compile import compile_filter

    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    program = b64encode(compile_filter(DENY_CHOWN).program).decode()
    box.config["annotations"] = {"run.oci.seccomp_bpf_data": program}
    assert "Invalid cross-device link" in box.run("chown 1 /tmp; true").err


def test_unknown_calls_are_an_error_where_asked(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdirr"], "action": "SCMP_ACT_ERRNO"}],
    }
    box.process["args"] = ["true"]
    assert box.run(check=False).rc == 0
    box.config["annotations"] = {"run.oci.seccomp_fail_unknown_syscall": "1"}
    result = box.run(check=False)
    assert result.rc == 1
    assert '"mkdirr": no architecture has this call' in result.err


def test_dump(box: Box) -> None:
    box.linux["seccomp"] = DENY_CHOWN
    box.write()
    text = box.runtime("seccomp", "dump", box.path).out
    assert re.search(r"^  ERRNO EXDEV: .*\bfchownat\b", text, re.MULTILINE)
    assert "return ERRNO EXDEV" not in text
    assert "return ERRNO EXDEV" in box.runtime("seccomp", "dump", "--bpf", box.path).out


def test_a_recorded_profile_lets_the_program_run_and_nothing_else(box: Box) -> None:
    script = "ls /bin | grep -c busybox; echo a > /tmp/a; mv /tmp/a /tmp/b; (exit 7); exit $?"
    output = box.directory / "profile.json"
    box.write()
    recorded = box.runtime(
        "seccomp", "record", "--bundle", box.path, "--id", box.id, "-o", output, "sh", "-c", script, check=False
    )
    assert (recorded.rc, recorded.out) == (7, "1\n")
    profile = json.loads(output.read_text())
    names = profile["syscalls"][0]["names"]
    assert {"execve", "rename", "openat", "write"} & set(names)
    assert names == sorted(set(names))
    assert not {"mkdir", "mkdirat", "mount", "pidfd_getfd", "ptrace"} & set(names)
    box.linux["seccomp"] = profile
    (box.rootfs / "tmp/b").unlink()
    again = box.run(script, check=False)
    assert (again.rc, again.out, again.err) == (7, "1\n", "")
    denied = box.run("mkdir /tmp/c; echo $?")
    assert denied.out == "1\n"
    assert "not permitted" in denied.err or "not implemented" in denied.err
    # each call of it is needed: it can't be smaller
    for name in ("openat", "rename" if "rename" in names else "renameat2"):
        box.linux["seccomp"]["syscalls"][0]["names"] = [kept for kept in names if kept != name]
        less = box.run(script, check=False)
        assert (less.rc, less.out, less.err) != (7, "1\n", "")


def test_recording_leaves_no_watcher_and_no_file(box: Box) -> None:
    box.write()
    before = set(os.listdir("/tmp"))
    for program in ("/bin/true", "/nowhere"):
        box.runtime("seccomp", "record", "-b", box.path, "-o", "-", program, check=False)
    assert {name for name in set(os.listdir("/tmp")) - before if name.startswith("ocirt-seccomp")} == set()
    watchers = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(box.path).encode() in _read(path)]
    assert watchers == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

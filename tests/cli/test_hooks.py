"""Hooks: when, where, with what, and what their failure does (config.md, POSIX-platform Hooks)."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from tests.harness.box import Box, alive
from tests.harness.leftovers import cgroups
from tests.harness.peers import fails, peer_fails

OUTSIDE = ("prestart", "createRuntime", "poststart", "poststop")
INSIDE = ("createContainer", "startContainer")
ALL = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

#: What a hook writes about itself: state from stdin, its namespaces, directory, environment and arguments.
RECORD = """#!/bin/sh
out=$1
{
    cat; echo
    readlink /proc/self/ns/mnt; readlink /proc/self/ns/pid; readlink /proc/self/ns/net
    pwd
    for a; do printf '%s|' "$a"; done; echo
    echo "$0"
    env | sort | tr '\\n' '|'; echo
    ls /proc/self/fd | tr '\\n' ' '; echo
} > $out.part
mv $out.part $out
"""


class Recorder:
    """Hooks of a box that record how they were called.

    createContainer runs in the container's namespaces by a path of the host, startContainer by a path of the
    container: both find the script and write below `shared`, which is the same directory on both sides.
    """

    def __init__(self, box: Box) -> None:
        self.box = box
        self.shared = box.directory / "shared"
        self.shared.mkdir()
        self.script = box.directory / "hook.sh"
        self.script.write_text(RECORD)
        self.script.chmod(0o755)
        box.bind(self.shared, str(self.shared), "bind", "rw")
        box.bind(self.script, str(self.script), "bind", "ro")
        box.config["hooks"] = {}

    def add(self, kind: str, label: str | None = None, **more: Any) -> None:
        out = self.shared / (label or kind)
        hook = {"path": str(self.script), "args": ["zero", str(out), "two words", ""], **more}
        self.box.config["hooks"].setdefault(kind, []).append(hook)

    def add_shell(self, kind: str, script: str, **more: Any) -> None:
        """A hook that is a shell script; /bin/sh is there on both sides."""
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script], **more}
        self.box.config["hooks"].setdefault(kind, []).append(hook)

    def seen(self, label: str) -> dict[str, Any]:
        lines = (self.shared / label).read_text().split("\n")
        start = next(n for n, line in enumerate(lines) if line.startswith("mnt:"))
        mnt, pid, net, cwd, args, name, env, fds = lines[start : start + 8]
        return {
            "state": json.loads("\n".join(lines[:start])),
            "mnt": mnt, "pid": pid, "net": net, "cwd": cwd, "args": args.split("|")[:-1], "name": name,
            "env": dict(e.split("=", 1) for e in env.split("|") if e), "fds": fds.split(),
        }  # fmt: skip

    def done(self) -> list[str]:
        return sorted(p.name for p in self.shared.iterdir() if not p.name.endswith(".part"))


@pytest.fixture
def hooks(box: Box) -> Recorder:
    return Recorder(box)


def namespaces(pid: int | str) -> tuple[str, str, str]:
    mnt, pidns, net = (os.readlink(f"/proc/{pid}/ns/{name}") for name in ("mnt", "pid", "net"))
    return mnt, pidns, net


@peer_fails("runc", "1.1.5 runs poststart hooks at the end of create")
def test_when_each_kind_runs(box: Box, hooks: Recorder) -> None:
    for kind in ALL:
        hooks.add(kind)
    box.create()
    assert hooks.done() == ["createContainer", "createRuntime", "prestart"]
    box.start()
    box.wait_for("stopped")
    assert hooks.done() == sorted([*ALL[:-1]])
    box.delete()
    assert hooks.done() == sorted(ALL)


@peer_fails("runc", "1.1.5 runs poststart hooks at the end of create")
@peer_fails("crun", "does not wait for the program with the poststart hooks", always=False)
def test_order(box: Box, hooks: Recorder) -> None:
    log = hooks.shared / "order"
    for kind in ALL:
        for number in (1, 2):
            hooks.add_shell(kind, f"echo {kind}{number} >> {log}", env=["PATH=/bin:/usr/bin"])
    box.sh(f"echo process >> {log}; sleep 0.3")
    box.create()
    box.start()
    box.wait_for("stopped")
    box.delete()
    order = log.read_text().split()
    expected = [f"{kind}{n}" for kind in ALL[:4] for n in (1, 2)]
    assert order[:8] == expected
    assert set(order[8:11]) == {"process", "poststart1", "poststart2"}
    assert order.index("poststart1") < order.index("poststart2")
    assert order[11:] == ["poststop1", "poststop2"]


@peer_fails("runc", "1.1.5 runs poststart hooks at the end of create")
@peer_fails("crun", "does not wait for the program", always=False)
def test_poststart_runs_after_the_program_has_begun(box: Box, hooks: Recorder) -> None:
    """runtime.md, lifecycle: the user's program runs, then the poststart hooks."""
    started = hooks.shared / "started"
    script = f"pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'); readlink /proc/$pid/exe > {started}"
    hooks.add_shell("poststart", script, env=["PATH=/bin:/usr/bin"])
    box.args("/bin/sleep", "1000")
    box.create()
    box.start()
    assert started.read_text().strip().endswith("/busybox")


@pytest.mark.parametrize("kind", ALL)
def test_namespaces(box: Box, hooks: Recorder, kind: str) -> None:
    hooks.add(kind)
    box.args("/bin/sleep", "1000")
    box.create()
    inside = namespaces(box.pid)
    box.start()
    box.kill("KILL")
    box.wait_for("stopped")
    box.delete()
    seen = hooks.seen(kind)
    found = (seen["mnt"], seen["pid"], seen["net"])
    assert found == (inside if kind in INSIDE else namespaces("self"))


#: runtime.md, State: `creating` is step 2 of the lifecycle. prestart hooks come after it and are older than the
#: others: what they have always been told, the validation suite demands.
STATUS = {
    "prestart": "created",
    "createRuntime": "creating",
    "createContainer": "creating",
    "startContainer": "created",
    "poststart": "running",
    "poststop": "stopped",
}


@pytest.mark.parametrize(
    "kind",
    [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ],
)
@peer_fails("crun", "ociVersion is 1.0 and, but for poststart and poststop, status and pid are wrong")
def test_state_on_stdin(box: Box, hooks: Recorder, kind: str) -> None:
    if box.runtime.name == "runc":
        pytest.xfail("runc 1.1.5 tells its own ociVersion and another status")
    hooks.add(kind)
    box.config["annotations"] = {"a": "b"}
    box.args("/bin/sleep", "1000")
    box.create()
    pid = box.pid
    box.start()
    box.kill("KILL")
    box.wait_for("stopped")
    box.delete()
    state = hooks.seen(kind)["state"]
    assert state["ociVersion"] == box.config["ociVersion"]
    assert state["id"] == box.id
    assert state["bundle"] == str(box.path)
    assert state["annotations"] == {"a": "b"}
    assert state["status"] == STATUS[kind]
    if kind == "poststop":
        assert state.get("pid", 0) == 0
    else:
        assert state["pid"] == (1 if kind in INSIDE else pid)


@peer_fails("runc", "1.1.5 gives hooks in the container its own descriptors")
def test_args_environment_and_directory(box: Box, hooks: Recorder) -> None:
    """The environment is exactly the hook's: never the container's nor the runtime's (LD_PRELOAD of an image)."""
    for kind in ALL:
        hooks.add(kind, env=["PATH=/bin:/usr/bin", "ONLY=this"])
    box.process["env"] += ["LD_PRELOAD=/evil.so", "FROM=image"]
    environment = {**os.environ, "LEAK": "1"}
    box.create(env=environment)
    box.start(env=environment)
    box.wait_for("stopped")
    box.delete(env=environment)
    for kind in ALL:
        seen = hooks.seen(kind)
        env = {k: v for k, v in seen["env"].items() if k not in ("PWD", "SHLVL", "_", "OLDPWD")}
        assert env == {"PATH": "/bin:/usr/bin", "ONLY": "this"}, kind
        assert seen["args"] == [str(hooks.shared / kind), "two words", ""], kind
        assert set(seen["fds"]) <= {"0", "1", "2", "3"}, kind


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(k, marks=fails("runc crun", "hands on its own environment")) for k in OUTSIDE),
        pytest.param("createContainer", marks=fails("crun", "hands on its own environment")),
        "startContainer",
    ],
)
def test_without_env_the_environment_is_empty(box: Box, hooks: Recorder, kind: str) -> None:
    hooks.add(kind)
    environment = {**os.environ, "LEAK": "1"}
    box.create(env=environment)
    box.start(env=environment)
    box.wait_for("stopped")
    box.delete(env=environment)
    assert "LEAK" not in hooks.seen(kind)["env"]


@pytest.mark.parametrize("kind", OUTSIDE)
def test_directory_of_a_hook_is_not_the_rootfs(box: Box, hooks: Recorder, kind: str) -> None:
    """NVIDIA's toolkit (CVE-2025-23266) was led by files of the image in the hook's directory."""
    hooks.add(kind, env=["PATH=/bin:/usr/bin"])
    box.create()
    box.start()
    box.wait_for("stopped")
    box.delete()
    assert not hooks.seen(kind)["cwd"].startswith(str(box.rootfs))


def test_a_hook_without_args_gets_its_path_as_name(box: Box, hooks: Recorder) -> None:
    script = box.directory / "plain.sh"
    script.write_text(f'#!/bin/sh\necho "$# $0" > {hooks.shared}/plain\n')
    script.chmod(0o755)
    box.config["hooks"]["createRuntime"] = [{"path": str(script)}]
    box.create()
    assert (hooks.shared / "plain").read_text() == f"0 {script}\n"


def nothing_made(box: Box) -> None:
    assert not [e for e in box.runtime.root.iterdir() if not e.name.startswith(".")]
    assert not cgroups(box.id)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_failure_during_create_fails_and_undoes_it(box: Box, hooks: Recorder, kind: str) -> None:
    """…and runs the poststop hooks (runtime.md, lifecycle)."""
    hooks.add_shell(kind, "echo to-stdout; echo to-stderr >&2; exit 17", env=["PATH=/bin:/usr/bin"])
    hooks.add(kind, "later")
    result = box.create(check=False)
    assert result.rc != 0
    assert "17" in result.err
    assert hooks.done() == []
    nothing_made(box)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
@peer_fails("crun", "runtime.md, lifecycle: continues at step 12 with the poststop hooks; 1.8.1 does not")
def test_failure_during_create_runs_the_poststop_hooks(box: Box, hooks: Recorder, kind: str) -> None:
    hooks.add_shell(kind, "exit 17")
    hooks.add("poststop")
    box.create(check=False)
    assert hooks.done() == ["poststop"]


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
@peer_fails("crun", "leaves the hook its own streams")
def test_output_of_a_failed_hook_is_in_the_error(box: Box, hooks: Recorder, kind: str) -> None:
    hooks.add_shell(kind, "echo to-stdout; echo to-stderr >&2; exit 17", env=["PATH=/bin:/usr/bin"])
    result = box.create(check=False)
    if kind == "startContainer":
        result = box.start(check=False)
    text = result.err + box.err + box.out
    assert "to-stdout" in text
    assert "to-stderr" in text


@peer_fails("runc", "1.1.5 hangs on to it")
@peer_fails("crun", "start has succeeded by then")
def test_failure_of_start_container_stops_the_container(box: Box, hooks: Recorder) -> None:
    """runtime.md, lifecycle: start generates an error, the container is stopped, the program has not run."""
    hooks.add_shell("startContainer", "exit 9")
    box.sh(f"echo ran > {hooks.shared}/ran")
    box.create()
    pid = box.pid
    result = box.start(check=False)
    assert result.rc != 0
    assert "9" in result.err
    assert not alive(pid)
    assert hooks.done() == []


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
@peer_fails("runc", "1.1.5 logs it only")
@peer_fails("crun", "1.8.1 logs it only")
def test_failure_during_start_destroys_the_container(box: Box, hooks: Recorder, kind: str) -> None:
    """runtime.md, lifecycle: generate an error, stop the container, continue at step 12: destroy, poststop."""
    hooks.add_shell(kind, "exit 9")
    hooks.add("poststop")
    box.args("/bin/sleep", "1000")
    box.create()
    pid = box.pid
    result = box.start(check=False)
    assert result.rc != 0
    assert not alive(pid)
    assert hooks.done() == ["poststop"]
    nothing_made(box)


@peer_fails("runc", "1.1.5 leaves the remaining hooks out")
def test_failure_of_poststop_is_a_warning_and_the_rest_run(box: Box, hooks: Recorder) -> None:
    hooks.add_shell("poststop", "exit 9")
    hooks.add("poststop", "second")
    box.create()
    box.start()
    box.wait_for("stopped")
    result = box.delete()
    assert hooks.done() == ["second"]
    nothing_made(box)
    if box.runtime.name == "ocirt":
        assert "poststop" in result.err


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer", "poststop", "startContainer"])
@peer_fails("crun", "is ended by SIGPIPE when the hook does not read its state", always=False)
def test_missing_hook_program(box: Box, hooks: Recorder, kind: str) -> None:
    box.config["hooks"][kind] = [{"path": "/nonexistent/hook"}]
    result = box.create(check=False)
    if kind in ("createRuntime", "createContainer"):
        assert result.rc != 0
        assert "/nonexistent/hook" in result.err
        nothing_made(box)
        return
    started = box.start(check=False)
    if kind == "startContainer" and box.runtime.name == "ocirt":
        assert started.rc != 0
        assert "/nonexistent/hook" in started.err
    box.delete("--force")


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_timeout(box: Box, hooks: Recorder, kind: str) -> None:
    hooks.add_shell(kind, "exec sleep 1005", timeout=1, env=["PATH=/bin:/usr/bin"])
    start = time.monotonic()
    result = box.create(check=False)
    assert result.rc != 0
    assert 0.9 < time.monotonic() - start < 10
    nothing_made(box)


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer"])
@peer_fails("runc", "waits for whoever holds the pipes of its hook")
def test_timeout_with_a_grandchild_that_holds_the_pipes(box: Box, hooks: Recorder, kind: str) -> None:
    if box.runtime.name == "crun" and kind == "createRuntime":
        pytest.xfail("crun leaves the grandchild running")
    hooks.add_shell(kind, "sleep 1006 & wait", timeout=1, env=["PATH=/bin:/usr/bin"])
    start = time.monotonic()
    result = box.create(check=False, timeout=15)
    assert result.rc != 0
    assert time.monotonic() - start < 10
    nothing_made(box)


@pytest.mark.parametrize("kind", ["createRuntime", "poststart", "poststop"])
def test_a_daemon_of_a_hook_does_not_hold_the_runtime(box: Box, hooks: Recorder, kind: str) -> None:
    """A hook may leave a process behind, as network helpers do; the runtime waits for the hook alone."""
    pids = hooks.shared / "daemon"
    hooks.add_shell(kind, f"sleep 1007 </dev/null >/dev/null 2>&1 & echo $! > {pids}", env=["PATH=/bin:/usr/bin"])
    box.create()
    box.start()
    box.wait_for("stopped")
    box.delete()
    daemon = int(pids.read_text())
    assert alive(daemon)
    os.kill(daemon, 9)


@pytest.mark.parametrize("kind", ["createRuntime"])
@peer_fails("runc", "waits for the end of the pipes without a limit")
def test_a_daemon_that_keeps_the_pipes_does_not_hold_the_runtime(box: Box, hooks: Recorder, kind: str) -> None:
    pids = hooks.shared / "daemon"
    hooks.add_shell(kind, f"sleep 1008 & echo $! > {pids}", env=["PATH=/bin:/usr/bin"])
    try:
        box.create(timeout=8)
    finally:
        os.kill(int(pids.read_text()), 9)


def test_a_hook_that_reads_nothing_and_one_that_writes_much(box: Box, hooks: Recorder) -> None:
    box.config["annotations"] = {"big": "x" * 300_000}
    hooks.add_shell("createRuntime", "exec true", env=["PATH=/bin:/usr/bin"])
    much = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"
    hooks.add_shell("createRuntime", much, env=["PATH=/bin:/usr/bin"])
    box.create()
    box.start()


def test_create_container_hook_can_mount(box: Box, hooks: Recorder) -> None:
    """It runs before pivot_root, in the mount namespace: what it mounts under the rootfs is there for the program."""
    hooks.add_shell("createContainer", f"mount -t tmpfs none {box.rootfs}/mnt && touch {box.rootfs}/mnt/from-hook",
                    env=["PATH=/bin:/usr/bin:/usr/sbin:/sbin"])  # fmt: skip
    assert box.run("ls /mnt").out == "from-hook\n"
    assert not list((box.rootfs / "mnt").iterdir())


def test_create_runtime_hook_can_set_up_the_network(box: Box, hooks: Recorder) -> None:
    """As nerdctl and older dockers do: from the runtime's namespaces into the one of `pid`."""
    script = (
        "pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'); nsenter -t $pid -n ip link add hook0 type veth peer hook1"
    )
    hooks.add_shell("createRuntime", script, env=["PATH=/bin:/usr/bin:/usr/sbin:/sbin"])
    assert "hook0" in box.run("ls /sys/class/net").out


def test_delete_force_runs_poststop_hooks(box: Box, hooks: Recorder) -> None:
    hooks.add("poststop")
    box.args("/bin/sleep", "1000")
    box.create_and_start()
    box.delete("--force")
    assert hooks.done() == ["poststop"]


def test_run_runs_all_of_them(box: Box, hooks: Recorder) -> None:
    for kind in ALL:
        hooks.add(kind)
    box.run("sleep 0.2")
    assert hooks.done() == sorted(ALL)

"""podman with ocirt, runc and crun: every expectation holds for the three of them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import assert_nothing_left
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.harness.runtime import Result

Run = Callable[..., Result]

TERMINAL = ("script", "--quiet", "--return", "--command")


class Podman:
    """podman with one of the runtimes."""

    def __init__(self, space: Space, runtime: str) -> None:
        self.space = space
        self.runtime = runtime
        self.made: list[str] = []

    def argv(self, *arguments: str) -> list[str]:
        return ["podman", "--runtime", self.runtime, *arguments]

    def __call__(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        __tracebackhide__ = True
        return self.space(*self.argv(*arguments), rc=rc, **options)

    def run(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        """`run --rm --network none`"""
        __tracebackhide__ = True
        return self("run", "--rm", "--network", "none", *arguments, rc=rc, **options)

    def background(self, name: str, *arguments: str) -> str:
        """`run -d`; the full id."""
        __tracebackhide__ = True
        id = self("run", "--detach", "--network", "none", "--name", name, *arguments).out.strip()
        self.made.append(id)
        return id

    def in_terminal(self, *arguments: str, rc: int | None = 0) -> Result:
        """Run with a terminal as stdin, stdout and stderr."""
        __tracebackhide__ = True
        return self.space(*TERMINAL, " ".join(self.argv(*arguments)), "/dev/null", rc=rc)

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name).out)[0]
        return found

    def status(self, name: str) -> str:
        return str(self.inspect(name)["State"]["Status"])


@pytest.fixture
def podman(podman_space: Space, runtime_name: str) -> Iterator[Podman]:
    podman = Podman(podman_space, runtime_name)
    yield podman
    for id in podman.made:
        podman("rm", "--force", "--time", "0", "--ignore", id)
    for id in podman.made:
        assert_nothing_left(podman_space, id)


SLEEP = (NAME, "sleep", "1000")


# run


def test_output_and_status(podman: Podman) -> None:
    result = podman.run(NAME, "sh", "-c", "echo out; echo err >&2; exit 7", rc=7)
    assert (result.out, result.err) == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "rc", "pattern"),
    [
        (["/nonexistent"], 127, "no such file or directory|executable file"),
        (["nonexistent"], 127, "executable file"),
        (["/etc"], 126, "permission denied|operation not permitted|is a directory"),
        (["/etc/passwd"], 126, "permission denied"),
    ],
)
def test_program_that_cannot_run(podman: Podman, command: list[str], rc: int, pattern: str) -> None:
    """podman takes 126 and 127 from the text of the error."""
    assert re.search(pattern, podman.run(NAME, *command, rc=rc).err, re.IGNORECASE)


def test_by_path_without_json_log(podman: Podman) -> None:
    """podman knows a runtime given by an absolute path by the last part of it only."""
    path = podman.space("sh", "-c", f"command -v {podman.runtime}").out.strip()
    podman.space("ln", "-sf", path, "/usr/local/bin/another-name")
    podman.runtime = "/usr/local/bin/another-name"
    assert podman.run(NAME, "echo", "hello").out == "hello\n"
    assert re.search("no such file or directory|executable file", podman.run(NAME, "/nope", rc=127).err)


def test_signal_ends_it(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    podman("kill", "--signal", "USR1", name)  # the first process of a PID namespace ignores what it has no handler for
    assert podman.status(name) == "running"
    podman("kill", "--signal", "9", name)
    assert podman("wait", name).out.strip() == "137"


def test_standard_input(podman: Podman) -> None:
    data = os.urandom(300_000).hex().encode()
    assert podman.run("--interactive", NAME, "cat", stdin=data).out.encode() == data


def test_terminal(podman: Podman) -> None:
    result = podman.in_terminal(
        *f"run --rm --tty --network none {NAME} sh -c 'tty; stty size; exit 3'".split(" "), rc=3
    )
    assert "/dev/pts/0" in result.out or "/dev/console" in result.out


def test_user_and_groups(podman: Podman) -> None:
    assert podman.run("--user", "1000:2000", "--group-add", "77", NAME, "id").out.split()[:2] == [
        "uid=1000(user)",
        "gid=2000(more)",
    ]


def test_private_namespaces(podman: Podman) -> None:
    links = "for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done"
    inside = podman.run("--cgroupns", "private", NAME, "sh", "-c", links).out.split()
    outside = podman.space("sh", "-c", links).out.split()
    assert len(inside) == 6
    assert not set(inside) & set(outside)


def test_read_only(podman: Podman) -> None:
    script = "touch /x 2>/dev/null && echo root; touch /tmp/x && echo tmp; touch /scratch/x && echo scratch"
    assert podman.run("--read-only", "--tmpfs", "/scratch", NAME, "sh", "-c", script).out == "tmp\nscratch\n"


def test_volumes(podman: Podman) -> None:
    shared = podman.space.directory / "volume"
    shared.mkdir(exist_ok=True)
    (shared / "file").write_text("here")
    assert podman.run("--volume", f"{shared}:/data:ro", NAME, "cat", "/data/file").out == "here"
    assert podman.run("--volume", f"{shared}:/data:ro", NAME, "touch", "/data/x", rc=1).rc == 1
    script = "grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6"
    options = podman.run("--volume", f"{shared}:/data:nosuid,noexec,nodev", NAME, "sh", "-c", script).out
    assert {"nosuid", "noexec", "nodev"} <= set(options.strip().split(","))


def test_limits(podman: Podman) -> None:
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null"
    script += " || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"
    got = podman.run("--memory", "64m", "--pids-limit", "33", NAME, "sh", "-c", script).out.split()
    assert got == [str(64 << 20), "33"]


def test_sysctl_device_and_ulimit(podman: Podman) -> None:
    flags = (
        "--sysctl",
        "net.ipv4.ip_default_ttl=77",
        "--device",
        "/dev/zero:/dev/nought:r",
        "--ulimit",
        "nofile=99:99",
        "--ulimit",
        "nproc=999:999",
    )
    script = "cat /proc/sys/net/ipv4/ip_default_ttl; head -c 3 /dev/nought | wc -c; ulimit -n"
    assert podman.run(*flags, NAME, "sh", "-c", script).out.split() == ["77", "3", "99"]


def test_secret(podman: Podman, name: str) -> None:
    file = podman.space.directory / name
    file.write_text("hush")
    podman("secret", "create", name, str(file))
    try:
        assert podman.run("--secret", name, NAME, "cat", f"/run/secrets/{name}").out == "hush"
    finally:
        podman("secret", "rm", name)


def test_capabilities(podman: Podman) -> None:
    script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status"
    dropped = podman.run("--cap-drop", "all", "--cap-add", "net_raw", NAME, "sh", "-c", script).out.split()
    assert dropped[1::2] == ["0" * 16, f"{1 << 13:016x}", f"{1 << 13:016x}", f"{1 << 13:016x}", "0" * 16]
    as_user = podman.run("--user", "1000", NAME, "sh", "-c", script).out.split()
    assert as_user[3] == as_user[5] == "0" * 16


def test_seccomp_profile(podman: Podman) -> None:
    profile = podman.space.directory / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    result = podman.run("--security-opt", f"seccomp={profile}", NAME, "mkdir", "/x", rc=1)
    assert "Function not implemented" in result.err


def test_host_pid_namespace(podman: Podman, name: str) -> None:
    """Without a PID namespace of its own podman stops the container by `kill --all`."""
    podman.background(name, "--pid", "host", NAME, "sh", "-c", "sleep 1000 & sleep 1000")
    podman("stop", "--time", "2", name)
    assert podman.status(name) == "exited"


def test_user_namespaces(podman: Podman) -> None:
    mapped = podman.run("--uidmap", "0:200000:5000", NAME, "cat", "/proc/self/uid_map").out.split()
    assert mapped == ["0", "200000", "5000"]
    auto = podman.run("--userns", "auto", NAME, "cat", "/proc/self/uid_map").out.split()
    assert auto[0] == "0"
    assert int(auto[1]) >= 2147483647


def test_preserve_fds(podman: Podman) -> None:
    command = " ".join(
        podman.argv("run", "--rm", "--network", "none", "--preserve-fds", "1", NAME, "cat", "/proc/self/fd/3")
    )
    file = podman.space.directory / "preserved"
    file.write_text("kept")
    assert podman.space("sh", "-c", f"exec 3<{file}; {command}").out == "kept"


def test_without_cgroups(podman: Podman) -> None:
    if podman.runtime == "runc":
        assert "not compatible with" in podman.run("--cgroups", "disabled", NAME, "true", rc=125).err
        return
    own = podman.space("cat", "/proc/self/cgroup").out
    assert sorted(
        podman.run("--cgroups", "disabled", "--cgroupns", "host", NAME, "cat", "/proc/self/cgroup").out.split()
    ) == sorted(own.split())


def test_bridge_network(podman: Podman) -> None:
    script = "ip -4 addr show eth0 | grep -c 'inet 10.88.'"
    assert podman("run", "--rm", NAME, "sh", "-c", script).out.strip() == "1"


def test_info(podman: Podman) -> None:
    info = json.loads(podman("info", "--format", "json").out)["host"]["ociRuntime"]
    assert info["name"] == podman.runtime
    assert info["version"].startswith(f"{podman.runtime} version ")


# a container's life


def test_life(podman: Podman, name: str) -> None:
    """create, start, pause, unpause, restart, update, stop, start again, kill, rm: status after each."""
    podman.made.append(
        podman(
            "create",
            "--network",
            "none",
            "--name",
            name,
            NAME,
            "sh",
            "-c",
            "trap 'exit 5' TERM; while :; do sleep 0.1; done",
        ).out.strip()
    )
    seen = [podman.status(name)]
    for command in (
        ["start", name],
        ["pause", name],
        ["unpause", name],
        ["restart", "--time", "5", name],
        ["stop", "--time", "5", name],
        ["start", name],
        ["kill", "--signal", "KILL", name],
    ):
        podman(*command)
        if command[0] == "kill":
            podman("wait", name)
        seen.append(podman.status(name))
        if command[0] == "stop":
            assert podman.inspect(name)["State"]["ExitCode"] == 5
    assert seen == ["created", "running", "paused", "running", "running", "exited", "running", "exited"]
    assert podman.inspect(name)["State"]["ExitCode"] == 137
    podman("rm", name)
    assert "no such container" in podman("rm", name, rc=1).err


def test_wrong_states(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    podman("pause", name)
    assert podman("exec", name, "true", rc=255).rc == 255
    podman("unpause", name)
    podman("kill", name)
    podman("wait", name)
    assert podman("kill", name, rc=125).rc == 125
    assert podman("exec", name, "true", rc=255).rc == 255


def test_stop_by_kill(podman: Podman, name: str) -> None:
    """What does not listen to TERM is killed when the time is over."""
    podman.background(name, *SLEEP)
    podman("stop", "--time", "1", name)
    assert podman.inspect(name)["State"]["ExitCode"] == 137


def test_update(podman: Podman, name: str) -> None:
    """podman 4.3's update changes the CPU shares and memory by `update --resources`."""
    podman.background(name, *SLEEP)
    podman("update", "--memory", "80m", "--cpu-shares", "300", name)
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null"
    script += " || cat /sys/fs/cgroup/memory.max"
    assert podman("exec", name, "sh", "-c", script).out.split()[0] == str(80 << 20)


def test_top_and_stats(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    assert "sleep 1000" in podman("top", name).out
    stats = json.loads(podman("stats", "--no-stream", "--format", "json", name).out)[0]
    assert stats["name"] == name
    assert int(stats["pids"]) == 1


def test_logs_and_attach(podman: Podman, name: str) -> None:
    podman.background(name, "--interactive", NAME, "sh", "-c", "echo first; read line; echo got $line; exit 4")
    attached = podman("attach", name, stdin=b"word\n", rc=None)
    assert "got word" in attached.out
    assert podman("wait", name).out.strip() == "4"
    assert podman("logs", name).out == "first\ngot word\n"


def test_health_check(podman: Podman, name: str) -> None:
    flags = ("--health-cmd", "test -e /healthy", "--health-interval", "disable", "--health-retries", "1")
    podman.background(name, *flags, *SLEEP)
    assert podman("healthcheck", "run", name, rc=1).rc == 1
    podman("exec", name, "touch", "/healthy")
    podman("healthcheck", "run", name)


def test_init(podman: Podman) -> None:
    """`--init` puts a small init of the host in front of the program: any static program will do."""
    busybox = podman.space.root / "usr/local/bin/stand-in-init"
    busybox.write_bytes(Path("/bin/busybox").read_bytes())
    busybox.chmod(0o755)
    result = podman.run(
        "--init", "--init-path", "/usr/local/bin/stand-in-init", NAME, "cat", "/proc/1/cmdline", rc=None
    )
    assert result.rc == 127  # busybox knows no applet of that name; but it was started
    assert "applet not found" in result.text


# exec


def test_exec(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    assert podman("exec", name, "sh", "-c", "echo out; echo err >&2; exit 9", rc=9).text == "out\nerr\n"
    assert podman(
        "exec", "--user", "1000", "--workdir", "/tmp", "--env", "A=b", name, "sh", "-c", "id -u; pwd; echo $A"
    ).out.split() == ["1000", "/tmp", "b"]
    assert podman("exec", "--interactive", name, "cat", stdin=b"data").out == "data"
    assert podman("exec", name, "/nope", rc=127).rc == 127
    assert podman("exec", name, "/etc", rc=126).rc == 126
    assert podman("exec", name, "sh", "-c", "kill -9 $$", rc=137).rc == 137


def test_exec_privileged(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    own = int(podman.space("sh", "-c", "grep CapBnd /proc/self/status").out.split()[1], 16)
    got = podman("exec", "--privileged", name, "grep", "CapEff", "/proc/self/status").out.split()[1]
    assert int(got, 16) == own
    plain = podman("exec", name, "grep", "CapEff", "/proc/self/status").out.split()[1]
    assert int(plain, 16) < own


def test_exec_detached(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    podman("exec", "--detach", name, "sh", "-c", "echo done > /done; sleep 1000")
    end = time.monotonic() + 10
    while podman("exec", name, "cat", "/done", rc=None).out != "done\n":
        assert time.monotonic() < end
        time.sleep(0.1)


def test_exec_terminal(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    result = podman.in_terminal("exec", "--tty", "--interactive", name, "sh", "-c", "'tty; exit 6'", rc=6)
    assert "/dev/pts/" in result.out


# several containers


def test_pod(podman: Podman, name: str) -> None:
    """Containers of a pod share what the infra container has; podman needs an image for that one."""
    podman(
        "pod",
        "create",
        "--name",
        name,
        "--infra-image",
        NAME,
        "--infra-command",
        "/bin/sleep 1000",
        "--network",
        "none",
    )
    try:
        first = podman("run", "--detach", "--pod", name, *SLEEP).out.strip()
        second = podman("run", "--detach", "--pod", name, *SLEEP).out.strip()
        links = [podman("exec", id, "readlink", "/proc/self/ns/net").out for id in (first, second)]
        assert links[0] == links[1]
        podman("pod", "pause", name)
        assert podman.status(first) == "paused"
        podman("pod", "unpause", name)
        podman("pod", "stop", "--time", "0", name)
        assert podman.status(second) == "exited"
    finally:
        podman("pod", "rm", "--force", "--time", "0", name)


def test_play_kube(podman: Podman, name: str) -> None:
    manifest = podman.space.directory / "kube.yaml"
    manifest.write_text(f"""
apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  containers:
  - name: one
    image: {NAME}
    imagePullPolicy: Never
    command: ["/bin/sleep", "1000"]
    resources: {{limits: {{memory: 50Mi}}}}
    securityContext: {{readOnlyRootFilesystem: true}}
""")
    infra = podman.space.root / "etc/containers/containers.conf.d/60-infra.conf"
    infra.write_text(f'[engine]\ninfra_image = "{NAME}"\n')
    try:
        podman("play", "kube", "--network", "none", str(manifest))
        assert podman("exec", f"{name}-one", "/bin/touch", "/x", rc=1).rc == 1
    finally:
        podman("play", "kube", "--down", str(manifest), rc=None)
        infra.unlink()


@pytest.mark.timeout(500)
def test_hundred(podman_space: Space, name: str) -> None:
    """100 containers, 8 at a time, started and stopped: none lost, nothing left behind."""
    podman = Podman(podman_space, "ocirt")

    def one(number: int) -> str:
        id = podman("run", "--detach", "--network", "none", "--name", f"{name}n{number}", *SLEEP).out.strip()
        assert podman("exec", id, "echo", str(number)).out == f"{number}\n"
        podman("rm", "--force", "--time", "0", id)
        return id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(one, range(100)))
    assert len(set(ids)) == 100
    assert name not in podman("ps", "--all").out
    for id in ids:
        assert_nothing_left(podman.space, id)


def flat(value: Any, path: str = "") -> set[str]:
    """Every leaf of a JSON value as `path=value`."""
    if isinstance(value, dict):
        return {line for key, inner in value.items() for line in flat(inner, f"{path}.{key}")}
    if isinstance(value, list):
        return {line for inner in value for line in flat(inner, f"{path}[]")}  # podman's order varies
    return {f"{path}={value!r}"}


def test_inspect_is_the_same(podman_space: Space, name: str) -> None:
    """What podman tells of a container does not depend on the runtime, names and times left out."""
    seen = {}
    for runtime in ("ocirt", "runc", "crun"):
        podman = Podman(podman_space, runtime)
        id = podman.background(name, "--memory", "64m", *SLEEP)
        text = json.dumps(podman.inspect(name), sort_keys=True)
        podman("rm", "--force", "--time", "0", id)
        for own, common in ((id, "ID"), (runtime, "RUNTIME"), (name, "NAME"), (id[:12], "ID")):
            text = text.replace(own, common)
        text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)", "TIME", text)
        text = re.sub(r"storage/overlay/[0-9a-f]+|/l/[A-Z0-9]+", "LAYER", text)
        text = re.sub(r'"(Pid|ConmonPid)": \d+', r'"\1": 0', text)
        seen[runtime] = flat(json.loads(text))
    assert not seen["ocirt"].symmetric_difference(seen["runc"])
    assert not seen["ocirt"].symmetric_difference(seen["crun"])


def test_state_directory(podman: Podman, name: str, tmp_path: Path) -> None:
    """`runtime state` of a container that podman runs: same keys, same status as podman says."""
    id = podman.background(name, *SLEEP)
    state = json.loads(podman.space(podman.runtime, "state", id).out)
    assert state["id"] == id
    assert state["status"] == "running"
    assert state["pid"] == podman.inspect(name)["State"]["Pid"]

"""podman's containers that live on: states, exec, pods, many at once; with ocirt, runc and crun, and without root."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines.conftest import assert_nothing_left
from tests.engines.images import NAME
from tests.engines.normalised import normalised
from tests.engines.podman import SLEEP, Podman
from tests.engines.space import Census, Space


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
        if command[0].endswith("pause") and not podman.limits:
            seen.append("paused" if command[0] == "pause" else "running")
            continue
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


@pytest.mark.usefixtures("cgroups")
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


@pytest.mark.usefixtures("cgroups")
def test_update(podman: Podman, name: str) -> None:
    """podman 4.3's update changes the CPU shares and memory by `update --resources`."""
    podman.background(name, *SLEEP)
    podman("update", "--memory", "80m", "--cpu-shares", "300", name)
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null"
    script += " || cat /sys/fs/cgroup/memory.max"
    assert podman("exec", name, "sh", "-c", script).out.split()[0] == str(80 << 20)


def test_top(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
    assert "sleep 1000" in podman("top", name).out


@pytest.mark.usefixtures("cgroups")
def test_stats(podman: Podman, name: str) -> None:
    podman.background(name, *SLEEP)
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
    command = ("grep", "CapBnd", "/proc/self/status")
    own = int((podman("unshare", *command) if podman.rootless else podman.space(*command)).out.split()[1], 16)
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
        if podman.limits:
            podman("pod", "pause", name)
            assert podman.status(first) == "paused"
            podman("pod", "unpause", name)
        podman("pod", "stop", "--time", "0", name)
        assert podman.status(second) == "exited"
    finally:
        podman("pod", "rm", "--force", "--time", "0", name)


@pytest.mark.usefixtures("cgroups")
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
    podman.run(NAME, "true")  # what there is once for all
    census = Census(podman_space)

    def one(number: int) -> str:
        id = podman("run", "--detach", "--network", "none", "--name", f"{name}n{number}", *SLEEP).out.strip()
        assert podman("exec", id, "echo", str(number)).out == f"{number}\n"
        podman("rm", "--force", "--time", "0", id)
        return id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(one, range(100)))
    assert len(set(ids)) == 100
    assert name not in podman("ps", "--all").out
    assert not census.new()
    for id in ids:
        assert_nothing_left(podman.space, id)


def test_inspect_is_the_same(podman_space: Space, name: str) -> None:
    """What podman tells of a container does not depend on the runtime, names and times left out."""
    seen = {}
    for runtime in ("ocirt", "runc", "crun"):
        podman = Podman(podman_space, runtime)
        id = podman.background(name, "--memory", "64m", *SLEEP)
        inspected = podman.inspect(name)
        podman("rm", "--force", "--time", "0", id)
        seen[runtime] = normalised(inspected, id, runtime, name)
    assert not seen["ocirt"].symmetric_difference(seen["runc"])
    assert not seen["ocirt"].symmetric_difference(seen["crun"])


def test_state(podman: Podman, name: str) -> None:
    """`runtime state` of a container that podman runs: same keys, same status as podman says."""
    id = podman.background(name, *SLEEP)
    command = (podman.runtime, "state", id)
    state = json.loads((podman("unshare", *command) if podman.rootless else podman.space(*command)).out)
    assert state["id"] == id
    assert state["status"] == "running"
    assert state["pid"] == podman.inspect(name)["State"]["Pid"]

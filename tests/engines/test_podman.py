"""podman run with ocirt, runc and crun, and of an ordinary user: every expectation holds for all of them."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.engines.images import NAME
from tests.engines.podman import SLEEP, Podman


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


@pytest.mark.usefixtures("cgroups")
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


@pytest.mark.usefixtures("cgroups")
def test_host_pid_namespace(podman: Podman, name: str) -> None:
    """Without a PID namespace of its own podman stops the container by `kill --all`."""
    podman.background(name, "--pid", "host", NAME, "sh", "-c", "sleep 1000 & sleep 1000")
    podman("stop", "--time", "2", name)
    assert podman.status(name) == "exited"


def test_user_namespaces(podman: Podman) -> None:
    """Without root, the numbers are those of the user's own namespace."""
    first = 5 if podman.rootless else 200000
    mapped = podman.run("--uidmap", f"0:{first}:5000", NAME, "cat", "/proc/self/uid_map").out.split()
    assert mapped == ["0", str(first), "5000"]
    auto = podman.run("--userns", "auto", NAME, "cat", "/proc/self/uid_map").out.split()
    assert auto[0] == "0"
    assert int(auto[1]) >= (1 if podman.rootless else 2147483647)


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
    groups = podman.run("--cgroups", "disabled", "--cgroupns", "host", NAME, "cat", "/proc/self/cgroup").out
    assert "libpod" not in groups
    if not podman.rootless:  # podman takes its own process to another group, otherwise
        assert sorted(groups.split()) == sorted(podman.space("cat", "/proc/self/cgroup").out.split())


def test_network(podman: Podman) -> None:
    """A bridge, or slirp4netns by the device node of this space."""
    device, net = ("tap0", "10.0.2.") if podman.rootless else ("eth0", "10.88.")
    assert f"inet {net}" in podman("run", "--rm", NAME, "ip", "-4", "addr", "show", device).out


def test_info(podman: Podman) -> None:
    info = json.loads(podman("info", "--format", "json").out)["host"]["ociRuntime"]
    assert info["name"] == podman.runtime
    assert info["version"].startswith(f"{podman.runtime} version ")

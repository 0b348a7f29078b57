"""Docker with ocirt, runc and crun added as runtimes.

dockerd is taken from PATH, or from where OCIRT_TEST_DOCKER says that Debian's docker.io was unpacked to
(`apt-get download docker.io && dpkg -x docker.io_*.deb DIRECTORY`: so no service is installed).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import CONTRIB, assert_nothing_left, make_space, need, remove_cgroup
from tests.engines.images import NAME
from tests.engines.normalised import keys, normalised
from tests.engines.space import Census, Space
from tests.harness.runtime import Result


def programs() -> tuple[str, str]:
    """(dockerd, docker)."""
    unpacked = os.environ.get("OCIRT_TEST_DOCKER")
    path = f"{unpacked}/usr/sbin:{unpacked}/usr/bin" if unpacked else "/usr/sbin:/usr/bin"
    found = shutil.which("dockerd", path=path), shutil.which("docker", path=path)
    if not all(found):
        pytest.fail(
            "the tests of Docker need Debian's docker.io: install it, or unpack it (apt-get download, dpkg -x)"
            " and let OCIRT_TEST_DOCKER name that directory",
            pytrace=False,
        )
    return found  # type: ignore[return-value]


#: A runtime that daemon.json does not name: those of both are known then.
ADDED = ("--add-runtime", "added=/usr/local/bin/ocirt")


@pytest.fixture(scope="module")
def docker_space(program: str, image: tuple[Path, Path]) -> Iterator[Space]:
    daemon, client = programs()
    need("containerd")
    space = make_space("docker", program)
    try:
        space.write("/usr/local/bin/docker", f'#!/bin/sh\nexec {client} "$@"\n', 0o755)
        config = json.loads((CONTRIB / "docker/daemon.json").read_text())
        config["runtimes"] |= {
            "crun": {"path": "/usr/bin/crun"},
            "arguments": {"path": "/usr/local/bin/noting", "runtimeArgs": ["--debug"]},
        }
        script = '#!/bin/sh\necho "$@" >> /run/arguments.log\nexec /usr/local/bin/ocirt "$@"\n'
        space.write("/usr/local/bin/noting", script, 0o755)
        space.write("/etc/docker/daemon.json", json.dumps(config))
        flags = ("--exec-opt", "native.cgroupdriver=cgroupfs", "--bip", "172.30.99.1/24", *ADDED)
        log = (space.directory / "dockerd.log").open("ab")
        process = space.popen(daemon, *flags, stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + 60
        while space("docker", "version", rc=None).rc:
            assert process.poll() is None, (space.directory / "dockerd.log").read_text()[-3000:]
            assert time.monotonic() < end, (space.directory / "dockerd.log").read_text()[-3000:]
            time.sleep(0.2)
        space("docker", "import", image[0], NAME)
        yield space
        process.kill()
        process.wait()
    finally:
        space.close()
        remove_cgroup("docker")


class Docker:
    """docker with one of the runtimes."""

    def __init__(self, space: Space, runtime: str) -> None:
        self.space = space
        self.runtime = runtime
        self.made: list[str] = []

    def __call__(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        __tracebackhide__ = True
        return self.space("docker", *arguments, rc=rc, **options)

    def run(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        __tracebackhide__ = True
        return self("run", "--rm", "--runtime", self.runtime, "--network", "none", *arguments, rc=rc, **options)

    def background(self, name: str, *arguments: str) -> str:
        __tracebackhide__ = True
        given = ("--detach", "--runtime", self.runtime, "--network", "none", "--name", name)
        id = self("run", *given, *arguments).out.strip()
        self.made.append(id)
        return id

    def status(self, name: str) -> str:
        return str(json.loads(self("inspect", name).out)[0]["State"]["Status"])


@pytest.fixture
def docker(docker_space: Space, runtime_name: str) -> Iterator[Docker]:
    docker = Docker(docker_space, runtime_name)
    yield docker
    for id in docker.made:
        docker("rm", "--force", id, rc=None)
    for id in docker.made:
        assert_nothing_left(docker_space, id)


SLEEP = (NAME, "sleep", "1000")
TERMINAL = ("script", "--quiet", "--return", "--command")


def test_output_and_status(docker: Docker) -> None:
    result = docker.run(NAME, "sh", "-c", "echo out; echo err >&2; exit 7", rc=7)
    assert (result.out, result.err) == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "rc", "crun", "pattern"),
    [
        ("/nonexistent", 127, 125, "no such file or directory"),
        ("nonexistent", 127, 125, "executable file"),
        ("/etc", 126, 125, "permission denied|operation not permitted|is a directory"),
        ("/etc/passwd", 126, 125, "permission denied"),
    ],
)
def test_program_that_cannot_run(docker: Docker, command: str, rc: int, crun: int, pattern: str) -> None:
    """Docker takes 126 and 127 from the text of the error; crun's errors tell it nothing."""
    error = docker.run(NAME, command, rc=crun if docker.runtime == "crun" else rc).err
    assert re.search(pattern, error, re.IGNORECASE)


def test_input_and_terminal(docker: Docker) -> None:
    assert docker.run("--interactive", NAME, "cat", stdin=b"data").out == "data"
    command = f"docker run --rm --tty --runtime {docker.runtime} --network none {NAME} sh -c 'tty; exit 3'"
    assert "/dev/" in docker.space("script", "--quiet", "--return", "--command", command, "/dev/null", rc=3).out


def test_life(docker: Docker, name: str) -> None:
    docker.background(name, NAME, "sh", "-c", "trap 'exit 5' TERM; echo started; while :; do sleep 0.1; done")
    seen = [docker.status(name)]
    for command in (["pause", name], ["unpause", name], ["restart", name], ["stop", name], ["start", name]):
        docker(*command)
        seen.append(docker.status(name))
    assert seen == ["running", "paused", "running", "running", "exited", "running"]
    docker("kill", name)
    assert docker("wait", name).out.strip() == "137"
    assert docker("logs", name).out.splitlines() == ["started"] * 3


def test_exec(docker: Docker, name: str) -> None:
    docker.background(name, *SLEEP)
    result = docker("exec", name, "sh", "-c", "echo out; echo err >&2; exit 9", rc=9)
    assert (result.out, result.err) == ("out\n", "err\n")
    script = "id -u; pwd; echo $A"
    flags = ("--user", "1000", "--workdir", "/tmp", "--env", "A=b")
    assert docker("exec", *flags, name, "sh", "-c", script).out.split() == ["1000", "/tmp", "b"]
    docker("exec", name, "/nope", rc=126)  # of every failed exec, in this version
    docker("exec", "--detach", name, "sleep", "1000")
    assert docker("top", name).out.count("sleep 1000") == 2


def test_limits_and_stats(docker: Docker, name: str) -> None:
    docker.background(name, "--memory", "64m", "--pids-limit", "33", "--cpus", "0.5", *SLEEP)
    docker("update", "--memory", "80m", "--memory-swap", "80m", name)
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name).out)
    assert stats["MemUsage"].endswith("80MiB")
    assert stats["PIDs"] == "1"


def test_out_of_memory(docker: Docker, name: str) -> None:
    flags = ("--memory", "32m", "--memory-swap", "32m")
    docker.background(name, *flags, NAME, "tail", "-c", "300000000", "/dev/zero")
    assert docker("wait", name).out.strip() == "137"


def test_network_and_mounts(docker: Docker) -> None:
    given = ("run", "--rm", "--runtime", docker.runtime)
    assert "172.30.99." in docker(*given, NAME, "ip", "-4", "addr", "show", "eth0").out
    file = docker.space.directory / "volume-file"
    file.write_text("here")
    assert docker(*given, "--volume", f"{file}:/file:ro", "--read-only", NAME, "cat", "/file").out == "here"


def test_what_docker_itself_refuses(docker: Docker, name: str) -> None:
    """125 is of Docker or of the runtime before the program is looked for."""
    assert "no-such-runtime" in docker("run", "--rm", "--runtime", "no-such-runtime", NAME, "true", rc=125).err
    error = docker.run("--workdir", "/etc/passwd", NAME, "true", rc=None)
    assert error.rc in (125, 126, 127)
    assert re.search("not a directory", error.err, re.IGNORECASE)
    failed = docker("run", "--detach", "--runtime", docker.runtime, "--name", name, NAME, "/nonexistent", rc=None)
    assert failed.rc == (125 if docker.runtime == "crun" else 127)
    assert docker.status(name) == "created"
    docker("rm", name)


def test_terminal_and_states_of_exec(docker: Docker, name: str) -> None:
    id = docker.background(name, "--read-only", "--tmpfs", "/scratch", *SLEEP)
    assert "sleep 1000" in docker("top", id).out
    docker("exec", id, "touch", "/scratch/x")
    docker("exec", id, "touch", "/x", rc=1)
    in_terminal = f"docker exec --tty --interactive {name} sh -c 'tty; stty size; exit 6'"
    assert "/dev/pts/" in docker.space(*TERMINAL, in_terminal, "/dev/null", rc=6).out
    docker("pause", id)
    assert docker("exec", id, "true", rc=1).rc == 1
    docker("unpause", id)
    docker("kill", "--signal", "USR1", id)
    docker("stop", "--time", "1", id)
    assert json.loads(docker("inspect", id).out)[0]["State"]["ExitCode"] in (137, 138, 143)


def test_security_and_shared_namespaces(docker: Docker) -> None:
    script = "id -u; grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status"
    flags = ("--user", "1000", "--cap-drop", "all", "--security-opt", "no-new-privileges")
    words = docker.run(*flags, NAME, "sh", "-c", script).out.split()
    assert words == ["1000", "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"]
    host = docker.run("--pid", "host", "--ipc", "host", "--uts", "host", NAME, "readlink", "/proc/self/ns/pid").out
    assert host == docker.space("readlink", "/proc/self/ns/pid").out


def test_inspect_and_stats_are_the_same(docker_space: Space, name: str) -> None:
    """What Docker tells of a container does not depend on the runtime."""
    told, stats = {}, {}
    for runtime in ("ocirt", "runc", "crun"):
        docker = Docker(docker_space, runtime)
        id = docker.background(name, "--memory", "64m", *SLEEP)
        told[runtime] = normalised(json.loads(docker("inspect", name).out)[0], id, runtime, name)
        request = ("--unix-socket", "/run/docker.sock", f"http://d/containers/{id}/stats?stream=0&one-shot=1")
        stats[runtime] = keys(json.loads(docker_space("curl", "--silent", *request).out))
        docker("rm", "--force", id)
    assert told["ocirt"] == told["runc"] == told["crun"]
    assert stats["ocirt"] == stats["runc"] == stats["crun"]


@pytest.mark.timeout(300)
def test_many(docker_space: Space, name: str) -> None:
    """24 containers, 8 at a time, started and stopped: none lost, nothing left behind."""
    docker = Docker(docker_space, "ocirt")
    docker.run(NAME, "true")  # what there is once for all
    census = Census(docker_space)

    def one(number: int) -> str:
        given = ("run", "--detach", "--runtime", "ocirt", "--network", "none", "--name", f"{name}n{number}")
        id = docker(*given, *SLEEP).out.strip()
        assert docker("exec", id, "echo", str(number)).out == f"{number}\n"
        docker("rm", "--force", id)
        return id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(one, range(24)))
    assert len(set(ids)) == 24
    left = census.new(ignore="/run/docker/netns/")  # mount points that dockerd removes once a minute
    assert not left
    for id in ids:
        assert_nothing_left(docker_space, id)


def test_features_are_asked_for(docker_space: Space) -> None:
    """dockerd asks each runtime that has no arguments at its start, and had nothing to complain of."""
    info = json.loads(docker_space("docker", "info", "--format", "{{json .Runtimes}}").out)
    assert info["ocirt"]["path"] == "/usr/local/bin/ocirt"
    assert "ocirt" not in (docker_space.directory / "dockerd.log").read_text().replace("/usr/local/bin/ocirt", "")


def test_runtime_with_arguments(docker_space: Space) -> None:
    """runtimeArgs make dockerd write a wrapper that calls the runtime with them in front."""
    assert Docker(docker_space, "arguments").run(NAME, "echo", "hello").out == "hello\n"
    lines = (docker_space.root / "run/arguments.log").read_text().splitlines()
    commands = [line for line in lines if line.startswith("--debug --root ")]
    for command in (" create ", " start ", " delete "):
        assert [line for line in commands if command in f"{line} "], lines


def test_runtime_of_the_command_line(docker_space: Space, name: str) -> None:
    """dockerd --add-runtime: the same path, the same root, its features asked for."""
    docker = Docker(docker_space, "added")
    result = docker.run(NAME, "sh", "-c", "echo out; echo err >&2; exit 7", rc=7)
    assert (result.out, result.err) == ("out\n", "err\n")
    assert "no such file or directory" in docker.run(NAME, "/nonexistent", rc=127).err
    id = docker.background(name, *SLEEP)
    assert docker("exec", id, "echo", "word").out == "word\n"
    assert json.loads(docker("inspect", id).out)[0]["HostConfig"]["Runtime"] == "added"
    docker("stop", "--time", "1", id)
    docker("rm", id)
    assert_nothing_left(docker_space, id)
    info = json.loads(docker_space("docker", "info", "--format", "{{json .Runtimes}}").out)
    assert info["added"] == {"path": "/usr/local/bin/ocirt"}

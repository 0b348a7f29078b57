"""Descriptors: nothing is inherited but 0 to 2 and what was asked for (LISTEN_FDS, --preserve-fds)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.helpers import Helpers
from tests.harness.peers import fails, peer_fails


@pytest.fixture
def fds(box: Box, helpers: Helpers) -> Box:
    """A box whose process lists its descriptors."""
    box.bind(helpers("fds"), "/fds", "bind", "ro")
    box.args("/fds")
    return box


def listed(text: str) -> dict[int, str]:
    return {int(number): target for number, _, target in (line.partition(" ") for line in text.splitlines())}


@pytest.fixture
def stray(tmp_path: Path) -> list[int]:
    """Descriptors of the caller that lack O_CLOEXEC, as a Go shim's listening socket on fd 3 (they close with it)."""
    opened = [os.open(tmp_path, os.O_RDONLY), os.open("/etc", os.O_PATH), os.memfd_create("stray")]
    pair = socket.socketpair()
    opened += [s.detach() for s in pair]
    yield opened
    for fd in opened:
        os.close(fd)


def test_only_the_streams(fds: Box, stray: list[int]) -> None:
    assert set(listed(fds.run(pass_fds=stray).out)) == {0, 1, 2}


def test_only_the_streams_of_a_created_container_too(fds: Box, stray: list[int]) -> None:
    fds.create(pass_fds=stray)
    pid = fds.pid
    fds.start(pass_fds=stray)
    fds.exit_status(pid)
    assert set(listed(fds.out)) == {0, 1, 2}


#: What init may hold while it waits for `start`, besides its streams: its own channel, the trampoline.
ALLOWED = ("socket:[", "pipe:[", "anon_inode:[eventfd]", "anon_inode:[pidfd]", "/memfd:")


@peer_fails("crun", "1.8.1 closes the descriptors of its caller only just before the exec")
def test_what_init_holds_while_it_waits(box: Box, stray: list[int]) -> None:
    """CVE-2024-21626: no descriptor of init may lead out of the container, whatever the caller left open."""
    box.create(pass_fds=stray)
    pid = box.pid
    held = {p: os.readlink(p) for p in sorted(Path(f"/proc/{pid}/fd").iterdir())}
    root = os.stat(f"/proc/{pid}/root/")
    for path, target in held.items():
        if int(path.name) <= 2:
            assert target in (str(box.out_file), str(box.err_file), "/dev/null"), held
        elif target == "/":
            assert os.path.samestat(path.stat(), root), f"{path} is another directory than the container's root"
        elif box.runtime.name == "ocirt":
            assert target.startswith(ALLOWED), held
        else:
            assert not target.startswith(("/etc", str(box.path))), held


def test_init_that_waits_maps_no_file_that_can_be_written(box: Box) -> None:
    box.create()
    pid = box.pid
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert not [line for line in maps.splitlines() if "w" in line.split()[1] and "s" in line.split()[1]]


def shifted(given: list[int], command: list[str], before: str = "") -> list[str]:
    """argv of `command` with the `given` descriptors as 3, 4, …; `before` is shell that runs first."""
    moves = " ".join(f"{3 + n}<&{fd}" for n, fd in enumerate(given))
    return ["/bin/bash", "-c", f'{before} exec {moves}; exec "$@"', "bash", *command]


def test_preserve_fds(fds: Box, stray: list[int]) -> None:
    """N descriptors from 3 on are passed; one above them isn't."""
    fds.write()
    command = fds.runtime.argv(["run", "--bundle", fds.path, "--preserve-fds", "2", fds.id])
    found = listed(fds.runtime(argv=shifted(stray[:3], command), pass_fds=stray).out)
    assert set(found) == {0, 1, 2, 3, 4}
    assert found[4] == "/etc"


@peer_fails("crun", "takes what is open")
def test_preserve_fds_beyond_what_is_open_is_an_error(fds: Box) -> None:
    result = fds.run(None, "--preserve-fds", "50", check=False)
    assert result.rc == 1
    assert result.out == ""


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("-1", marks=fails("runc crun", "takes it for none")),
        pytest.param("x", marks=fails("crun", "takes it for none")),
        pytest.param("1.5", marks=fails("crun", "takes it for 1")),
        pytest.param("99999999999999999999", marks=fails("crun", "takes it for a number")),
    ],
)
def test_preserve_fds_must_be_a_number(fds: Box, bad: str) -> None:
    assert fds.run(None, "--preserve-fds", bad, check=False).rc != 0


@peer_fails("crun", "1.8.1 passes neither variables nor descriptors")
def test_listen_fds(box: Box, helpers: Helpers) -> None:
    """sd_listen_fds(3): the sockets start at 3 and LISTEN_PID is the pid of the process, 1."""
    box.bind(helpers("fds"), "/fds", "bind", "ro")
    box.sh("env | grep ^LISTEN; /fds")
    box.write()
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        given = [first.fileno(), second.fileno()]
        command = box.runtime.argv(["run", "--bundle", box.path, box.id])
        out = box.runtime(
            argv=shifted(given, command, "export LISTEN_PID=$$;"),
            pass_fds=given,
            env={**os.environ, "LISTEN_FDS": "2"},
        ).out.splitlines()
    variables = dict(line.split("=", 1) for line in out if "=" in line)
    assert variables["LISTEN_FDS"] == "2"
    assert variables["LISTEN_PID"] == "1"
    found = listed("\n".join(line for line in out if "=" not in line))
    assert set(found) == {0, 1, 2, 3, 4}
    assert found[3].startswith("socket:")


@peer_fails("crun", "does not look at LISTEN_PID")
def test_listen_fds_of_another_process_is_not_ours(box: Box, helpers: Helpers) -> None:
    box.bind(helpers("fds"), "/fds", "bind", "ro")
    box.sh("env | grep -c ^LISTEN; /fds")
    out = box.run(env={**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}, check=False).out
    assert out.splitlines()[0] == "0"
    assert set(listed(out.partition("\n")[2])) == {0, 1, 2}


def test_standard_streams_keep_what_they_are(box: Box) -> None:
    """The same open file, not a copy through the runtime."""
    box.sh("sleep 1000")
    box.create()
    for number, path in ((1, box.out_file), (2, box.err_file)):
        status = os.stat(f"/proc/{box.pid}/fd/{number}")
        assert (status.st_dev, status.st_ino) == (path.stat().st_dev, path.stat().st_ino)


def test_dev_null_of_the_host_becomes_the_containers(box: Box) -> None:
    """A stream that is /dev/null is reopened inside, so that access to the host's device isn't kept."""
    box.create_and_start("sleep 1000")
    inside = os.stat(f"/proc/{box.pid}/root/dev/null")
    stream = os.stat(f"/proc/{box.pid}/fd/0")
    assert (stream.st_dev, stream.st_ino) == (inside.st_dev, inside.st_ino)

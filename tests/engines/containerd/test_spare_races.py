"""The spare shim asked by somebody who goes away, and where it can't fork."""

from __future__ import annotations

import marshal
import os
import socket
import time
from pathlib import Path

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.engine import Engine
from tests.engines.containerd.test_daemon import descriptors
from tests.engines.containerd.test_spare import (  # noqa: F401
    SOCKETS,
    children,
    engine,
    first,
    installed,
    pytest_generate_tests,
)
from tests.harness.leftovers import alive, cgroup_mounts

PEER = 12  # bytes of struct ucred


def call(spare: int, place: Path) -> tuple[socket.socket, socket.socket, str]:
    """Ask a spare shim for a fork as `start` does: (the connection, the listener that it got, its path)."""
    for path in SOCKETS.glob("*.spare"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(10)
        if connection.connect_ex(str(path)):
            connection.close()  # another test's, dead
        elif int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER)[:4], "little") == spare:
            break
        else:
            connection.close()
    else:
        pytest.fail("the spare shim doesn't listen")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = str(place / "asked")
    listener.bind(name)
    listener.listen()
    wanted = {
        "address": f"unix://{name}",
        "namespace": "ns",
        "events": "",
        "bundle": str(place),
        "debug": False,
        "environment": {"PATH": "/bin"},
        "score": 1000,
        "spare": "",
        "idle": 0,
    }
    socket.send_fds(connection, [marshal.dumps(wanted)], [listener.fileno()])
    return connection, listener, name


def test_start_has_given_up(engine: Engine) -> None:  # noqa: F811
    """`start` has waited too long, and forks by itself: two shims would serve one socket."""
    task, spare = first(engine)
    connection, listener, _ = call(spare, engine.place)
    pid = int(connection.recv(32))
    assert alive(pid)
    connection.close()
    end = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < end, "it serves"
        time.sleep(0.01)
    listener.close()
    task.end()


def test_no_more_processes(engine: Engine) -> None:  # noqa: F811
    """It keeps nothing of a shim that it couldn't make: the socket would look as if somebody served it."""
    task, spare = first(engine)
    (pids,) = [Path(point) for point in cgroup_mounts() if point.endswith("/pids")]
    directory = pids / f"{engine.name}-spare"
    directory.mkdir()
    (directory / "cgroup.procs").write_text(str(spare))
    (directory / "pids.max").write_text("1")
    before = descriptors(spare)
    connection, listener, name = call(spare, engine.place)
    assert connection.recv(32) == b""
    connection.close()
    listener.close()
    assert descriptors(spare) == before
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, pytest.raises(ConnectionRefusedError):
        client.connect(name)
    os.unlink(name)
    (pids / "cgroup.procs").write_text(str(spare))
    time.sleep(0.1)
    directory.rmdir()
    task.end()


@pytest.mark.parametrize("what", ["umask", "personality", "timer slack"])
def test_what_a_fork_inherits(engine: Engine, what: str) -> None:  # noqa: F811
    """A `start` that differs gets a shim like itself."""
    task, spare = first(engine)
    bundle = engine.bundle("sleep 1000")
    bundle.write()
    caller = engine.caller
    prefix = {
        "umask": ["sh", "-c", 'umask 027; exec "$@"', "sh"],
        "personality": ["setarch", "-R"],
        "timer slack": ["sh", "-c", 'echo 123456 > /proc/$$/timerslack_ns; exec "$@"', "sh"],
    }[what]
    argv = [*prefix, str(caller.kind.binary), *caller.flags(bundle.id, "1.6"), "start"]
    done = caller.run(argv, bundle.path, b"", env=caller.environment("1.6"), timeout=40)
    connection = ttrpc.Connection(done.stdout.decode(), 2)
    pid = connection.call("Connect", id="").shim_pid
    engine.shims.add(pid)
    assert pid not in children(spare)
    connection.call("Shutdown", id=bundle.id)
    connection.close()
    task.end()

"""The sockets of shims: who is alive, and whose socket may be removed."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from ocirt.criu import Unexplained
from ocirt.errors import Error
from ocirt.shim import sockets
from ocirt.shim.loop import Loop
from ocirt.shim.reaper import Reaper
from ocirt.shim.worker import Workers


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_one_that_accepts_nobody_is_alive(tmp_path: Path, kind: socket.SocketKind) -> None:
    """Its queue is full: connecting waits for ever, with the lock of all shims of the host held."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX, kind)
            client.setblocking(False)
            client.connect_ex(path)
            waiting.append(client)
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(sockets.is_served(path, kind)), daemon=True)
        thread.start()
        thread.join(5)
        assert answers == [True]
        for client in waiting:
            client.close()


def test_later_socket_of_the_same_name_stays(tmp_path: Path) -> None:
    """A `start` may have found us dead, and have bound another one, before we get to remove ours."""
    address = f"unix://{tmp_path}/s"
    first = sockets.listen(address)
    assert first is not None
    own = sockets.identity(address)
    first.close()
    time.sleep(0.02)
    second = sockets.listen(address)
    assert second is not None
    sockets.remove(address, own)
    assert (tmp_path / "s").exists()
    sockets.remove(address, sockets.identity(address))
    assert not (tmp_path / "s").exists()
    second.close()


class _Busy(Workers):
    """One operation is always under way."""

    def __init__(self) -> None:
        pass

    @property
    def running(self) -> int:
        return 1


def test_status_of_an_earlier_process(tmp_path: Path) -> None:
    """A pid that is used again while a worker runs: the first one's end isn't the second one's."""
    reported: list[Exception] = []
    reaper = Reaper(_Busy(), reported.append)
    ended: list[int] = []
    first = os.fork()
    if first == 0:
        os._exit(5)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    reaper.reap()
    last = Path("/proc/sys/kernel/ns_last_pid")
    second = 0
    for _ in range(200):  # others make processes, too
        last.write_text(str(first - 1))
        second = os.fork()
        if second == 0:
            time.sleep(30)
            os._exit(6)
        if second == first:
            break
        os.kill(second, 9)
        os.waitpid(second, 0)
    assert second == first, "the pid couldn't be had again"
    reaper.expect(second, lambda code, when: ended.append(code))
    assert not ended
    os.kill(second, 9)
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
    reaper.reap()
    assert ended == [137]


def test_trouble_of_one_is_not_the_others(tmp_path: Path) -> None:
    """Whoever is told of an end may fail: all the same the others are reaped and told."""
    reported: list[Exception] = []
    reaper = Reaper(_Busy(), reported.append)
    ended: list[int] = []

    def fails(code: int, when: float) -> None:
        raise OSError(24, "too many open files")

    pids = []
    for callback in (fails, lambda code, when: ended.append(code)):
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        reaper.expect(pid, callback)
        pids.append(pid)
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    reaper.reap()
    assert ended == [7]
    assert len(reported) == 1


def test_error_of_a_class_that_only_its_module_knows() -> None:
    """systemd's and CRIU's have one of their own: the operation fails with their text, the shim goes on."""
    said: list[Exception] = []
    loop = Loop(said.append)
    answers: list[Exception | None] = []

    def perform(_: dict[str, object]) -> dict[str, object]:
        raise Unexplained("criu ended")

    def done(_: dict[str, object], error: Exception | None) -> None:
        answers.append(error)
        loop.stop()

    workers = Workers(loop, perform)
    workers.start({"operation": "checkpoint", "id": "c"}, done)
    loop.run()
    assert workers._nursery
    workers._nursery.close()
    assert [(type(error), str(error)) for error in answers] == [(Error, "criu ended")]
    assert not said

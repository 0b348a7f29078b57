"""SCMP_ACT_NOTIFY: an agent gets the listener and answers."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from ocirt.errors import Error, InvalidConfig
from ocirt.identity import seccomp
from ocirt.identity.seccomp import listener
from ocirt.identity.seccomp.compile import compile_filter
from ocirt.linux import prctl
from tests.kernel.seccomp_agent import CONTINUE, EXIT_GROUP, GETPPID, MKDIR, WRITE, Agent

LIBC = ctypes.CDLL(None, use_errno=True)


def test_an_agent_answers(tmp_path: Path) -> None:
    """The way of the runtime: the child says where the listener will be, the parent fetches and sends it."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat", "getppid", "write"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": str(tmp_path / "agent"),
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"],
    }
    filter = seccomp.cached(profile, str(tmp_path))
    assert filter.notify
    answers = {GETPPID: (4711, 0, 0), MKDIR: (0, -95, 0)}
    agent = Agent(tmp_path / "agent", lambda number, _: answers.get(number, (0, 0, CONTINUE)))
    story_reader, story_writer = os.pipe()
    number_reader, number_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prctl.prctl(prctl.PR_SET_NO_NEW_PRIVS, 1)
            os.write(number_writer, b"%d" % listener.next_descriptor())
            seccomp.load(filter)
            told = [LIBC.syscall(GETPPID)]
            try:
                os.mkdir(tmp_path / "made")
            except OSError as error:
                told.append(error.errno or 0)
            os.write(story_writer, repr(told).encode())
        finally:
            os._exit(0)
    os.close(story_writer)
    agent.thread.start()
    pidfd = os.pidfd_open(pid)
    number = int(os.read(number_reader, 16))
    notify = listener.fetch(pidfd, number)
    assert not os.get_inheritable(notify)
    state = b'{"ociVersion":"1.3.0","id":"a","status":"created","pid":%d,"bundle":"/b"}' % pid
    metadata = 'a "quoted" one\n'
    listener.send_listener(profile["listenerPath"], notify, listener.process_state(state, "1.3.0", pid, metadata))
    os.close(notify)
    assert os.read(story_reader, 100) == b"[4711, 95]"
    assert os.waitpid(pid, 0)[1] == 0
    agent.close()
    for fd in (pidfd, story_reader, number_reader, number_writer):
        os.close(fd)
    assert not (tmp_path / "made").exists()
    assert [number for number, _ in agent.calls] == [GETPPID, MKDIR, WRITE]
    assert agent.states == [
        {
            "ociVersion": "1.3.0",
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": metadata,
            "state": json.loads(state),
        }
    ]


def test_a_child_that_ends_has_no_listener() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        with pytest.raises(Error, match="pidfd_getfd"):
            listener.fetch(pidfd, 50, timeout=5)
    finally:
        os.waitpid(pid, 0)
        os.close(pidfd)


def test_what_is_not_a_listener_is_not_taken() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Error, match=r"no seccomp listener at descriptor 0 after 0\.05 s"):
            listener.fetch(pidfd, 0, timeout=0.05)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(pidfd)


def test_an_agent_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"send the seccomp listener to .*/agent: .*no such file or directory"):
        listener.send_listener(str(tmp_path / "agent"), 0, b"{}")


def test_a_large_state_arrives_whole(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(tmp_path / "agent"))
    server.listen(1)
    got: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            data, ancillary, _, _ = connection.recvmsg(10, socket.CMSG_SPACE(16))
            assert len(ancillary) == 1
            os.close(struct.unpack("i", ancillary[0][2])[0])
            while more := connection.recv(1 << 16):
                data += more
            got.append(data)

    thread = threading.Thread(target=serve)
    thread.start()
    state = b'{"annotations":"' + b"x" * 2_000_000 + b'"}'
    listener.send_listener(str(tmp_path / "agent"), 0, listener.process_state(state, "1.3.0", 1, None))
    thread.join(10)
    server.close()
    assert got == [b'{"ociVersion":"1.3.0","fds":["seccompFd"],"pid":1,"state":' + state + b"}"]


def test_where_the_agent_listens() -> None:
    assert listener.listener_path({"listenerPath": "/a"}, {"run.oci.seccomp.receiver": "/b"}) == "/a"
    assert listener.listener_path({}, {"run.oci.seccomp.receiver": "/b"}) == "/b"
    with pytest.raises(InvalidConfig, match=r"linux\.seccomp\.listenerPath: missing: SCMP_ACT_NOTIFY needs"):
        listener.listener_path({}, {})


def test_every_call_can_be_notified(tmp_path: Path) -> None:
    """Even with notify as the default action the listener gets out."""
    filter = compile_filter({"defaultAction": "SCMP_ACT_NOTIFY"})
    agent = Agent(tmp_path / "agent", lambda number, args: (0, 0, CONTINUE))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        prctl.prctl(prctl.PR_SET_NO_NEW_PRIVS, 1)
        os.write(writer, b"%d" % listener.next_descriptor())
        seccomp.load(filter)
        os._exit(42)
    agent.thread.start()
    pidfd = os.pidfd_open(pid)
    notify = listener.fetch(pidfd, int(os.read(reader, 16)))
    listener.send_listener(str(tmp_path / "agent"), notify, listener.process_state(b"{}", "1.3.0", pid, None))
    os.close(notify)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    agent.close()
    number, args = agent.calls[-1]
    assert (number, args[0]) == (EXIT_GROUP, 42)
    for fd in (pidfd, reader, writer):
        os.close(fd)

"""The seccomp agent: what it gets, and what happens without it (config-linux.md, Seccomp, Container Process State)."""

from __future__ import annotations

import array
import json
import os
import socket
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.peers import peer_fails


def notify(box: Box, agent: Path, metadata: str | None = None) -> None:
    """Have mkdir(2) reported to the agent."""
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(agent),
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }
    if metadata is not None:
        box.linux["seccomp"]["listenerMetadata"] = metadata


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Everything until the other end closes, and the descriptors, which come with the first part."""
    descriptors = array.array("i")
    data, control, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(16 * descriptors.itemsize))
    for level, type, content in control:
        assert (level, type) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    while more := connection.recv(65536):
        data += more
    return data, list(descriptors)


def test_an_agent_gets_one_state_and_the_descriptor(box: Box, place: Path) -> None:
    agent = place / "agent"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(agent))
        listener.listen()
        listener.settimeout(20)
        notify(box, agent, metadata="for the agent")
        box.config["annotations"] = {"org.example": "yes"}
        box.sh("sleep 1000")
        box.create()
        box.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            text, descriptors = receive(connection)  # ends only if the runtime closes its end
        try:
            message = json.loads(text)  # one state: more would be no JSON
            assert message["fds"] == ["seccompFd"]
            assert len(descriptors) == 1
            assert os.readlink(f"/proc/self/fd/{descriptors[0]}") == "anon_inode:seccomp notify"
            assert message["pid"] == box.pid
            assert message["metadata"] == "for the agent"
            assert message["ociVersion"]
            state = message["state"]
            assert (state["id"], state["bundle"]) == (box.id, str(box.path))
            assert state["status"] in ("creating", "created", "running")
            assert state["annotations"] == {"org.example": "yes"}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()  # a second connection would be a second state


def test_an_agent_that_does_not_listen_is_an_error(box: Box, place: Path) -> None:
    notify(box, place / "nobody")
    result = box.run("echo ran", check=False)
    assert result.rc != 0
    assert "ran" not in result.out
    if box.runtime.name == "ocirt":
        assert "nobody" in result.err


@peer_fails("crun", "1.8.1 connects all the same")
def test_without_notify_the_listener_is_ignored(box: Box, place: Path) -> None:
    notify(box, place / "nobody")
    box.linux["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_ERRNO"
    assert box.run("echo ok").out == "ok\n"

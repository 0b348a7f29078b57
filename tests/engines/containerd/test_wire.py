"""ttrpc itself: frames, streams, limits, concurrency, and clients that misbehave."""

from __future__ import annotations

import os
import random
import socket
import struct
import time

import pytest

from tests.engines.containerd import schema, ttrpc
from tests.engines.containerd.engine import Engine, Task
from tests.engines.containerd.ttrpc import EXHAUSTED, HEAD, INVALID, MOST, REQUEST, UNIMPLEMENTED, Closed, frame

#: Bounds what is random; a failure says with which seed it can be had again.
SEED = int(os.environ.get("OCIRT_TEST_SEED") or random.SystemRandom().randrange(1 << 30))


@pytest.fixture
def task(engine: Engine) -> Task:
    """A shim with nothing in it."""
    return engine.task()


def shifted(data: bytes, by: int) -> bytes:
    """A frame with a larger stream id: those of the fixture's own requests come first."""
    length, stream, kind, flags = HEAD.unpack_from(data)
    return HEAD.pack(length, stream + by, kind, flags) + data[HEAD.size :]


def end(task: Task) -> None:
    """The shim still serves, and goes when it is told to."""
    fresh = task.engine.connect(task.answer)
    assert fresh.call("Connect", id=task.id).shim_pid
    fresh.close()
    task.shim = task.engine.connect(task.answer)
    task.leave()


def test_pipelined(task: Task) -> None:
    """Requests that come in one piece are all answered, each on its stream."""
    streams = set(range(101, 301, 2))
    connection = task.engine.connect(task.answer)
    connection.raw(b"".join(frame(stream, connection.pack("Connect", id=task.id)) for stream in sorted(streams)))
    seen = set()
    for _ in streams:
        stream, kind, payload = connection.read()
        assert kind == ttrpc.RESPONSE
        assert not schema.parse("ttrpc.Response", payload).status.code
        seen.add(stream)
    assert seen == streams
    end(task)


def test_byte_by_byte(task: Task) -> None:
    """A frame may come in any pieces."""
    connection = task.engine.connect(task.answer)
    for byte in frame(101, connection.pack("Connect", id=task.id)):
        connection.raw(bytes([byte]))
    connection._methods[101] = "Connect"
    assert connection.result(101).shim_pid
    end(task)


def test_out_of_order(engine: Engine) -> None:
    """Wait stays open for a task's life and keeps nobody waiting."""
    task = engine.running()
    waiting = task.shim.begin("Wait", id=task.id)
    for _ in range(5):
        assert task.status == 2
    assert not task.shim.answered(waiting)
    task.kill()
    assert task.shim.result(waiting).exit_status == 137
    task.delete()
    task.leave()


@pytest.mark.shim_fails("runc", "1.6 locks the service while it creates")
def test_slow_call_does_not_block(engine: Engine) -> None:
    """While one container is being created, others are served."""
    first = engine.running()
    bundle = engine.bundle(**{"io.containerd.runc.v2.group": "none"})
    bundle.config["hooks"] = {
        "createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "2"]}],
    }
    bundle.write()
    second = Task(engine, bundle, first.answer, first.shim)
    engine.tasks.append(second)
    creating = first.shim.begin("Create", **second.request())
    begin = time.monotonic()
    assert first.status == 2
    assert first("Connect").task_pid == first.pid
    assert time.monotonic() - begin < 1.5, "State waited for another container's Create"
    assert first.shim.result(creating).pid
    second.kill()
    second.wait()
    second.delete()
    first.end()


def test_frame_that_is_too_large(task: Task) -> None:
    """Refused with code 8 once it has been read over; the connection goes on."""
    size = MOST + 1
    connection = task.engine.connect(task.answer)
    connection._methods[201] = "Connect"
    connection.raw(HEAD.pack(size, 201, REQUEST, 0))
    chunk = bytes(1 << 16)
    left = size
    while left:
        connection.raw(chunk[:left])
        left -= min(left, len(chunk))
    with pytest.raises(ttrpc.RpcError) as found:
        connection.result(201)
    assert found.value.code == EXHAUSTED
    connection.send(203, "Connect", id=task.id)
    assert connection.result(203).shim_pid
    end(task)


def test_largest_frame(task: Task) -> None:
    """4 MiB are allowed: an unknown field fills the request."""
    connection = task.engine.connect(task.answer)
    payload = connection.pack("Connect", id=task.id)
    room = MOST - len(payload) - 5
    payload += varint(15 << 3 | 2) + varint(room) + bytes(room)
    assert len(payload) == MOST
    connection._methods[301] = "Connect"
    connection.raw(frame(301, payload))
    assert connection.result(301).shim_pid
    end(task)


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def test_even_stream(task: Task) -> None:
    """Streams of clients are odd."""
    connection = task.engine.connect(task.answer)
    connection.send(202, "Connect", id=task.id)
    with pytest.raises(ttrpc.RpcError) as found:
        connection.result(202)
    assert found.value.code == INVALID
    end(task)


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("", "NoSuchMethod"),
        ("no.such.Service", "Connect"),
        ("containerd.task.v1.Task", "Connect"),
        ("", "connect"),
    ],
)
def test_unknown_method(task: Task, service: str, method: str) -> None:
    stream = task.shim.begin(method, service=service)
    with pytest.raises(ttrpc.RpcError) as found:
        task.shim.result(stream)
    assert found.value.code == UNIMPLEMENTED
    assert (service or method) in found.value.text
    end(task)


@pytest.mark.shim_fails("runc", "1.6 serves version 2 only")
def test_both_versions_of_the_service(engine: Engine) -> None:
    task = engine.running()
    for service in ("containerd.task.v2.Task", "containerd.task.v3.Task"):
        assert task.shim.call("State", service=service, id=task.id).pid == task.pid
    task.end()


def test_half_a_frame(task: Task) -> None:
    """A client that dies in the middle of a frame."""
    whole = frame(1, task.shim.pack("Connect", id=task.id))
    for size in (1, 5, 9, 10, 11, len(whole) - 1):
        connection = task.engine.connect(task.answer)
        connection.raw(shifted(whole, 100)[:size])
        connection.close()
    end(task)


def test_client_that_does_not_wait_for_its_answers(engine: Engine) -> None:
    task = engine.running()
    for number in range(20):
        connection = engine.connect(task.answer)
        connection.begin("Wait", id=task.id)
        connection.begin("State", id=task.id)
        if number % 2:
            linger = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    task.end()


def test_client_that_does_not_read(task: Task) -> None:
    """One that reads none of its answers holds up nobody else."""
    deaf = task.engine.connect(task.answer)
    deaf.socket.settimeout(0.5)
    sent = 0
    try:
        for stream in range(101, 60001, 2):
            deaf.send(stream, "Connect", id=task.id)
            sent += 1
    except TimeoutError:
        pass
    assert sent > 100
    assert task("Connect").shim_pid
    deaf.close()
    end(task)


def test_many_connections(engine: Engine) -> None:
    task = engine.running()
    connections = [engine.connect(task.answer) for _ in range(60)]
    streams = [connection.begin("State", id=task.id) for connection in connections]
    for connection, stream in zip(connections, streams, strict=True):
        assert connection.result(stream).pid == task.pid
    for connection in connections:
        connection.close()
    task.end()


def test_timeout(engine: Engine) -> None:
    """timeout_nano bounds a call: the answer is DeadlineExceeded, or the client has given up by then."""
    task = engine.running()
    stream = task.shim.begin("Wait", timeout=0.3, id=task.id)
    try:
        task.shim.result(stream, 3)
    except ttrpc.RpcError as error:
        assert error.code == ttrpc.DEADLINE
    except ttrpc.Late:
        assert engine.kind.name != "ocirt", "no answer although time is over"
    assert task.status == 2
    task.end()


def test_unknown_fields_and_types_of_frames(task: Task) -> None:
    """Fields that a later containerd may add are skipped; frames of unknown types are ignored."""
    connection = task.engine.connect(task.answer)
    extra = b"".join(
        [
            varint(100 << 3) + varint((1 << 64) - 1),
            varint(101 << 3 | 1) + bytes(8),
            varint(102 << 3 | 2) + varint(3) + b"abc",
            varint(103 << 3 | 5) + bytes(4),
        ]
    )
    body = schema.message("containerd.task.ConnectRequest", id=task.id).SerializeToString()
    outer = ttrpc.request("Connect", extra + body + extra, connection.service)
    connection._methods[51] = "Connect"
    connection.raw(frame(51, extra + outer + extra))
    assert connection.result(51).shim_pid
    connection.raw(frame(53, b"whatever", kind=9))
    connection.send(55, "Connect", id=task.id)
    assert connection.result(55).shim_pid
    end(task)


def test_negative_varints(engine: Engine) -> None:
    """A negative int32 or int64 is ten bytes."""
    task = engine.running()
    payload = schema.message("containerd.task.StateRequest", id=task.id).SerializeToString()
    body = schema.message(
        "ttrpc.Request", service=task.shim.service, method="State", payload=payload, timeout_nano=-1
    ).SerializeToString()
    task.shim._methods[901] = "State"
    task.shim.raw(frame(901, body))
    assert task.shim.result(901).pid == task.pid
    task.shim = engine.connect(task.answer)
    task.end()


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x05abc",
        b"\x0b",
        b"\x00\x00",
        b"\xff" * 11,
        b"\x0a\x80",
        b"\x12\x03\xff\xfe\xfd",
    ],
)
def test_payload_that_is_no_message(task: Task, payload: bytes) -> None:
    """Of the envelope and of the request in it: an error or the end of the connection, and others are served."""
    for number, data in enumerate((payload, ttrpc.request("State", payload, task.shim.service))):
        connection = task.engine.connect(task.answer)
        stream = 11 + 2 * number
        connection._methods[stream] = "State"
        connection.raw(frame(stream, data))
        try:
            connection.result(stream, 5)
            raise AssertionError("a success")
        except (ttrpc.RpcError, Closed):
            pass
        except ttrpc.Late:
            assert task.engine.kind.name != "ocirt", "neither an answer nor the end of the connection"
        connection.close()
    end(task)


def test_garbage(task: Task) -> None:
    """Random bytes and damaged requests, while another connection is served."""
    print(f"OCIRT_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    whole = frame(1, task.shim.pack("State", id=task.id))
    for number in range(150):
        connection = task.engine.connect(task.answer)
        data = bytearray(shifted(whole, 100) * chance.randint(1, 3))
        if number % 3 == 0:
            data = bytearray(chance.randbytes(chance.randint(1, 300)))
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            connection.raw(bytes(data[: chance.randint(1, len(data))]))
            if chance.random() < 0.3:
                connection.read(0.02)
        except (OSError, Closed, ttrpc.Late):
            pass
        connection.close()
        if number % 10 == 0:
            assert task("Connect").shim_pid
    end(task)


def test_other_user(engine: Engine, task: Task) -> None:
    """Only the shim's own user may connect (SO_PEERCRED), whatever the socket's mode says."""
    path = task.answer.address.removeprefix("unix://")
    assert os.stat(path).st_mode & 0o777 == 0o600
    before = os.stat(path).st_mode
    for directory in (path, os.path.dirname(path)):
        os.chmod(directory, 0o777)
    try:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(1000, 1000, 1000)
                os.setresuid(1000, 1000, 1000)
                connection = ttrpc.Connection(task.answer.address)
                connection.call("Connect", id=task.id)
            except (ttrpc.Closed, OSError):
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "another user was served"
    finally:
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, before & 0o777)
    end(task)

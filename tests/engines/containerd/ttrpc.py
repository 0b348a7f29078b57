"""A ttrpc client without threads: what is awaited is read, answers to other requests are kept until they are asked for.

A frame: u32 length, u32 stream, u8 type (1 request, 2 response), u8 flags, big endian; then a ttrpc.Request or
ttrpc.Response.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import time
from types import TracebackType
from typing import Any, Self

from tests.engines.containerd import schema

HEAD = struct.Struct(">IIBB")
REQUEST, RESPONSE, DATA = 1, 2, 3
MOST = 4 << 20
TIMEOUT = 30.0

INVALID, DEADLINE, NOT_FOUND, EXISTS, EXHAUSTED, PRECONDITION, UNIMPLEMENTED, UNKNOWN = 3, 4, 5, 6, 8, 9, 12, 2

#: {method: (request, response)}; Empty where nothing is said
METHODS = {
    name: (f"containerd.task.{request or name + 'Request'}", response)
    for name, request, response in (
        ("Create", "CreateTaskRequest", "containerd.task.CreateTaskResponse"),
        ("Start", "", "containerd.task.StartResponse"),
        ("State", "", "containerd.task.StateResponse"),
        ("Delete", "", "containerd.task.DeleteResponse"),
        ("Pids", "", "containerd.task.PidsResponse"),
        ("Pause", "", "google.protobuf.Empty"),
        ("Resume", "", "google.protobuf.Empty"),
        ("Checkpoint", "CheckpointTaskRequest", "google.protobuf.Empty"),
        ("Kill", "", "google.protobuf.Empty"),
        ("Exec", "ExecProcessRequest", "google.protobuf.Empty"),
        ("ResizePty", "", "google.protobuf.Empty"),
        ("CloseIO", "", "google.protobuf.Empty"),
        ("Update", "UpdateTaskRequest", "google.protobuf.Empty"),
        ("Wait", "", "containerd.task.WaitResponse"),
        ("Stats", "", "containerd.task.StatsResponse"),
        ("Connect", "", "containerd.task.ConnectResponse"),
        ("Shutdown", "", "google.protobuf.Empty"),
    )
}


class RpcError(Exception):
    """A status other than 0."""

    def __init__(self, method: str, code: int, text: str) -> None:
        super().__init__(f"{method}: {code}: {text}")
        self.method, self.code, self.text = method, code, text


class Closed(Exception):
    """The shim has closed the connection."""


class Late(AssertionError):
    """No answer in time."""


def frame(stream: int, payload: bytes, kind: int = REQUEST, flags: int = 0) -> bytes:
    """One frame."""
    return HEAD.pack(len(payload), stream, kind, flags) + payload


def request(
    method: str, payload: bytes, service: str, timeout: float = 0, metadata: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """A ttrpc.Request."""
    pairs = [schema.message("test.Pair", key=key, value=value) for key, value in metadata]
    data: bytes = schema.message(
        "ttrpc.Request",
        service=service,
        method=method,
        payload=payload,
        timeout_nano=int(timeout * 1e9),
        metadata=pairs,
    ).SerializeToString()
    return data


class Connection:
    """One connection to a shim.

    address  `unix:///path`, or the name of an abstract socket
    version  2 or 3 of the task service
    """

    def __init__(self, address: str, version: int = 2, namespace: str = "default") -> None:
        self.service = f"containerd.task.v{version}.Task"
        self.namespace = namespace
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT)
        path = address.removeprefix("unix://")
        try:
            self.socket.connect(path if path != address else f"\0{address}")
        except OSError:
            self.socket.close()
            raise
        self._streams = itertools.count(1, 2)
        self._methods: dict[int, str] = {}
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # sending

    def begin(self, method: str, service: str = "", timeout: float = 0, **fields: Any) -> int:
        """Send a request; its stream id."""
        stream = next(self._streams)
        self.send(stream, method, service, timeout, **fields)
        return stream

    def send(self, stream: int, method: str, service: str = "", timeout: float = 0, **fields: Any) -> None:
        """Send a request on a stream id of one's own."""
        self._methods[stream] = method
        self.raw(frame(stream, self.pack(method, service, timeout, **fields)))

    def pack(self, method: str, service: str = "", timeout: float = 0, **fields: Any) -> bytes:
        """The ttrpc.Request of a call."""
        kind = METHODS.get(method, ("google.protobuf.Empty", ""))[0]
        payload: bytes = schema.message(kind, **fields).SerializeToString()
        metadata = (("containerd-namespace-ttrpc", self.namespace),)
        return request(method, payload, service or self.service, timeout, metadata)

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    # receiving

    def read(self, timeout: float = TIMEOUT) -> tuple[int, int, bytes]:
        """The next frame: (stream, type, payload)."""
        end = time.monotonic() + timeout
        while True:
            if len(self._data) >= HEAD.size:
                length, stream, kind, _ = HEAD.unpack_from(self._data)
                assert length <= MOST, "an answer that is larger than a frame may be"
                if len(self._data) >= HEAD.size + length:
                    payload = self._data[HEAD.size : HEAD.size + length]
                    self._data = self._data[HEAD.size + length :]
                    return stream, kind, payload
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                raise Late(f"no answer within {timeout} s; waiting for {self._methods}")
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed
            self._data += data

    def result(self, stream: int, timeout: float = TIMEOUT) -> Any:
        """The answer to a request that `begin` has sent; RpcError if that is what it is."""
        end = time.monotonic() + timeout
        while stream not in self._answers:
            other, kind, payload = self.read(max(end - time.monotonic(), 0))
            self._answers[other] = (kind, payload)
        kind, payload = self._answers.pop(stream)
        method = self._methods.pop(stream)
        assert kind == RESPONSE, f"a frame of type {kind}"
        response = schema.parse("ttrpc.Response", payload)
        if response.status.code:
            raise RpcError(method, response.status.code, response.status.message)
        return schema.parse(METHODS.get(method, ("", "google.protobuf.Empty"))[1], response.payload)

    def answered(self, stream: int, patience: float = 0) -> bool:
        """Whether the answer to a request has come."""
        try:
            while stream not in self._answers:
                other, kind, payload = self.read(patience)
                self._answers[other] = (kind, payload)
        except Late:
            return False
        return True

    def call(self, method: str, service: str = "", timeout: float = 0, within: float = TIMEOUT, **fields: Any) -> Any:
        """A request and its answer.

        timeout  told to the shim
        within   of the test itself
        """
        return self.result(self.begin(method, service, timeout, **fields), within)

    def fails(self, method: str, within: float = TIMEOUT, **fields: Any) -> RpcError:
        """The error of a request that must fail."""
        __tracebackhide__ = True
        try:
            answer = self.call(method, within=within, **fields)
        except RpcError as error:
            return error
        raise AssertionError(f"{method} succeeded: {answer}")

    def closed(self, timeout: float = 10) -> bool:
        """Whether the shim closes the connection; what it answers before is dropped."""
        try:
            while True:
                self.read(timeout)
        except Closed:
            return True
        except Late:
            return False


def exists(address: str) -> bool:
    """Whether the file of a socket is there."""
    return os.path.exists(address.removeprefix("unix://"))

"""Unary gRPC calls by curl, and just enough protobuf for them: messages are {field number: value or list of values}."""

from __future__ import annotations

import os
import re
from typing import Any

from tests.engines.space import Space


def pack(message: dict[int, Any]) -> bytes:
    """int and bool become varints, str, bytes and dict become bytes."""
    data = b""
    for field, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                data += _varint(field << 3) + _varint(int(one) & (1 << 64) - 1)
            else:
                body = pack(one) if isinstance(one, dict) else one.encode() if isinstance(one, str) else one
                data += _varint(field << 3 | 2) + _varint(len(body)) + body
    return data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def parse(data: bytes) -> dict[int, Any]:
    """The last value of each field: int or bytes."""
    found: dict[int, Any] = {}
    at = 0

    def take() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = take()
        if key & 7 == 0:
            found[key >> 3] = take()
        else:
            assert key & 7 == 2, "a wire type that these services don't use"
            size = take()
            found[key >> 3] = data[at : at + size]
            at += size
    return found


class GrpcError(Exception):
    """The service's status and message."""


def call(space: Space, socket: str, method: str, message: dict[int, Any], *headers_of_ours: str) -> dict[int, Any]:
    """One call, with further headers (`name: value`); GrpcError unless its status is 0."""
    body = pack(message)
    name = f"grpc-{os.urandom(4).hex()}"
    request, answer, headers = (space.directory / f"{name}-{kind}" for kind in ("in", "out", "headers"))
    request.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    flags = ("--silent", "--show-error", "--http2-prior-knowledge", "--unix-socket", socket, "--max-time", "50")
    given = ("-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", f"@{request}")
    given += tuple(word for header in headers_of_ours for word in ("-H", header))
    space("curl", *flags, *given, "-o", answer, "-D", headers, f"http://localhost/{method}")
    told = headers.read_text()
    data = answer.read_bytes() if answer.exists() else b""
    for path in (request, answer, headers):
        path.unlink(missing_ok=True)
    status = re.search(r"^grpc-status: (\d+)", told, re.MULTILINE | re.IGNORECASE)
    assert status, told
    if status.group(1) != "0":
        text = re.search(r"^grpc-message: (.*)$", told, re.MULTILINE | re.IGNORECASE)
        raise GrpcError(f"{status.group(1)}: {text.group(1).strip() if text else ''}")
    return parse(data[5:])

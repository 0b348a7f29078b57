"""What kubectl exec and attach do: a WebSocket to the streaming server that CRI's Exec and Attach name."""

from __future__ import annotations

import json
import re

from tests.engines.space import Space

#: A client of the streaming server: WebSocket with the protocol v4.channel.k8s.io. Prints what each channel got.
STREAM = r"""
import base64, os, socket, struct, sys, json
host, path, given = sys.argv[1], sys.argv[2], sys.argv[3].encode()
name, port = host.rsplit(":", 1)
s = socket.create_connection((name, int(port)), 20)
s.settimeout(20)
key = base64.b64encode(os.urandom(16)).decode()
s.sendall((f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
           f"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n").encode())
f = s.makefile("rb")
assert b" 101 " in f.readline()
while f.readline().strip():
    pass
def send(channel, data):
    body = bytes([channel]) + data
    mask = os.urandom(4)
    head = bytes([0x82, 0x80 | len(body)]) + mask
    s.sendall(head + bytes(b ^ mask[i % 4] for i, b in enumerate(body)))
if given:
    send(0, given)
out = {1: b"", 2: b"", 3: b""}
while True:
    head = f.read(2)
    if len(head) < 2 or head[0] & 15 == 8:
        break
    size = head[1] & 127
    if size == 126:
        size = struct.unpack(">H", f.read(2))[0]
    elif size == 127:
        size = struct.unpack(">Q", f.read(8))[0]
    body = f.read(size)
    if body:
        out.setdefault(body[0], b"")
        out[body[0]] += body[1:]
    if len(sys.argv) > 4 and sys.argv[4].encode() in out[1]:
        break
print(json.dumps({k: v.decode() for k, v in out.items()}))
"""


def stream(space: Space, url: str, given: str = "", until: str = "") -> dict[str, str]:
    """{channel: text}: 1 is stdout, 2 stderr, 3 the status."""
    found = re.fullmatch(r"https?://([^/]+)(/.*)", url)
    assert found, url
    arguments = [found[1], found[2], given, *([until] if until else [])]
    result: dict[str, str] = json.loads(space("/usr/bin/python3", "-ISc", STREAM, *arguments).out)
    return result

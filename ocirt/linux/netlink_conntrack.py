"""ctnetlink: forgetting connections, so that rewritten destinations take effect at once."""

from __future__ import annotations

from ocirt.linux.netlink import Message, attribute, attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.linux.netlink import Socket

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_DESTINATION = {2: 2, 10: 4}  # CTA_IP_V4_DST, CTA_IP_V6_DST
_PROTO_NUMBER, _PROTO_DESTINATION_PORT = 1, 3
_NESTED = 0x8000
_ENOENT = 2


def forget(
    socket: Socket, protocol: int, wanted: Callable[[bytes, int], bool], families: tuple[int, ...] = (2, 10)
) -> int:
    """Delete the connections of this protocol whose original destination (address, port) is `wanted`; how many.

    `socket` is a nfnetlink socket. Without connection tracking there is nothing to forget.
    """
    stale: list[Message] = []
    for family in families:
        for payload in socket.dump(Message(_GET, 0, bytes((family, 0, 0, 0)), "list connections")):
            found = attributes(payload, 4)
            original = found.get(_TUPLE_ORIGINAL, b"")
            parts = attributes(original)
            proto, ip = attributes(parts.get(_TUPLE_PROTO, b"")), attributes(parts.get(_TUPLE_IP, b""))
            port = int.from_bytes(proto.get(_PROTO_DESTINATION_PORT, b""), "big")
            if proto.get(_PROTO_NUMBER) != bytes((protocol,)) or not wanted(ip.get(_IP_DESTINATION[family], b""), port):
                continue
            key = bytes((family, 0, 0, 0)) + attribute(_TUPLE_ORIGINAL | _NESTED, original)
            for extra in (_ID, _ZONE):
                if extra in found:
                    key += attribute(extra, found[extra])
            stale.append(Message(_DELETE, 0, key, f"forget connection to port {port}"))
    for message in stale:
        socket.request(message, accept=(_ENOENT,))
    return len(stale)

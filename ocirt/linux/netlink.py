"""Netlink: messages, attributes and a socket that asks and waits for the answer.

Only what all netlink families share (netlink(7)); rtnetlink is in
`netlink_route`, nftables in `netlink_nft`, connection tracking in
`netlink_conntrack`. Built from `_socket` and `struct` alone: importing a
general netlink library costs more than setting up a container's whole network.

A request is a list of messages sent as one datagram. The kernel answers each of
them before sendmsg(2) returns, so a batch costs one call to send and a few to
read. It goes on after a message that failed: what the others did stays, and
whoever sent the batch takes it back.
"""

from __future__ import annotations

import _socket
import os
import struct

from ocirt.errors import Error, call_failed
from ocirt.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

ROUTE, NETFILTER, GENERIC = 0, 12, 16  # protocols of the address family AF_NETLINK

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_DUMP_INTERRUPTED = 0x10
_ACK_CAPPED, _ACK_TLVS = 0x100, 0x200
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF

_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _STRICT_CHECK = 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ERRATTR_MESSAGE = 1

ENOENT, EAGAIN, EBUSY, EEXIST, ENODEV, EINVAL = 2, 11, 16, 17, 19, 22
ENOTEMPTY, EADDRNOTAVAIL, ENOBUFS = 39, 99, 105

CLONE_NEWNET = 0x40000000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute: length, type, data, padded to four bytes."""
    size = 4 + len(data)
    return _ATTRIBUTE.pack(size, kind) + data + b"\0" * (-size & 3)


def u8(kind: int, value: int) -> bytes:
    """An attribute of one byte."""
    return _ATTRIBUTE.pack(5, kind) + bytes((value, 0, 0, 0))


def u16(kind: int, value: int) -> bytes:
    """An attribute of two bytes in host order."""
    return _ATTRIBUTE.pack(6, kind) + value.to_bytes(2, "little" if _LITTLE else "big") + b"\0\0"


def u32(kind: int, value: int) -> bytes:
    """An attribute of four bytes in host order."""
    return _ATTRIBUTE.pack(8, kind) + _U32.pack(value & 0xFFFFFFFF)


def be16(kind: int, value: int) -> bytes:
    """An attribute of two bytes in network order."""
    return _ATTRIBUTE.pack(6, kind) + value.to_bytes(2, "big") + b"\0\0"


def be32(kind: int, value: int) -> bytes:
    """An attribute of four bytes in network order, as netfilter has them."""
    return _ATTRIBUTE.pack(8, kind) + value.to_bytes(4, "big")


def be64(kind: int, value: int) -> bytes:
    """An attribute of eight bytes in network order."""
    return _ATTRIBUTE.pack(12, kind) + value.to_bytes(8, "big")


def text(kind: int, value: str) -> bytes:
    """A string attribute with its final zero."""
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes, with the flag that says so."""
    return attribute(kind | _NESTED, b"".join(attributes))


_LITTLE = _U32.pack(1)[0] == 1


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Parse the attributes of `data` from `offset` on: {type: payload}; the last of a type wins."""
    return dict(each_attribute(data, offset))


def each_attribute(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes of `data` from `offset` on, in order, for lists of one type."""
    end = len(data)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4:
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def host_u32(data: bytes) -> int:
    """Four bytes in host order as a number."""
    value: int = _U32.unpack_from(data)[0]
    return value


def c_string(data: bytes) -> str:
    """A string attribute's text, without the zero."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


class Message:
    """One netlink message.

    type, flags  as in nlmsghdr; NLM_F_REQUEST and, but for a batch's ends, NLM_F_ACK are set on sending
    payload      the family's header and the attributes
    shown        the call as an error prints it: `RTM_NEWLINK veth0`
    """

    __slots__ = ("flags", "payload", "shown", "type")

    def __init__(self, type: int, flags: int, payload: bytes, shown: str) -> None:
        self.type = type
        self.flags = flags
        self.payload = payload
        self.shown = shown


class Socket:
    """A netlink socket of `protocol`, in the network namespace `netns` (a file descriptor) or the caller's own.

    Raises Error with the errno of the call that failed. A socket belongs to the
    namespace it was opened in for as long as it lives.
    """

    __slots__ = ("_sequence", "_socket")

    def __init__(self, protocol: int, netns: int | None = None) -> None:
        self._sequence = 0
        if netns is None:
            self._socket = _open(protocol)
            return
        with Inside(netns):
            self._socket = _open(protocol)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back; once more does nothing."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._socket.fileno()

    def enlarge(self, size: int) -> None:
        """Make room for `size` bytes in each direction (a batch of thousands of elements)."""
        self._socket.setsockopt(_socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        self._socket.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)

    def join(self, group: int) -> None:
        """Subscribe to a multicast group."""
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, 1, group)

    def receive(self, flags: int = 0) -> Iterator[tuple[int, int, int, bytes]]:
        """The messages of one datagram: (type, flags, sequence, payload)."""
        data = self._socket.recv(1 << 17, flags)
        offset = 0
        while offset + 16 <= len(data):
            size, kind, marks, sequence, _ = _HEADER.unpack_from(data, offset)
            if size < 16:
                return
            yield kind, marks, sequence, data[offset + 16 : offset + size]
            offset += (size + 3) & ~3

    def _send(self, messages: Iterable[Message], flags: int) -> dict[int, Message]:
        sent: dict[int, Message] = {}
        parts: list[bytes] = []
        for message in messages:
            self._sequence += 1
            sent[self._sequence] = message
            header = _HEADER.pack(16 + len(message.payload), message.type, message.flags | flags, self._sequence, 0)
            parts += (header, message.payload, b"\0" * (-len(message.payload) & 3))
        try:
            self._socket.send(b"".join(parts))
        except OSError as error:
            shown = next(iter(sent.values())).shown
            raise Error(call_failed(shown, error.errno or 0, error.strerror or ""), error.errno or 0) from error
        return sent

    def request(self, *messages: Message, accept: Sequence[int] = ()) -> list[int]:
        """Send `messages` as one datagram and wait for every answer.

        Returns the errno of each message, 0 for success; an errno that isn't in
        `accept` raises Error for the first message that failed (the ones after
        it were carried out all the same).
        """
        waiting = self._send(messages, NLM_F_REQUEST | NLM_F_ACK)
        numbers = dict.fromkeys(waiting, 0)
        failed: Error | None = None
        while waiting:
            for kind, flags, sequence, payload in self.receive():
                if kind != _ERROR or sequence not in waiting:
                    continue
                message = waiting.pop(sequence)
                error = _error_of(message.shown, flags, payload)
                if error is not None:
                    numbers[sequence] = error.errno
                    if failed is None and error.errno not in accept:
                        failed = error
        if failed is not None:
            raise failed
        return list(numbers.values())

    def ask(self, message: Message) -> bytes | None:
        """Send one message that asks for one object; None if there is none (ENOENT, ENODEV)."""
        (sequence,) = self._send((message,), NLM_F_REQUEST)
        while True:
            for kind, flags, number, payload in self.receive():
                if number != sequence:
                    continue
                if kind != _ERROR:
                    return payload
                error = _error_of(message.shown, flags, payload)
                if error is not None and error.errno not in (ENOENT, ENODEV):
                    raise error
                return None

    def dump(self, message: Message) -> list[bytes]:
        """Send one message that asks for a list; a list that changed meanwhile is asked for again."""
        for _ in range(20):
            payloads, whole = self._dump_once(message)
            if whole:
                return payloads
        raise Error(call_failed(message.shown, EBUSY, os.strerror(EBUSY), "it changes all the time"), EBUSY)

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        (sequence,) = self._send((message,), NLM_F_REQUEST | NLM_F_DUMP)
        payloads: list[bytes] = []
        whole = True
        while True:
            for kind, flags, number, payload in self.receive():
                if number != sequence:
                    continue
                whole = whole and not flags & _DUMP_INTERRUPTED
                if kind == _ERROR:
                    error = _error_of(message.shown, flags, payload)
                    if error is not None and error.errno != ENOENT:
                        raise error
                    return payloads, True
                if kind == _DONE:
                    return payloads, whole
                payloads.append(payload)

    def batch(self, messages: Sequence[Message], ends: tuple[Message, Message]) -> None:
        """Send `messages` between the two `ends` as one transaction: all of it happens or nothing.

        The kernel answers only messages that ask for it and those that failed,
        and it has done so when send returns: an empty queue means success.
        """
        sent = self._send((ends[0], *messages, ends[1]), NLM_F_REQUEST)
        failed: Error | None = None
        while True:
            try:
                answers = list(self.receive(_socket.MSG_DONTWAIT))
            except OSError as error:
                if error.errno == ENOBUFS:  # more errors than the queue holds: the first ones are in it
                    continue
                break
            for kind, flags, sequence, payload in answers:
                if kind == _ERROR and sequence in sent and failed is None:
                    failed = _error_of(sent[sequence].shown, flags, payload)
        if failed is not None:
            raise failed


def _open(protocol: int) -> _socket.socket:
    made = _socket.socket(16, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK) if protocol == ROUTE else (_CAP_ACK, _EXT_ACK):
        try:
            made.setsockopt(_SOL_NETLINK, option, 1)
        except OSError:
            pass  # kernels before 4.20: errors then come without their explanation, dumps unfiltered
    return made


def _error_of(shown: str, flags: int, payload: bytes) -> Error | None:
    """The Error of an NLMSG_ERROR, None if it is an acknowledgement."""
    number = -int.from_bytes(payload[:4], "little" if _LITTLE else "big", signed=True)
    if number == 0:
        return None
    hint = ""
    if flags & _ACK_TLVS:
        size = host_u32(payload[4:8])
        offset = 20 if flags & _ACK_CAPPED else 4 + ((size + 3) & ~3)
        hint = c_string(attributes(payload, offset).get(_ERRATTR_MESSAGE, b""))
    return Error(call_failed(shown, number, os.strerror(number), hint), number)


class Inside:
    """The calling thread in another network namespace: `with Inside(fd): …` (setns(2)).

    Raises Error if `netns` is no network namespace. A thread that can't come
    back must not go on in a namespace that isn't its own: it ends the process.
    """

    __slots__ = ("_back", "_netns")

    def __init__(self, netns: int) -> None:
        self._netns = netns
        self._back = -1

    def __enter__(self) -> Self:
        self._back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.call("setns", self._netns, CLONE_NEWNET)
        except Error:
            os.close(self._back)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            libc.call("setns", self._back, CLONE_NEWNET)
        except Error:
            os._exit(70)
        os.close(self._back)

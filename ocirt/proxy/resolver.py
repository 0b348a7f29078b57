"""The resolver of a container: names of the others of its networks, and the host's servers for the rest.

It listens in the container's namespace, by sockets that were opened there, and
asks by sockets of the host's namespace, where it lives; nothing listens on the
host. It ends when the container's init does.

    ocirt-resolver -ports FD    see ocirt.cni.resolvers
"""

from __future__ import annotations

import _signal
import _socket
import _thread
import os
import sys

from dnslib import AAAA, PTR, QTYPE, RCODE, RR, A, DNSRecord

from ocirt.cni.names import Names
from ocirt.jsontext import parse_json
from ocirt.proxy.loop import READ, Loop, accept
from ocirt.proxy.main import become_nobody, hold, leave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from dnslib import RD

_TTL = 10  # containers come and go
_TIMEOUT = 2.0  # for each server
_IN_FLIGHT = 256
_STREAMS = 32  # threads of questions by TCP
_LARGEST = 65535
_PORT = 53


def launch() -> NoReturn:
    """Run the process's own command line and leave."""
    os._exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or the end of the container."""
    number = int(arguments[arguments.index("-ports") + 1])
    data: Any = parse_json(os.pread(number, os.fstat(number).st_size, 0), "the description of the resolver")
    os.close(number)
    _signal.signal(_signal.SIGTERM, leave)
    if not hold(data["record"]):
        return 0
    loop = Loop()
    names = Names(data["names"])
    datagrams, listener, init = data["fds"]
    Resolver(loop, names, data["servers"], _socket.socket(fileno=datagrams), _socket.socket(fileno=listener))
    loop.watch(init, READ, lambda _events: os._exit(0))
    become_nobody()
    os.write(data["status"], b"0\n")
    os.close(data["status"])
    loop.run()
    return 0


class Resolver:
    """Answers questions; `servers` are asked one after the other for what isn't a name of ours."""

    __slots__ = ("_datagrams", "_in_flight", "_listener", "_lock", "_loop", "_names", "_servers", "_streams")

    def __init__(
        self, loop: Loop, names: Names, servers: list[str], datagrams: _socket.socket, listener: _socket.socket
    ) -> None:
        self._loop = loop
        self._names = names
        self._servers = servers[:3]
        self._datagrams = datagrams
        self._listener = listener
        self._in_flight = 0
        self._streams = 0
        self._lock = _thread.allocate_lock()
        datagrams.setblocking(False)
        listener.setblocking(False)
        loop.watch(datagrams.fileno(), READ, self._question)
        loop.watch(listener.fileno(), READ, self._accept)

    def answer(self, question: bytes) -> bytes | None:
        """The answer if it is about a name of ours, None if others know; broken questions get FORMERR."""
        try:
            asked = DNSRecord.parse(question)
        except Exception:  # the library's ways to say that bytes of a stranger are no question are many
            return question[:2] + b"\x80\x01" + bytes(8) if len(question) >= 12 else b""
        name = str(asked.q.qname).rstrip(".").lower()
        kind = QTYPE[asked.q.qtype]
        if kind == "PTR":
            found = self._names.reverse(name)
            return self._reply(asked, [PTR(found)]) if found else None
        addresses = self._names.lookup(name)
        if addresses is None:
            return None
        wanted = {"A": ".", "AAAA": ":"}.get(kind, "-")
        return self._reply(asked, [AAAA(a) if ":" in a else A(a) for a in addresses if wanted in a])

    def _reply(self, asked: DNSRecord, data: list[RD]) -> bytes:
        reply = asked.reply()
        for item in data:
            reply.add_answer(RR(asked.q.qname, asked.q.qtype, ttl=_TTL, rdata=item))
        return reply.pack()

    def _question(self, _events: int) -> None:
        for _ in range(32):
            try:
                question, client = self._datagrams.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue
            answer = self.answer(question)
            if answer is None:
                self._ask(question, client, list(self._servers))
            elif answer:
                self._send(answer, client)

    def _send(self, answer: bytes, client: Any) -> None:
        try:
            self._datagrams.sendto(answer, client)
        except OSError:
            pass  # it asks again

    def _ask(self, question: bytes, client: Any, servers: list[str]) -> None:
        """Ask the next server; SERVFAIL when there is none left or too much is going on."""
        while servers and self._in_flight < _IN_FLIGHT:
            server = servers.pop(0)
            family = _socket.AF_INET6 if ":" in server else _socket.AF_INET
            made = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
            try:
                # a port of its own for each question: an answer that is forged has to guess it
                made.connect((server, _PORT))
                made.send(question)
            except OSError:
                made.close()
                continue
            self._in_flight += 1
            _Pending(self, made, question, client, servers)
            return
        self._send(_failure(question), client)

    def through(self) -> None:
        """A question that was in flight has been answered or given up."""
        self._in_flight -= 1

    def _accept(self, _events: int) -> None:
        """Questions by TCP are rare: each has a thread."""
        try:
            fd = accept(self._listener)
        except OSError:
            return
        client = _socket.socket(fileno=fd)
        if self._streams >= _STREAMS:
            client.close()
            return
        with self._lock:
            self._streams += 1
        _thread.start_new_thread(self._serve, (client,))

    def _serve(self, client: _socket.socket) -> None:
        try:
            client.settimeout(10)
            while question := _receive(client):
                answer = self.answer(question)
                if answer is None:
                    answer = self._ask_by_stream(question)
                client.sendall(len(answer).to_bytes(2, "big") + answer)
        except OSError:
            pass
        finally:
            client.close()
            with self._lock:
                self._streams -= 1

    def _ask_by_stream(self, question: bytes) -> bytes:
        for server in self._servers:
            made = _socket.socket(_socket.AF_INET6 if ":" in server else _socket.AF_INET, _socket.SOCK_STREAM)
            try:
                made.settimeout(_TIMEOUT)
                made.connect((server, _PORT))
                made.sendall(len(question).to_bytes(2, "big") + question)
                answer = _receive(made)
                if answer:
                    return answer
            except OSError:
                continue
            finally:
                made.close()
        return _failure(question)


def _failure(question: bytes) -> bytes:
    """SERVFAIL to a question."""
    reply = DNSRecord.parse(question).reply()
    reply.header.rcode = RCODE.SERVFAIL
    return reply.pack()


def _receive(stream: _socket.socket) -> bytes:
    """One message of DNS by TCP, b"" at the end."""
    data = b""
    size = 2
    while len(data) < size:
        part = stream.recv(size - len(data) if len(data) >= 2 else 2 - len(data))
        if not part:
            return b""
        data += part
        if len(data) == 2:
            size = 2 + int.from_bytes(data, "big")
    return data[2:]


class _Pending:
    """A question that a server has been asked."""

    __slots__ = ("_client", "_done", "_question", "_resolver", "_servers", "_socket")

    def __init__(
        self, resolver: Resolver, socket: _socket.socket, question: bytes, client: Any, servers: list[str]
    ) -> None:
        self._resolver = resolver
        self._socket = socket
        self._question = question
        self._client = client
        self._servers = servers
        self._done = False
        resolver._loop.watch(socket.fileno(), READ, self._answered)
        resolver._loop.later(_TIMEOUT, self._late)

    def _answered(self, _events: int) -> None:
        try:
            answer = self._socket.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            answer = b""  # refused
        if len(answer) >= 12 and answer[:2] != self._question[:2]:
            return  # not to this question
        self._end()
        if len(answer) >= 12:
            self._resolver._send(answer, self._client)
        else:
            self._resolver._ask(self._question, self._client, self._servers)

    def _late(self) -> None:
        if not self._done:
            self._end()
            self._resolver._ask(self._question, self._client, self._servers)

    def _end(self) -> None:
        self._done = True
        self._resolver._loop.forget(self._socket.fileno())
        self._socket.close()
        self._resolver.through()

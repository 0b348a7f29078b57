"""containerd's side of events: a ttrpc server that records what is forwarded to it, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

from tests.engines.containerd import schema
from tests.engines.containerd.ttrpc import HEAD, RESPONSE, frame

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class Event:
    """One event as it came.

    topic    "/tasks/create"
    message  of the topic's type
    time     when it came, by the monotonic clock
    """

    def __init__(self, envelope: Any) -> None:
        self.topic: str = envelope.topic
        self.namespace: str = envelope.namespace
        self.stamp: Any = envelope.timestamp
        self.type_url: str = envelope.event.type_url
        self.message = schema.open_any(envelope.event)
        self.time = time.monotonic()

    @property
    def name(self) -> str:
        return self.topic.removeprefix("/tasks/")

    @property
    def id(self) -> str:
        """Of the container."""
        return str(self.message.container_id)

    @property
    def process(self) -> str:
        """The exec's id, or the container's for events of init."""
        for field in ("id", "exec_id"):
            if getattr(self.message, field, ""):
                return str(getattr(self.message, field))
        return self.id

    def __repr__(self) -> str:
        return f"{self.name}({self.process})"


class EventServer:
    """Listens at `path` until it is closed; every event that came, in order, is in `events`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.problems: list[str] = []
        self.connections = 0
        self.delay = 0.0
        self.resets = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.up()

    # how it behaves

    def up(self) -> None:
        """Listen (again)."""
        self._stop = threading.Event()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(16)
        self._thread = threading.Thread(target=self._serve, args=(listener, self._stop), daemon=True)
        self._thread.start()

    def down(self) -> None:
        """Stop listening and close what is open; the socket's file goes, too."""
        self._stop.set()
        if self._thread:
            self._thread.join(10)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.down()

    def _serve(self, listener: socket.socket, stop: threading.Event) -> None:
        open_: dict[int, tuple[socket.socket, bytearray]] = {}
        try:
            while not stop.is_set():
                readable = select.select([listener, *(c for c, _ in open_.values())], [], [], 0.02)[0]
                for ready in readable:
                    if ready is listener:
                        connection = listener.accept()[0]
                        self.connections += 1
                        open_[connection.fileno()] = (connection, bytearray())
                    else:
                        number = ready.fileno()
                        if not self._read(*open_[number]):
                            open_.pop(number)[0].close()
        finally:
            listener.close()
            for connection, _ in open_.values():
                connection.close()

    def _read(self, connection: socket.socket, data: bytearray) -> bool:
        """Take what came; False when the connection shall be closed."""
        try:
            more = connection.recv(1 << 16)
        except ConnectionResetError:
            return False
        if not more:
            return False
        data += more
        while len(data) >= HEAD.size:
            length, stream, _, _ = HEAD.unpack_from(data)
            if len(data) < HEAD.size + length:
                break
            payload = bytes(data[HEAD.size : HEAD.size + length])
            del data[: HEAD.size + length]
            if self.resets:
                self.resets -= 1
                return False
            time.sleep(self.delay)
            if not self._answer(connection, stream, payload):
                return False
        return True

    def _answer(self, connection: socket.socket, stream: int, payload: bytes) -> bool:
        request = schema.parse("ttrpc.Request", payload)
        if (request.service, request.method) != (SERVICE, "Forward"):
            self.problems.append(f"called {request.service}/{request.method}")
        envelope = schema.parse("containerd.events.ForwardRequest", request.payload).envelope
        if not envelope.timestamp.seconds:
            self.problems.append(f"{envelope.topic}: no timestamp")
        response = schema.message("ttrpc.Response").SerializeToString()
        with self._changed:
            self.events.append(Event(envelope))
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            connection.sendall(frame(stream, response, RESPONSE))
            return True
        return False

    # what was seen

    def of(self, id: str) -> list[Event]:
        """A container's events."""
        return [event for event in self.events if event.id == id]

    def names(self, id: str) -> list[str]:
        """The names of a container's events, in order: "create", "start" ..."""
        return [event.name for event in self.of(id)]

    def wait(self, name: str, id: str, process: str = "", timeout: float = 15) -> Event:
        """The first event of this name; fails when none comes."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                for event in self.of(id):
                    if event.name == name and (not process or event.process == process):
                        return event
                left = end - time.monotonic()
                assert left > 0, f"no {name} of {process or id} within {timeout} s: {self.of(id)}"
                self._changed.wait(left)

    def forget(self) -> None:
        """Begin anew."""
        with self._changed:
            self.events.clear()


def temporary(directory: Path) -> EventServer:
    """A server in a directory, under a name of its own."""
    return EventServer(directory / f"events-{os.urandom(3).hex()}.sock")

"""A containerd that only measures: it starts shims, calls them by ttrpc, takes their events."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from typing import Any

import host
from measure import ENVIRONMENT, TIMEOUT, Failed, Sample, run

sys.path.append(host.TOP)

from ocirt.shim import messages, wire

_HEAD = struct.Struct(">IIBB")
_TABLES: dict[str, tuple[wire.Table, wire.Table]] = {
    "Connect": (messages.CONTAINER, messages.CONNECT),
    "Create": (messages.CREATE, messages.PID),
    "Start": (messages.PROCESS, messages.PID),
    "Kill": (messages.KILL, messages.EMPTY),
    "Wait": (messages.PROCESS, messages.EXITED),
    "Delete": (messages.PROCESS, messages.DELETED),
    "Shutdown": (messages.SHUTDOWN, messages.EMPTY),
}


class Shim:
    """A connection to a shim."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(address.removeprefix("unix://"))
        self._stream = -1

    def __call__(self, method: str, **fields: Any) -> dict[str, Any]:
        """A call; Failed if it does."""
        request, response = _TABLES[method]
        call = {"service": "containerd.task.v2.Task", "method": method, "payload": wire.encode(request, fields)}
        self._stream += 2
        body = wire.encode(messages.REQUEST, call)
        self._socket.sendall(_HEAD.pack(len(body), self._stream, 1, 0) + body)
        length = _HEAD.unpack(_exactly(self._socket, _HEAD.size))[0]
        answer = wire.decode(messages.RESPONSE, _exactly(self._socket, length))
        if answer.get("status", {}).get("code"):
            raise Failed(f"{method}: {answer['status'].get('message')}")
        return wire.decode(response, answer.get("payload", b""))

    def shutdown(self, id: str) -> None:
        """Shutdown, and the end of the connection if it was the last container."""
        try:
            self("Shutdown", id=id)
        except EOFError:
            pass

    def close(self) -> None:
        """Leave."""
        self._socket.close()


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class Events:
    """containerd's end of events: takes them and says thanks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    length, stream, _, _ = _HEAD.unpack(_exactly(connection, _HEAD.size))
                    _exactly(connection, length)
                    connection.sendall(_HEAD.pack(0, stream, 2, 0))
            except (EOFError, OSError):
                return


class Caller:
    """Calls of one shim's binary.

    options  an Any for Create, {} for none
    """

    def __init__(self, binary: str, namespace: str, directory: str, options: dict[str, Any], spare: int = 0) -> None:
        """`spare`: seconds that a spare shim waits."""
        self.binary = binary
        self.namespace = namespace
        self.options = options
        self._grpc = f"{directory}/containerd.sock"
        self._env = {**ENVIRONMENT, "TTRPC_ADDRESS": f"{directory}/events.sock", "GOMAXPROCS": "2"}
        self._env["OCIRT_SHIM_SPARE"] = str(spare)

    def _argv(self, id: str, *rest: str) -> list[str]:
        given = ["-namespace", self.namespace, "-address", self._grpc, "-publish-binary", "/usr/bin/containerd"]
        return [self.binary, *given, "-id", id, *rest]

    def start(self, id: str, bundle: str, log: str) -> tuple[str, Sample]:
        """`start`: (address, cost)"""
        sample = run(self._argv(id, "start"), log=log, cwd=bundle, env=self._env)[1]
        with open(f"{bundle}/address", encoding="ascii") as file:
            return file.read(), sample

    def delete(self, id: str, bundle: str, log: str) -> Sample:
        """`delete`"""
        argv = self._argv(id, "-bundle", bundle, "delete")
        return run(argv, log=log, cwd=bundle, env=self._env, check=False)[1]


def runc_options(binary: str) -> dict[str, Any]:
    """containerd.runc.v1.Options that name a runtime."""
    value = wire.encode(messages.RUNC_OPTIONS, {"binary_name": binary})
    return {"type_url": "containerd.runc.v1.Options", "value": value}

"""A seccomp agent for tests: listens at a path, takes the listener it is sent, answers as told."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from ocirt.identity.seccomp import arches
from ocirt.linux import numbers

#: linux/seccomp.h: struct seccomp_notif (id, pid, flags, seccomp_data), struct seccomp_notif_resp
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
RESPONSE = struct.Struct("=QqiI")
RECV = 0xC0502100
SEND = 0xC0182101
CONTINUE = 1

NATIVE = arches.native(numbers.MACHINE)
assert NATIVE
NUMBERS = arches.numbers(NATIVE.table)
GETPPID, WRITE, EXIT_GROUP, MKDIRAT = (NUMBERS[call] for call in ("getppid", "write", "exit_group", "mkdirat"))
#: what os.mkdir calls
MKDIR = NUMBERS.get("mkdir", MKDIRAT)


class Agent:
    """Listens at a path, takes one listener, answers every notification as told."""

    def __init__(self, path: Path, answer: Callable[[int, list[int]], tuple[int, int, int]]) -> None:
        self.answer = answer
        self.states: list[dict] = []
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.end = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(1)
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            fds = array.array("i")
            data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(16))
            for _, _, rights in ancillary:
                fds.frombytes(rights)
            while more := connection.recv(65536):  # the connection is closed after one state
                data += more
        state = json.loads(data)
        assert len(fds) == len(state["fds"]) == 1
        self.states.append(state)
        (notify,) = fds
        try:
            while True:
                buffer = bytearray(NOTIFICATION.size)
                fcntl.ioctl(notify, RECV, buffer)
                id_, _, _, number, _, _, *args = NOTIFICATION.unpack(buffer)
                self.calls.append((number, tuple(args)))
                value, error, flags = self.answer(number, args)
                fcntl.ioctl(notify, SEND, bytearray(RESPONSE.pack(id_, value, error, flags)))
        except OSError as gone:
            self.end = gone.errno or 0
        finally:
            os.close(notify)

    def close(self) -> None:
        self.socket.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert self.end == errno.ENOENT  # no process has the filter any more

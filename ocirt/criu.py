"""CRIU as a service of this process: requests and answers of its RPC over a socket that it inherits.

`criu swrk 3` serves one client on descriptor 3. Messages are protobuf 2 (criu's rpc.proto), one a datagram. CRIU opens
the descriptors that a request names through /proc/PID/fd of the client, but those of inherit_fd it must have itself.
"""

from __future__ import annotations

import _socket
import os

from ocirt.errors import Error, Unsupported
from ocirt.linux import fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    #: (what CRIU is at, the pid it tells, descriptors that came with it)
    Notify = Callable[[str, int, list[int]], None]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: criu_req_type
DUMP, RESTORE, PRE_DUMP, NOTIFY, FEATURE_CHECK, VERSION = 1, 2, 4, 6, 9, 10

#: criu_cg_mode
CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
#: criu_network_lock_method
NETWORK_LOCKS = {"iptables": 1, "nftables": 2, "skip": 3}

#: Fields of criu_opts: number. The value's type gives the wire type: int and bool are varints, str and Mapping bytes;
#: a list is the field as often as it has members.
FIELDS = {
    "images_dir_fd": 1,
    "pid": 2,
    "leave_running": 3,
    "ext_unix_sk": 4,
    "tcp_established": 5,
    "shell_job": 7,
    "file_locks": 8,
    "log_level": 9,
    "log_file": 10,
    "ps": 11,
    "notify_scripts": 12,
    "root": 13,
    "parent_img": 14,
    "track_mem": 15,
    "auto_dedup": 16,
    "work_dir_fd": 17,
    "link_remap": 18,
    "manage_cgroups": 24,
    "cg_root": 25,
    "rst_sibling": 26,
    "inherit_fd": 27,
    "manage_cgroups_mode": 34,
    "external": 37,
    "empty_ns": 38,
    "freeze_cgroup": 44,
    "tcp_skip_in_flight": 46,
    "lazy_pages": 48,
    "status_fd": 49,
    "orphan_pts_master": 50,
    "config_file": 51,
    "tcp_close": 52,
    "lsm_profile": 53,
    "lsm_mount_context": 63,
    "network_lock": 64,
}
#: Of the messages within: criu_page_server_info, cgroup_root, inherit_fd.
INNER = {"ps": {"address": 1, "port": 2}, "cg_root": {"ctrl": 1, "path": 2}, "inherit_fd": {"key": 1, "fd": 2}}

_SIZE = 1 << 20


def find() -> str:
    """criu's path, "" if it isn't installed. Engines call without PATH: then the usual places are searched."""
    for directory in (os.environ.get("PATH") or PATH).split(":"):
        path = f"{directory}/criu"
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    return ""


def version(path: str) -> str:
    """criu's version, such as 4.2; Unsupported if it can't even start here."""
    with Service(path) as service:
        answer = service.ask(VERSION)
    fields = parse(answer.get(10, [b""])[-1])
    return f"{_int(fields, 1)}.{_int(fields, 2)}"


class Unexplained(Error):
    """CRIU failed and gave no reason."""


class Service:
    """A criu process that serves us until the end of the with block.

    passed  descriptors that it inherits, as 4, 5, …
    """

    def __init__(self, path: str = "", passed: tuple[int, ...] = ()) -> None:
        self.path = path or find()
        if not self.path:
            raise Unsupported("criu is not installed: checkpoint and restore need it (ocirt check)")
        self._passed = passed
        self.pid = 0

    def __enter__(self) -> Service:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        # out of the way of the numbers that are given below
        high = [_move_up(fd) for fd in (theirs.fileno(), *self._passed)]
        actions = [(os.POSIX_SPAWN_DUP2, fd, 3 + index) for index, fd in enumerate(high)]
        environment = {"PATH": os.environ.get("PATH") or PATH}
        try:
            self.pid = os.posix_spawn(self.path, ["criu", "swrk", "3"], environment, file_actions=actions)
        finally:
            for fd in high:
                os.close(fd)
            theirs.close()
        self.socket = ours
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        if self.pid:
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:
                pass

    def ask(
        self, kind: int, options: Mapping[str, Any] | None = None, notify: Notify | None = None, features: bytes = b""
    ) -> dict[int, list[Any]]:
        """Send a request and see it through; the fields of the answer. Error when CRIU says no."""
        request = _varint_field(1, kind)
        if options is not None:
            request += _bytes_field(2, pack(options))
        if features:
            request += _bytes_field(5, features)
        self._send(request)
        while True:
            try:
                data, descriptors = fds.receive(self.socket, _SIZE)
            except ConnectionResetError:
                data, descriptors = b"", []
            if not data:
                raise Unexplained(f"{self.path} ended without an answer")
            answer = parse(data)
            if _int(answer, 1) == NOTIFY and kind != NOTIFY:
                told = parse(answer.get(5, [b""])[-1])
                if notify:
                    notify(_text(told, 1), _int(told, 2), descriptors)
                self._send(_varint_field(1, NOTIFY) + _varint_field(3, 1))
                continue
            if not _int(answer, 2):
                raise refused(answer)
            return answer

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data, _socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            raise Unexplained(f"{self.path} ended at once") from None


def refused(answer: Mapping[int, list[Any]]) -> Error:
    """What a failed answer says."""
    number = _int(answer, 7)
    text = _text(answer, 9)
    if text:
        return Error(f"criu failed: {text}", number)
    return Unexplained(f"criu failed: {os.strerror(number).lower() if number else 'no reason given'}", number)


def pack(options: Mapping[str, Any], fields: Mapping[str, int] = FIELDS) -> bytes:
    """A message of named fields. None and False are left out."""
    data = b""
    for name, value in options.items():
        members: list[Any] = value if isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]
        for one in members:
            if one is None or one is False:
                continue
            if isinstance(one, str):
                data += _bytes_field(fields[name], os.fsencode(one))
            elif isinstance(one, int):
                data += _varint_field(fields[name], int(one))
            else:
                data += _bytes_field(fields[name], pack(one, INNER[name]))
    return data


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & (1 << 64) - 1)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def parse(data: bytes) -> dict[int, list[Any]]:
    """A message as {field number: values}: ints and bytes. ValueError if it is none."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        value: Any
        if key & 7 == 0:
            value, at = _read_varint(data, at)
        elif key & 7 == 2:
            length, at = _read_varint(data, at)
            value = data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {key & 7} in an answer of criu")
        found.setdefault(key >> 3, []).append(value)
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    raise ValueError("an answer of criu is cut off")


def _int(fields: Mapping[int, list[Any]], number: int) -> int:
    values = fields.get(number)
    return int(values[-1]) if values else 0


def _text(fields: Mapping[int, list[Any]], number: int) -> str:
    values = fields.get(number)
    return os.fsdecode(values[-1]) if values else ""


def _move_up(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)

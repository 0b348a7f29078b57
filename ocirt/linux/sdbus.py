"""systemd's own D-Bus library (sd-bus(3)), for asking systemd for a cgroup.

libsystemd is there wherever systemd is. It is opened when the first bus is, and by nothing else:
measured against jeepney, dbus-fast and python-sdbus it is the cheapest by far (docs/cgroups.md).
Only functions without variable arguments are called: their calling convention is the same everywhere.
"""

from __future__ import annotations

import _ctypes
import os
import struct
import sys
import time

from ocirt.errors import Error, Unsupported
from ocirt.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIBRARY = "libsystemd.so.0"
TIMEOUT = 30.0  # seconds for one call or job

_FIXED = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8}
_SIGNED = "nix"
EINTR, ETIMEDOUT = 4, 110


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """A char * in a buffer."""

    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = libc.c_int


class Failed(Error):
    """A method answered with an error; `name` is its D-Bus name."""

    def __init__(self, reason: str, errno: int, name: str) -> None:
        super().__init__(reason, errno)
        self.name = name


class Bus:
    """A connection; close it."""

    __slots__ = ("_bus", "_functions", "_handle", "private")

    def __init__(self, *, user: bool = False) -> None:
        """Connect to the system's or the user's bus, or to systemd itself if there is no bus.

        Raises Unsupported if neither is there.
        """
        try:
            self._handle = _ctypes.dlopen(LIBRARY, os.RTLD_NOW)
        except OSError as error:
            raise Unsupported(f"--cgroup-manager=systemd: {error}") from error
        self._functions: dict[str, _Function] = {}
        self._bus = 0
        self.private = False
        out = libc.Buffer(8)
        result = self._call("sd_bus_open_user" if user else "sd_bus_open_system", out)
        if result < 0:
            private = f"{os.environ.get('XDG_RUNTIME_DIR', '')}/systemd/private" if user else "/run/systemd/private"
            if not private.startswith("/") or self._open_private(private, out) < 0:
                where = "user's bus (XDG_RUNTIME_DIR, DBUS_SESSION_BUS_ADDRESS)" if user else "system's bus"
                raise Unsupported(
                    f"connect to systemd over the {where}: {os.strerror(-result).lower()} "
                    "(--cgroup-manager=cgroupfs does without systemd)",
                    -result,
                )
            self.private = True
        self._bus = _address(out)

    def _open_private(self, path: str, out: libc.Buffer) -> int:
        self._call("sd_bus_new", out)
        bus = _address(out)
        self._call("sd_bus_set_address", bus, f"unix:path={path}".encode())
        return self._call("sd_bus_start", bus)

    def close(self) -> None:
        """Send what is queued and hang up."""
        if self._bus:
            self._call("sd_bus_flush", self._bus)
            self._call("sd_bus_close", self._bus)
            self._bus = 0

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    # -- calling methods

    def call(self, target: tuple[str, str, str], member: str, signature: str = "", *values: Any) -> int:
        """Call a method of (destination, path, interface); the reply, to be read and given to `free`.

        Raises Failed.
        """
        out = libc.Buffer(8)
        names = [text.encode() + b"\0" for text in (*target, member)]
        self._check(self._call("sd_bus_message_new_method_call", self._bus, out, *names), member)
        message = _address(out)
        try:
            self._append(message, signature, list(values))
            error = libc.Buffer(24)  # sd_bus_error: name, message, int
            timeout = int(TIMEOUT * 1e6)
            result = self._call("sd_bus_call", self._bus, message, timeout, error, out)
            if result < 0:
                name, text = _string(error, 0), _string(error, 8)
                self._call("sd_bus_error_free", error)
                raise Failed(f"{member}: {text or os.strerror(-result).lower()}", -result, name)
        finally:
            self.free(message)
        return _address(out)

    def add_match(self, rule: str) -> None:
        """Have signals that match sent to us; not needed, and not possible, without a bus in between."""
        if not self.private:
            target = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
            self.free(self.call(target, "AddMatch", "s", rule))

    def signals(self, member: str, signature: str, timeout: float = TIMEOUT) -> Any:
        """Yield the arguments of each signal of this name; raises Error after `timeout` seconds."""
        until = time.monotonic() + timeout
        out = libc.Buffer(8)
        while True:
            out.data[:] = bytes(8)
            self._check(self._call("sd_bus_process", self._bus, out), "sd_bus_process")
            message = _address(out)
            if message:
                try:
                    if self._call("sd_bus_message_is_signal", message, 0, member.encode() + b"\0") > 0:
                        yield self.read(message, signature)
                finally:
                    self.free(message)
                continue
            left = until - time.monotonic()
            if left <= 0:
                raise Error(f"no {member} from systemd within {timeout:g} s", ETIMEDOUT)
            waited = self._call("sd_bus_wait", self._bus, int(min(left, 1.0) * 1e6))
            if waited != -EINTR:
                self._check(waited, "sd_bus_wait")

    def read(self, message: int, signature: str) -> list[Any]:
        """The first values of a message, basic types only; `v` opens a variant of the type that follows it."""
        values: list[Any] = []
        inside = False
        for code in signature:
            if code == "v":
                inside = True
                continue
            out = libc.Buffer(8)
            if inside:
                self._check(self._call("sd_bus_message_enter_container", message, ord("v"), code.encode()), "read")
            self._check(self._call("sd_bus_message_read_basic", message, ord(code), out), "read")
            size = _FIXED.get(code)
            if size is None:
                values.append(_string(out, 0))
            else:
                values.append(int.from_bytes(out.data[:size], sys.byteorder, signed=code in _SIGNED))
        return values

    def free(self, message: int) -> None:
        """Give a message back."""
        self._call("sd_bus_message_unref", message)

    # -- writing arguments

    def _append(self, message: int, signature: str, values: list[Any]) -> None:
        for part, value in zip(split(signature), values, strict=True):
            self._append_one(message, part, value)

    def _append_one(self, message: int, part: str, value: Any) -> None:
        first = part[0]
        if first == "a":
            self._open(message, "a", part[1:])
            for item in value:
                self._append_one(message, part[1:], item)
        elif first in "({":
            self._open(message, "r" if first == "(" else "e", part[1:-1])
            self._append(message, part[1:-1], list(value))
        elif first == "v":
            inner, item = value
            self._open(message, "v", inner)
            self._append_one(message, inner, item)
        else:
            self._append_basic(message, first, value)
            return
        self._check(self._call("sd_bus_message_close_container", message), "close_container")

    def _open(self, message: int, kind: str, contents: str) -> None:
        result = self._call("sd_bus_message_open_container", message, ord(kind), contents.encode())
        self._check(result, f"open_container {kind}{contents}")

    def _append_basic(self, message: int, code: str, value: Any) -> None:
        argument: bytes | libc.Buffer
        if code in "sog":
            argument = str(value).encode("utf-8", "surrogateescape")
        elif code == "d":
            argument = libc.Buffer(struct.pack("=d", value))
        elif code in _FIXED:
            argument = libc.Buffer(int(value).to_bytes(_FIXED[code], sys.byteorder, signed=code in _SIGNED))
        else:
            raise Error(f"no such D-Bus type: {code!r}")
        self._check(self._call("sd_bus_message_append_basic", message, ord(code), argument), f"append {code}")

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise Error(f"{what}: {os.strerror(-result).lower()}", -result)

    def _call(self, name: str, *arguments: int | bytes | libc.Buffer) -> int:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = _Function(_ctypes.dlsym(self._handle, name))
        converted = [
            libc.c_long(a if a < 1 << 63 else a - (1 << 64)) if isinstance(a, int)
            else libc.c_long(a.address) if isinstance(a, libc.Buffer)
            else a
            for a in arguments
        ]  # fmt: skip
        result: int = function(*converted)
        return result


def _address(buffer: libc.Buffer) -> int:
    return int.from_bytes(buffer.data[:8], sys.byteorder)


def _string(buffer: libc.Buffer, offset: int) -> str:
    pointer: Any = _Pointer.from_buffer(buffer.data, offset)
    value: bytes = pointer.value or b""
    return value.decode("utf-8", "replace")


def split(signature: str) -> list[str]:
    """A signature's complete types: `sa(sv)u` is s, a(sv), u."""
    parts: list[str] = []
    depth = start = 0
    for at, character in enumerate(signature):
        if character in "({":
            depth += 1
        elif character in ")}":
            depth -= 1
        if depth == 0 and character != "a":
            parts.append(signature[start : at + 1])
            start = at + 1
    return parts

"""Calling libc and the kernel: the only module of the package with ctypes.

`_ctypes` is used directly: importing `ctypes` costs 0.4 of a bare interpreter's
start, `_ctypes` costs nothing measurable. Every failing call raises
`Error("name(arguments): no such file or directory", errno)`; EINTR is retried
where the caller says that it can happen.
"""

from __future__ import annotations

import _ctypes
import posix as os

from ocirt.errors import Error, call_failed

EINTR = 4
ENOSYS = 38
EINVAL = 22
EPERM = 1
EOPNOTSUPP = 95

_CDECL = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO


class c_long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C long: integers of unknown width must not be passed as int."""

    _type_ = "l"


class c_int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C int: what nearly every libc function returns; as a long, its -1 reads 4294967295."""

    _type_ = "i"


class c_char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C char, for buffers."""

    _type_ = "c"


class _Function(_ctypes.CFuncPtr):
    """A libc function that keeps errno and gives back the GIL."""

    _flags_ = _CDECL
    _restype_ = c_long


class _IntFunction(_ctypes.CFuncPtr):
    """A libc function that returns int."""

    _flags_ = _CDECL
    _restype_ = c_int


class _GilFunction(_ctypes.CFuncPtr):
    """A libc function called with the GIL held: clone must not lose it in the child."""

    _flags_ = _CDECL | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = c_long


_HANDLE = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
_syscall = _Function(_ctypes.dlsym(_HANDLE, "syscall"))
_syscall_gil = _GilFunction(_ctypes.dlsym(_HANDLE, "syscall"))
_functions: dict[str, _IntFunction] = {}


class Buffer:
    """A mutable C buffer of `size` bytes whose address can stand in another buffer."""

    __slots__ = ("_array", "data")

    def __init__(self, data: bytes | bytearray | int) -> None:
        self.data = bytearray(data)
        self._array = (c_char * len(self.data)).from_buffer(self.data)

    @property
    def address(self) -> int:
        """Where the buffer starts; valid while this object lives."""
        return _ctypes.addressof(self._array)


Argument = int | bytes | Buffer | None


def _convert(value: Argument) -> object:
    if value is None:
        return c_long(0)
    if isinstance(value, int):
        return c_long(value - (1 << 64) if value >= 1 << 63 else value)
    if isinstance(value, Buffer):
        return c_long(value.address)
    return value


def show(value: Argument) -> str:
    """An argument as strace prints it."""
    if value is None:
        return "NULL"
    if isinstance(value, Buffer):
        return "{…}"
    if isinstance(value, bytes):
        text = value.decode("utf-8", "surrogateescape")
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value) if -4096 < value < 65536 else hex(value)


def _raise(name: str, arguments: tuple[Argument, ...], shown: str, hint: str) -> Error:
    errno = _ctypes.get_errno()
    call = shown or f"{name}({', '.join(show(a) for a in arguments)})"
    return Error(call_failed(call, errno, os.strerror(errno), hint), errno)


def syscall(name: str, number: int, *arguments: Argument, shown: str = "", retry: bool = False) -> int:
    """syscall(2). `shown` replaces the call's text in the error; `retry` repeats on EINTR."""
    if number < 0:
        raise Error(f"{name}: function not implemented", ENOSYS)
    converted = [_convert(a) for a in arguments]
    while True:
        result: int = _syscall(c_long(number), *converted)
        if result != -1:
            return result
        if not (retry and _ctypes.get_errno() == EINTR):
            raise _raise(name, arguments, shown, "")


def syscall_gil(name: str, number: int, *arguments: Argument) -> int:
    """syscall(2) without giving the GIL away: for clone, whose child is this same thread."""
    result: int = _syscall_gil(c_long(number), *[_convert(a) for a in arguments])
    if result == -1:
        raise _raise(name, arguments, "", "")
    return result


def call(name: str, *arguments: Argument, shown: str = "", hint: str = "") -> int:
    """Call libc's `name`, which returns int; -1 is an error."""
    function = _functions.get(name)
    if function is None:
        function = _functions[name] = _IntFunction(_ctypes.dlsym(_HANDLE, name))
    result: int = function(*[_convert(a) for a in arguments])
    if result == -1:
        raise _raise(name, arguments, shown, hint)
    return result

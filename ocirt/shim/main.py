"""containerd-shim-ocirt-v1: the command line that containerd calls, and nobody else (runtime/v2 README of containerd).

    [-namespace NS] [-id ID] [-address GRPC] [-publish-binary FILE] [-bundle DIR] [-debug] start | delete
    -info        what the runtime is and can do, as a protobuf message
    -v, -version

containerd waits for `start` and `delete`: they import what they need and nothing else.
"""

from __future__ import annotations

import posix
import sys

from ocirt import log
from ocirt.errors import Error, InvalidConfig, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAME = "io.containerd.ocirt.v1"
_VALUES = ("namespace", "id", "address", "publish-binary", "bundle", "socket", "operation")
_FLAGS = ("debug", "info", "v", "version")


class Options:
    """The flags: names with underscores, "" and False where they aren't given; and the action."""

    __slots__ = ("action", *(name.replace("-", "_") for name in (*_VALUES, *_FLAGS)))
    action: str
    namespace: str
    id: str
    address: str
    publish_binary: str
    bundle: str
    socket: str
    operation: str
    debug: bool
    info: bool
    v: bool
    version: bool

    def __init__(self) -> None:
        self.action = ""
        for name in _VALUES:
            setattr(self, name.replace("-", "_"), "")
        for name in _FLAGS:
            setattr(self, name, False)


def parse(argv: list[str]) -> Options:
    """Read flags as Go's flag package does: -k v, -k=v, --k v; the action comes after them. Raises InvalidConfig."""
    options = Options()
    words = iter(argv)
    for word in words:
        if word[:1] != "-" or word == "-":
            options.action = word
            break
        name, equals, value = word[2 if word[:2] == "--" else 1 :].partition("=")
        if name in _FLAGS:
            if equals and value not in ("true", "false"):
                raise InvalidConfig(f"-{name}={value}: true or false is wanted")
            setattr(options, name, value != "false")
        elif name in _VALUES:
            given = value if equals else next(words, None)
            if given is None:
                raise InvalidConfig(f"flag needs an argument: -{name}")
            setattr(options, name.replace("-", "_"), given)
        else:
            raise InvalidConfig(f"flag provided but not defined: -{name}")
    return options


def launch() -> NoReturn:
    """Run the process's own command line and leave: for launchers."""
    import gc

    gc.disable()
    log.open_standard_files()
    status = 1
    try:
        status = run(sys.argv[1:])
    except Error as error:
        posix.write(2, f"{error}\n".encode("utf-8", "backslashreplace"))
    except Exception as error:
        log.error("bug in ocirt: " + " ".join(f"{type(error).__name__}: {error}".split()))
        import traceback

        posix.write(2, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
    finally:
        posix._exit(status)


def run(argv: list[str]) -> int:
    """Do what the command line says; the exit status."""
    options = parse(argv)
    if options.v or options.version:
        from ocirt.shim import info

        write(info.version().encode())
    elif options.info:
        from ocirt.shim import info

        write(info.info())
    elif options.operation:
        from ocirt.shim import again

        again.do(int(options.operation))
    elif options.action in ("start", "delete"):
        check(options)
        if options.action == "start":
            from ocirt.shim import starting

            starting.start(options)
        else:
            from ocirt.shim import deleting

            deleting.delete(options)
    else:
        raise Unsupported(f"{options.action!r} is neither start nor delete: containerd calls this program")
    return 0


def check(options: Options) -> None:
    """Refuse what would lead elsewhere: names become parts of paths."""
    from ocirt.ids import check_id

    if not options.namespace:
        raise InvalidConfig("shim namespace cannot be empty")
    check_id(options.namespace)
    check_id(options.id)


def write(data: bytes) -> None:
    """Write to stdout, all of it."""
    while data:
        data = data[posix.write(1, data) :]

"""The commands: one small file each, `def run(options: Options) -> int`; and what they share.

A command reads its options, calls `ocirt.lifecycle` and writes the result; the int is the exit status. Errors are
raised: `ocirt.__main__` prints them.

A command's module becomes an attribute of this package: here, `list` and `exec` are not what they are elsewhere.
"""

from __future__ import annotations

import posix
import sys

from ocirt.errors import Error, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ocirt.lifecycle import Runtime

SIGINT = 2
SIGPIPE = 13
EPIPE = 32


class Options:
    """The values of a command line: an attribute for each row of the table, dashes as underscores."""

    def __init__(self, values: dict[str, object]) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def runtime(options: Options) -> Runtime:
    """The runtime that the global options describe: the first argument of every operation."""
    from ocirt.lifecycle import Runtime

    return Runtime(
        root=options.root or default_root(),
        cgroup_manager="systemd" if options.systemd_cgroup else options.cgroup_manager,
        rootless=options.rootless == "true" or (options.rootless == "auto" and is_rootless()),
        debug=options.debug,
        argv=tuple(sys.orig_argv[1:]),
    )


def default_root() -> str:
    """Where containers' state is kept without --root.

    It depends on nothing but the user and XDG_RUNTIME_DIR, because engines start `kill` with that variable alone:
    the same container must be found by every call. Root of the host never follows the variable, which sudo may have
    kept from the user. An empty one counts as unset: then it is where pam_systemd(8) makes it, if that is there.
    """
    if not is_rootless():
        return "/run/ocirt"
    given = posix.environ.get(b"XDG_RUNTIME_DIR")
    if given:
        return given.decode("utf-8", "surrogateescape") + "/ocirt"
    if posix.geteuid() == 0:
        return "/run/ocirt"  # root of a user namespace that has a /run of its own
    directory = f"/run/user/{posix.geteuid()}"  # where it usually points to: su(1) and cron(8) don't set it
    try:
        if posix.stat(directory).st_uid == posix.geteuid():
            return directory + "/ocirt"
    except OSError:
        pass  # nobody has made it
    raise Error("no directory for the containers' state: XDG_RUNTIME_DIR is not set (set it, or give --root DIR)")


def is_rootless() -> bool:
    """Is this another user than root, or root of a user namespace only?"""
    if posix.geteuid() != 0:
        return True
    try:
        fd = posix.open("/proc/self/uid_map", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False  # a kernel without user namespaces
    try:
        return posix.read(fd, 4096).split() != [b"0", b"0", b"4294967295"]
    finally:
        posix.close(fd)


def write(text: str) -> None:
    """Write to stdout, all of it; a reader that went away ends the command as it ends any other: by SIGPIPE."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        with doing("write to stdout"):
            while data:
                data = data[posix.write(1, data) :]
    except Error as error:
        if error.errno != EPIPE:
            raise
        end_by(SIGPIPE)


def end_by(signal: int) -> None:
    """End this process by a signal, so that whoever waits for it sees that."""
    import _signal

    _signal.signal(signal, _signal.SIG_DFL)
    posix.kill(posix.getpid(), signal)


def indented(value: Any, indent: str = "") -> str:
    """JSON with two spaces of indentation a level; `json` would cost as much as the interpreter's start."""
    from _json import encode_basestring

    inner = indent + "  "
    if isinstance(value, str):
        # what is not UTF-8 in a path can't stand in JSON
        return encode_basestring(value.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        members = [f"{inner}{indented(key)}: {indented(member, inner)}" for key, member in pairs.items()]
        return "{\n" + ",\n".join(members) + f"\n{indent}}}" if members else "{}"
    items = [inner + indented(item, inner) for item in value]
    return "[\n" + ",\n".join(items) + f"\n{indent}]" if items else "[]"


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows as a table whose columns are as wide as their widest cell, at least 12, as runc's are."""
    widths = [max(12, *(len(cell) + 3 for cell in column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "".join("".join(row).rstrip() + "\n" for row in padded)


def each_match(rt: Runtime, pattern: str, operation: Callable[[str], object]) -> int:
    """Do `operation` with each container whose id matches; one failure doesn't keep the others from it."""
    import re

    from ocirt import lifecycle, log

    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise Error(f"{pattern!r} is not a regular expression: {error}") from None
    status = 0
    for state in lifecycle.containers(rt):
        if matches(state["id"]):
            try:
                operation(state["id"])
            except Error as error:
                log.error(str(error))
                status = 1
    return status

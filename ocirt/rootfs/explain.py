"""Why a mount failed, in words: only ever called on failure.

The kernel says more through fsopen(2) than by mount(2)'s errno: the same file system is
set up once more, option by option, without mounting it, and what the kernel logs is read.
"""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, call_failed
from ocirt.linux import mount as m
from ocirt.rootfs import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.rootfs.options import Options

_EPERM, _ENOENT, _EBUSY, _ENODEV, _ENOTDIR, _EINVAL, _ENOSPC = 1, 2, 16, 19, 20, 22, 28

_FLAGS = (
    (m.MS_SYNCHRONOUS, "sync"),
    (m.MS_DIRSYNC, "dirsync"),
    (m.MS_MANDLOCK, "mand"),
    (m.MS_SILENT, "silent"),
    (m.MS_I_VERSION, "iversion"),
    (m.MS_LAZYTIME, "lazytime"),
)

_NAMESPACES = {"proc": "pid", "sysfs": "network", "mqueue": "ipc"}
_FULL = "the mount namespace may hold no more mounts: sysctl fs.mount-max"


def new_mount(plan: Plan, error: Error, destination: str, kind: str, source: str, o: Options, data: list[str]) -> Error:
    """The error of mounting a new file system, as the call with its arguments and a hint."""
    names = m.attribute_names(o.set) + [name for flag, name in _FLAGS if o.flags & flag]
    call = f'mount("{source}", "{destination}", "{kind}", "{",".join(names)}", "{",".join(data)}")'
    errno = error.errno
    hint = ""
    if not kind:
        hint = 'no type is given, and no option "bind" or "rbind"'
    elif errno == _ENODEV:
        hint = f'the kernel has no filesystem "{kind}"'
        if kind in ("bind", "rbind", "none"):
            hint = 'a bind mount has the option "bind" or "rbind"'
    elif errno == _ENOSPC:
        hint = _FULL
    else:
        hint = _ask_kernel(kind, source, data) or (_user_namespace(plan, kind) if errno == _EPERM else "")
    return Error(call_failed(call, errno, os.strerror(errno), hint), errno)


def _user_namespace(plan: Plan, kind: str) -> str:
    if not plan.userns:
        return ""
    needed = _NAMESPACES.get(kind)
    if needed and needed not in plan.new:
        return f"in a user namespace, {kind} can be mounted only with a new {needed} namespace"
    if needed:
        return f"in a user namespace, {kind} can't be mounted where the host's own is covered by other mounts"
    return f"{kind} may be one of the filesystems that can't be mounted in a user namespace"


def _ask_kernel(kind: str, source: str, data: list[str]) -> str:
    try:
        context = m.fsopen(kind.encode())
    except Error:
        return ""
    try:
        m.fsconfig(context, m.FSCONFIG_SET_STRING, b"source", source.encode())
        for key, value in options.split_data(data):
            try:
                if value is None:
                    m.fsconfig(context, m.FSCONFIG_SET_FLAG, key.encode())
                elif len(value) < m.FSCONFIG_STRING_MAX:
                    m.fsconfig(context, m.FSCONFIG_SET_STRING, key.encode(), value.encode())
            except Error:
                option = key if value is None else f"{key}={value}"
                said = m.messages(context)
                return f'option "{option}": {said}' if said else f'option "{option}"'
        m.fsconfig(context, m.FSCONFIG_CMD_CREATE)
    except Error:
        pass
    else:
        return ""
    finally:
        said = m.messages(context)
        os.close(context)
    return said


def bind(error: Error, source: str) -> Error:
    """The error of opening the source of a bind mount."""
    hint = ""
    if error.errno == _ENOSPC:
        hint = _FULL
    elif error.errno == _EINVAL:
        hint = "an unbindable mount, or one of another mount namespace"
    return Error(call_failed(f'open_tree("{source}")', error.errno, os.strerror(error.errno), hint), error.errno)


def attach(error: Error, source: str, destination: str) -> Error:
    """The error of attaching a bind mount."""
    hint = ""
    if error.errno == _ENOSPC:
        hint = _FULL
    elif error.errno in (_ENOTDIR, _EINVAL):
        hint = "a directory can be mounted only on a directory, a file only on a file"
    call = f'mount("{source}", "{destination}", MS_BIND)'
    return Error(call_failed(call, error.errno, os.strerror(error.errno), hint), error.errno)


def attributes(error: Error, fd: int, o: Options) -> Error:
    """The error of changing a mount's attributes."""
    names = m.attribute_names(o.set | o.rset) + [f"-{n}" for n in m.attribute_names(o.clear | o.rclear)]
    call = f"mount_setattr({','.join(names)})"
    hint = ""
    if error.errno == _EPERM:
        locked = m.attribute_names(m.attributes_of(fd) & (o.clear | o.rclear))
        if locked:
            hint = f"{','.join(locked)} of the source is locked: a user namespace can't clear it"
    elif error.errno == _EBUSY:
        hint = "a file in it is open for writing"
    elif "Linux" in error.reason:
        return error
    return Error(call_failed(call, error.errno, os.strerror(error.errno), hint), error.errno)

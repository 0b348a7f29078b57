"""Calling a plugin: ours in this process, any other by executing it (SPEC.md, sections 2 and 4)."""

from __future__ import annotations

import os
import time

from ocirt import log
from ocirt.cni import protocol
from ocirt.cni.plugins import TYPES, load
from ocirt.cni.protocol import CNIError
from ocirt.cni.request import BUILTIN, Request, valid_attachments
from ocirt.cni.result import Result
from ocirt.errors import Error, doing
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cni.plugins import Plugin

#: The file that all links to our executables lead to.
DISPATCHER = "ocirt-cni"
PREFIX = "ocirt-cni-"

_TEXT_BUSY = 26
_NO_VERSION = "unknown CNI_COMMAND: VERSION"


def find(type: str, path: tuple[str, ...]) -> str:
    """The executable of a plugin, or BUILTIN if it is one of ours; CNIError if there is none.

    The first directory that has a regular file of this name decides; a link to
    our own dispatcher is as good as the plugin in this process.
    """
    if not type or "/" in type or type in (".", ".."):
        raise CNIError(protocol.INVALID_CONFIG, f"invalid plugin type {type!r}", "must be a file name")
    ours = type in TYPES
    for directory in path:
        if directory == BUILTIN:
            if ours:
                return BUILTIN
            continue
        file = os.path.join(directory, type)
        if os.path.isfile(file):
            return BUILTIN if ours and os.path.basename(os.path.realpath(file)) == DISPATCHER else file
    if ours:
        return BUILTIN
    looked = ", ".join(d if d != BUILTIN else "ocirt's own" for d in path)
    raise CNIError(protocol.INTERNAL, f"failed to find plugin {type!r} in path [{looked}]")


def invoke(request: Request, type: str = "") -> Result | None:
    """Call the plugin `type` (by default the one that the configuration names); the Result of ADD.

    Raises CNIError as the plugin did.
    """
    type = type or protocol.string(request.config, "type")
    found = find(type, request.path)
    with doing(f"CNI {request.command} by plugin {type}"):
        if found == BUILTIN:
            return call(load(type), request)
        return execute(found, request)


def delegate(request: Request, type: str, command: str = "") -> Result | None:
    """Call the plugin that a plugin hands part of its work to: the same request, whole."""
    if command and command != request.command:
        return invoke(request.again(command=command), type)
    return invoke(request, type)


def call(plugin: Plugin, request: Request) -> Result | None:
    """Run one of our plugins here, with the checks that every plugin makes first."""
    command = request.command
    if request.version not in plugin.VERSIONS:
        raise CNIError(
            protocol.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f"config is {request.version!r}, plugin supports {list(plugin.VERSIONS)}",
        )
    if command in protocol.SINCE and not protocol.at_least(request.version, protocol.SINCE[command]):
        raise CNIError(protocol.INCOMPATIBLE_VERSION, f"config version does not allow {command}")
    if command == "ADD":
        return plugin.add(request)
    if command == "CHECK":
        if request.previous is None:
            raise CNIError(protocol.INVALID_CONFIG, "required prevResult missing")
        plugin.check(request)
    elif command == "DEL":
        plugin.delete(request)
    elif command == "GC":
        plugin.gc(request, valid_attachments(request))
    elif command == "STATUS":
        plugin.status(request)
    else:
        raise CNIError(protocol.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    return None


def _environment(request: Request) -> dict[str, str]:
    made = {k: v for k, v in os.environ.items() if not k.startswith("CNI_") or k == "CNI_NETNS_OVERRIDE"}
    made.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    made["CNI_COMMAND"] = request.command
    made["CNI_PATH"] = ":".join(d for d in request.path if d != BUILTIN)
    if request.command not in ("GC", "STATUS", "VERSION"):
        made["CNI_CONTAINERID"] = request.container
        made["CNI_NETNS"] = request.netns
        made["CNI_IFNAME"] = request.ifname
        made["CNI_ARGS"] = request.args
    return made


def execute(file: str, request: Request) -> Result | None:
    """Execute a plugin with the request; CNIError as it printed it, or what can be said about its failure."""
    status, out, err = run(file, _environment(request), dump_json(request.config))
    if err:
        log.debug(f"{file}: {err.decode('utf-8', 'replace').strip()}")
    if status != 0:
        raise _failure(out, err, status)
    if request.command != "ADD":
        return None
    data = parse_json(out, f"the result of {file}") if out.strip() else None
    return Result.parse(_object(data, file), request.version) if data is not None else Result()


def _object(data: object, file: str) -> dict[str, Any]:
    found = protocol.mapping(data)
    if found is None:
        raise CNIError(protocol.DECODING_FAILURE, f"the output of {file} is no JSON object", repr(data)[:200])
    return found


def _failure(out: bytes, err: bytes, status: int) -> CNIError:
    if not out.strip():
        text = err.decode("utf-8", "replace").strip() or f"exit status {status} without a word"
        return CNIError(protocol.INTERNAL, f"netplugin failed: {text}")
    try:
        data = _object(parse_json(out, "the plugin's error"), "the plugin")
        return CNIError(int(data.get("code", 0)), str(data.get("msg", "")), str(data.get("details") or ""))
    except (Error, ValueError, TypeError):
        text = out.decode("utf-8", "replace").strip()
        return CNIError(protocol.INTERNAL, f"netplugin failed but error parsing its diagnostic message {text!r}")


def run(
    file: str, environment: dict[str, str], stdin: bytes, arguments: tuple[str, ...] = ()
) -> tuple[int, bytes, bytes]:
    """Execute `file` with `arguments`; (exit status, or minus the signal; standard output; standard error).

    Memory files instead of pipes: whatever a plugin leaves running can't make
    us wait, and no size of configuration or output can block both sides.
    """
    files = [os.memfd_create(f"cni-{name}", os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
        for attempt in range(6):
            try:
                pid = os.posix_spawn(file, [file, *arguments], environment, file_actions=actions)
                break
            except OSError as error:
                if error.errno != _TEXT_BUSY or attempt == 5:
                    raise CNIError(protocol.INTERNAL, f"execute {file}", error.strerror or "") from error
                time.sleep(1)  # somebody installs it at this moment
        else:
            raise AssertionError
        _, waited = os.waitpid(pid, 0)
        out, err = (_contents(fd) for fd in files[1:])
        return os.waitstatus_to_exitcode(waited), out, err
    finally:
        for fd in files:
            os.close(fd)


def _contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def versions(type: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """The CNI versions that a plugin takes (VERSION)."""
    found = find(type, path)
    if found == BUILTIN:
        return load(type).VERSIONS
    environment = dict(os.environ)
    environment.update(CNI_COMMAND="VERSION", CNI_NETNS="dummy", CNI_IFNAME="dummy", CNI_PATH="dummy")
    status, out, err = run(found, environment, dump_json({"cniVersion": protocol.CURRENT}))
    if status != 0:
        error = _failure(out, err, status)
        if error.msg == _NO_VERSION:
            return ("0.1.0",)  # from before there was the command
        raise error
    data = _object(parse_json(out, f"the versions of {found}"), found)
    listed = protocol.listing(data.get("supportedVersions"))
    if listed is None and data.get("cniVersion") == "0.2.0":
        return ("0.1.0", "0.2.0")
    if listed is None or not all(isinstance(v, str) for v in listed):
        raise CNIError(protocol.DECODING_FAILURE, f"{found} told no supportedVersions")
    return tuple(listed)

"""Shims' binaries called as each containerd does: argv, environment, current directory, stdin; and what it makes of the
answer.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engines.containerd import schema

#: The containerds that call differently.
STYLES = ("1.6", "1.7", "2.0", "2.4")
#: containerd's own limits are 100 s for start and 5 s for cleanup; machines that run tests are slow.
START, CLEANUP = 40.0, 15.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Kind:
    """A shim under test.

    name     ocirt, runc or runc+ocirt (containerd's shim with another binary)
    binary   absolute path of the shim
    options  fields of containerd.runc.v1.Options that Create always gets
    """

    name: str
    binary: Path
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What `start` told, as containerd understands it."""

    address: str
    version: int
    form: str
    raw: bytes


class CallFailed(Exception):
    """The shim ended with a status other than 0; the text is what containerd would show."""

    def __init__(self, rc: int, text: str) -> None:
        super().__init__(f"exit status {rc}: {text}")
        self.rc, self.text = rc, text


@dataclass
class Caller:
    """One containerd: addresses, a namespace, and calls of the shim.

    style  which containerd's habits
    spare  seconds that a spare shim waits for the next container; 0: there is to be none
    """

    kind: Kind
    grpc: Path
    ttrpc: Path
    namespace: str
    style: str = "1.6"
    debug: bool = True
    spare: int = 0

    def flags(self, id: str, style: str) -> list[str]:
        given = ["-namespace", self.namespace, "-address", str(self.grpc), "-publish-binary", "/usr/bin/containerd"]
        return [*given, "-id", id]

    def environment(self, style: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        env = {"PATH": PATH, "TTRPC_ADDRESS": str(self.ttrpc), "GOMAXPROCS": "2", "NOTIFY_SOCKET": "/nowhere"}
        env["OCIRT_SHIM_SPARE"] = str(self.spare)
        if style != "1.6":
            env |= {"GRPC_ADDRESS": str(self.grpc), "NAMESPACE": self.namespace, "MAX_SHIM_VERSION": "2"}
        return {**env, **(extra or {})}

    def stdin(self, id: str, style: str, options: Any, socket_dir: str = "", level: int = 0) -> bytes:
        """What the shim reads: an Any, or BootstrapParams from 2.3 on."""
        if style != "2.4":
            return b"" if options is None else bytes(options.SerializeToString())
        extensions = [] if options is None else [schema.message("containerd.bootstrap.Extension", value=options)]
        params = schema.message(
            "containerd.bootstrap.BootstrapParams",
            instance_id=id,
            namespace=self.namespace,
            log_level=level,
            containerd_version="v2.4.0",
            containerd_ttrpc_address=str(self.ttrpc),
            containerd_grpc_address=str(self.grpc),
            containerd_binary="/usr/bin/containerd",
            extensions=extensions,
            socket_dir=socket_dir,
        )
        return bytes(params.SerializeToString())

    def start(
        self,
        id: str,
        bundle: Path,
        options: Any = None,
        *,
        style: str = "",
        env: Mapping[str, str] | None = None,
        socket_dir: str = "",
        level: int = 0,
        pass_fds: tuple[int, ...] = (),
    ) -> Answer:
        """`start`; CallFailed if it does."""
        style = style or self.style
        argv = [str(self.kind.binary), *self.flags(id, style), *(["-debug"] if self.debug else []), "start"]
        given = self.stdin(id, style, options, socket_dir, level)
        done = self.run(argv, bundle, given, env=self.environment(style, env), timeout=START, pass_fds=pass_fds)
        return understand(done.stdout, style)

    def delete(
        self, id: str, bundle: Path, *, style: str = "", env: Mapping[str, str] | None = None
    ) -> tuple[Any, bytes]:
        """`delete`: (DeleteResponse, what it wrote to stderr)"""
        style = style or self.style
        argv = [str(self.kind.binary), *self.flags(id, style), "-bundle", str(bundle)]
        if style == "2.4" and self.debug:
            argv.append("-debug")
        argv.append("delete")
        done = self.run(argv, bundle, b"", env=self.environment(style, env), timeout=CLEANUP, apart=True)
        return schema.parse("containerd.task.DeleteResponse", done.stdout), done.stderr

    def info(self, options: Any = None) -> Any:
        """`-info`: RuntimeInfo"""
        given = b"" if options is None else bytes(options.SerializeToString())
        env = self.environment("2.4")
        done = self.run([str(self.kind.binary), "-info"], Path("/"), given, env=env, timeout=START, apart=True)
        return schema.parse("containerd.types.RuntimeInfo", done.stdout)

    def run(
        self,
        argv: list[str],
        cwd: Path,
        stdin: bytes,
        *,
        env: Mapping[str, str],
        timeout: float,
        apart: bool = False,
        pass_fds: tuple[int, ...] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end of file of its output, as containerd does; stdout and stderr together unless `apart`."""
        source: dict[str, Any] = {"input": stdin} if stdin else {"stdin": subprocess.DEVNULL}
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env=dict(env),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if apart else subprocess.STDOUT,
                timeout=timeout,
                check=False,
                process_group=0,
                pass_fds=pass_fds,
                **source,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"not finished after {timeout} s, or its output is held open: {argv}") from error
        if done.returncode:
            text = (done.stdout + (done.stderr or b"")).decode(errors="replace")
            raise CallFailed(done.returncode, text.strip())
        return done


def understand(data: bytes, style: str) -> Answer:
    """What a containerd of this style makes of the answer of `start`; AssertionError where it would fail."""
    text = data.strip()
    assert text, "start printed nothing"
    if style == "2.4":
        try:
            result = schema.parse("containerd.bootstrap.BootstrapResult", text)
        except ValueError:
            pass
        else:
            assert result.version in (2, 3), text
            assert result.protocol == "ttrpc"
            return Answer(result.address, result.version, "protobuf", data)
    if text.startswith(b"{") and style != "1.6":
        told = json.loads(text)
        assert told["protocol"] == "ttrpc"
        assert told["version"] <= (2 if style == "1.7" else 3), f"{style} refuses version {told['version']}"
        return Answer(told["address"], told["version"], "json", data)
    assert text.startswith(b"unix://"), f"containerd {style} would fail on: {data!r}"
    assert b"\n" not in text, f"more than the address: {data!r}"
    return Answer(os.fsdecode(text), 2, "plain", data)

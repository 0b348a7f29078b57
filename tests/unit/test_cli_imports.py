"""What a command may import: its time goes to imports more than to anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ocirt.cli import launcher

TOP = Path(__file__).resolve().parents[2]

#: What these verbs may load beyond the bare interpreter. A row more here is a percent or two of each command's time.
ALLOWED = {
    "__future__", "_json", "_socket", "fcntl", "gc",
    "ocirt", "ocirt.__main__", "ocirt.cli", "ocirt.cli.table", "ocirt.commands", "ocirt.container",
    "ocirt.errors", "ocirt.ids", "ocirt.jsontext", "ocirt.lifecycle", "ocirt.log",
}  # fmt: skip
#: Command lines, with a container `c1` that has stopped, and what each loads besides.
VERBS: dict[str, set[str]] = {
    "state c1": {"ocirt.commands.state"},
    "list": {"ocirt.commands.list", "pwd"},
    "list --format=json": {"ocirt.commands.list", "pwd"},
    "kill c1 9": {"ocirt.commands.kill"},
    "start c1": {"ocirt.commands.start"},
    "delete c1": {"ocirt.commands.delete", "ocirt.cgroups", "ocirt.cgroups.base"},
    "delete --force none": {"ocirt.commands.delete"},
}
#: Each of them costs a third of an interpreter's start or more.
DEAR = {"json", "re", "enum", "typing", "click", "jsonschema", "subprocess", "logging", "socket", "signal", "ctypes",
        "pathlib", "dataclasses", "contextlib", "argparse", "traceback", "inspect", "pyroute2", "site"}  # fmt: skip


@pytest.fixture
def ocirt(tmp_path: Path) -> list[str]:
    """A launcher that reports its imports on stderr, and a root directory with a container that has stopped."""
    path = tmp_path / "ocirt"
    launcher.write(str(path), directories=(str(TOP), sysconfig.get_path("purelib")))
    directory = tmp_path / "root" / "c1"
    directory.mkdir(parents=True)
    record = {"ociVersion": "1.3.0", "id": "c1", "bundle": "/b", "pid": 0, "created": "2024-01-01T00:00:00Z"}
    (directory / "state.json").write_text(json.dumps(record))
    interpreter = path.read_text().split()[0][2:]
    return [interpreter, launcher.FLAGS, "-X", "importtime", str(path), "--root", str(tmp_path / "root")]


def imports(argv: list[str]) -> set[str]:
    """The modules that a command line loads beyond those of a bare interpreter."""
    bare = [*argv[:4], "-c", "pass"]
    return _imported(argv) - _imported(bare)


def _imported(argv: list[str]) -> set[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env={}, cwd="/")
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("line", VERBS)
def test_verbs_import_only_what_they_need(ocirt: list[str], line: str) -> None:
    found = imports([*ocirt, *line.split()])
    assert found <= ALLOWED | VERBS[line]
    assert VERBS[line] & {f"ocirt.commands.{line.split(maxsplit=1)[0]}"} <= found


def test_a_usage_error_is_explained_by_click(ocirt: list[str]) -> None:
    """The test above would see it."""
    assert "click" in imports([*ocirt, "state"])


#: What `mounts` loads before it finds that its container has stopped; tests/cli/test_costs.py has one that runs.
MOUNTS = {
    "_collections_abc", "_ctypes", "_stat", "_struct", "errno", "genericpath", "os", "posixpath", "resource", "stat",
    *(
        f"ocirt.{name}"
        for name in (
            *("announcing", "bundle", "commands.mounts", "console", "exec", "mounting", "namespaces", "sysctl"),
            *("identity", "linux", "process", "rootfs", "validation"),
        )
    ),
}  # fmt: skip
#: And modules of these packages, but for the compiler of filters and what only other commands do.
PACKAGES = ("ocirt.identity.", "ocirt.linux.", "ocirt.process.", "ocirt.rootfs.", "ocirt.validation.")


@pytest.mark.parametrize("action", ["add", "remove"])
def test_mounts_import_only_what_they_need(ocirt: list[str], tmp_path: Path, action: str) -> None:
    file = tmp_path / "mounts.json"
    file.write_text('[{"destination": "/x", "type": "tmpfs", "source": "tmpfs"}]')
    found = imports([*ocirt, "mounts", action, "c1", str(file)])
    rest = {name for name in found - ALLOWED - MOUNTS if not name.startswith(PACKAGES)}
    assert rest == set()
    assert not {name for name in found if name.startswith("ocirt.identity.seccomp.")}
    assert found & DEAR == set()
    assert found >= {"ocirt.mounting", "ocirt.process.steps"}


@pytest.mark.parametrize("line", ["features", "--version", "validate /nonexistent"])
def test_other_commands_import_nothing_dear(ocirt: list[str], line: str) -> None:
    found = imports([*ocirt, *line.split()])
    assert found & DEAR == set()


def test_one_interpreter_start(ocirt: list[str], tmp_path: Path) -> None:
    """A command neither starts the interpreter again nor any other program."""
    trace = tmp_path / "trace"
    argv = [ocirt[4], *ocirt[5:], "state", "c1"]
    done = subprocess.run(["strace", "-f", "-e", "trace=execve,clone,clone3,fork,vfork", "-o", str(trace), *argv],
                          capture_output=True, timeout=60, check=False, env=dict(os.environ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = [line.split("(")[0].split()[-1] for line in trace.read_text().splitlines() if "(" in line]
    assert calls == ["execve"]

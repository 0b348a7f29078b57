"""The command line as Go clients, conmon and people write it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.peers import fails, lacks, peer_fails
from tests.harness.runtime import Runtime


@pytest.mark.parametrize(
    "form",
    [
        ["--bundle", "{bundle}", "{id}"],
        ["--bundle={bundle}", "{id}"],
        ["-b", "{bundle}", "{id}"],
        pytest.param(["-b{bundle}", "{id}"], marks=peer_fails("runc", "Go's flags have no attached values")),
        pytest.param(["-b={bundle}", "{id}"], marks=peer_fails("crun", "getopt takes the = for a part of the value")),
        pytest.param(["-bundle", "{bundle}", "{id}"], marks=peer_fails("crun", "knows no long flags with one dash")),
        pytest.param(["-bundle={bundle}", "{id}"], marks=peer_fails("crun", "knows no long flags with one dash")),
        pytest.param(["{id}", "--bundle", "{bundle}"], marks=peer_fails("crun", "flags must stand before the id")),
        pytest.param(["--bundle", "{bundle}", "--", "{id}"]),
    ],
    ids=" ".join,
)
def test_forms_of_a_flag(box: Box, form: list[str]) -> None:
    box.args("/bin/echo", "ran")
    box.write()
    arguments = [word.format(bundle=box.path, id=box.id) for word in form]
    assert box.runtime("run", *arguments).out == "ran\n"


@pytest.mark.parametrize(
    "flag", ["--no-new-keyring", pytest.param("-no-new-keyring", marks=peer_fails("crun", "knows no such form"))]
)
def test_bool_flags(box: Box, flag: str) -> None:
    box.args("/bin/true")
    box.run(None, flag)


def test_flags_that_are_taken_and_do_nothing(box: Box) -> None:
    box.args("/bin/true")
    box.run(None, "--no-subreaper")


@peer_fails("crun", "knows no long flags with one dash")
def test_containerd_restores_with_one_dash(box: Box) -> None:
    box.args("/bin/true")
    box.run(None, "-no-subreaper")


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(["--rootless", "false"], marks=peer_fails("crun", "1.8.1 takes the value for --root")),
        pytest.param(["--rootless=auto"], marks=peer_fails("crun", "1.8.1 takes the value for --root")),
        ["--log-format=text"],
        ["--debug"],
        pytest.param(["--log-level", "error"], marks=fails("runc crun", "has no --log-level")),
        pytest.param(["--log-level=debug"], marks=fails("runc crun", "has no --log-level")),
        pytest.param(["--cgroup-manager", "cgroupfs"], marks=peer_fails("runc", "has no --cgroup-manager")),
        pytest.param(["--cgroup-manager=disabled"], marks=peer_fails("runc", "has no --cgroup-manager")),
    ],
    ids=" ".join,
)
def test_global_flags(box: Box, extra: list[str], place: Path) -> None:
    if extra == ["--cgroup-manager=disabled"]:
        del box.linux["resources"], box.linux["cgroupsPath"]
    box.args("/bin/echo", "ran")
    box.runtime.extra = [*extra, "--log", str(place / "log")]
    out = box.run().out
    assert out == "ran\n"
    box.create()
    assert box.status == "created"
    box.delete("--force")
    box.runtime.extra = []


@lacks("runc", what="--cgroup-manager")
def test_cgroups_disabled_leaves_cgroups_alone(box: Box) -> None:
    box.runtime.extra = ["--cgroup-manager", "disabled"]
    del box.linux["resources"]
    own = Path("/proc/self/cgroup").read_text()
    out = box.run("cat /proc/self/cgroup").out
    box.runtime.extra = []
    assert sorted(out.splitlines()) == sorted(own.splitlines())


def test_environment_of_podman(box: Box) -> None:
    """podman gives kill, start and delete nothing but XDG_RUNTIME_DIR, set but empty: no PATH, no HOME."""
    box.args("/bin/sleep", "1000")
    environment = {"XDG_RUNTIME_DIR": ""}
    box.create(env=environment)
    box.start(env=environment)
    box.kill("KILL", env=environment)
    box.wait_for("stopped")
    box.delete("--force", env=environment)


def test_nothing_of_the_environment_leads_the_runtime_astray(box: Box, place: Path) -> None:
    """PYTHON* and files in the current directory are none of an installed runtime's business."""
    trap = place / "trap"
    trap.mkdir()
    for name in ("json", "os", "sitecustomize", "usercustomize", "ocirt", "_json", "encodings", "click"):
        (trap / f"{name}.py").write_text(f"import sys; sys.stderr.write('{name} was imported\\n'); sys.exit(77)\n")
    environment = {
        **os.environ, "PYTHONPATH": str(trap), "PYTHONHOME": str(trap), "PYTHONSTARTUP": str(trap / "os.py"),
        "PYTHONWARNINGS": "always", "PYTHONVERBOSE": "1", "PYTHONINSPECT": "1", "PYTHONDEVMODE": "1", "HOME": str(trap),
    }  # fmt: skip
    box.args("/bin/echo", "ran")
    result = box.run(cwd=trap, env=environment)
    assert (result.out, result.err) == ("ran\n", "")
    for arguments in (["--help"], ["list"], ["features"], ["spec", "--bundle", str(place)]):
        if box.runtime.name == "crun" and arguments == ["features"]:
            continue
        assert "was imported" not in box.runtime(*arguments, cwd=trap, env=environment).text


def test_help(runtime: Runtime) -> None:
    for arguments in (["--help"], ["-h"] if runtime.name != "crun" else ["--help"], ["create", "--help"]):
        result = runtime(argv=[runtime.path, *arguments])
        assert "create" in result.out
    if runtime.name == "ocirt":
        for flag in ("--bundle", "--console-socket", "--pid-file", "--preserve-fds", "--no-pivot", "--pidfd-socket"):
            assert flag in runtime(argv=[runtime.path, "create", "--help"]).out


@lacks("runc", "crun", what="such a command")
def test_help_names_the_actions(runtime: Runtime) -> None:
    for command, actions in (
        ("mounts", "add remove"),
        ("seccomp", "dump record"),
        ("network", "create ls inspect rm check gc reload plugins"),
    ):
        words = re.findall(r"\w+", runtime(command, "--help").out)
        assert set(actions.split()) <= set(words)


@lacks("runc", "crun", what="completion")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(runtime: Runtime, shell: str) -> None:
    out = runtime("completion", shell).out
    assert "ocirt" in out


def test_unwritable_root_is_a_clean_error(box: Box, place: Path) -> None:
    (place / "file").write_text("")
    box.runtime.root = place / "file"
    box.args("/bin/true")
    result = box.run(check=False)
    assert result.rc == 1
    assert "Traceback" not in result.err
    box.runtime.root = place / "state"


def test_a_long_root(box: Box, place: Path) -> None:
    """Sockets have paths of at most 107 bytes; a --root may be longer."""
    box.runtime.root = place / ("x" * 100) / ("y" * 100) / "state"
    box.runtime.root.parent.mkdir(parents=True)
    box.create_and_start("sleep 1000")
    assert box.status == "running"
    box.delete("--force")
    box.runtime.root = place / "state"

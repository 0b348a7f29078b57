"""Between clone and execve nothing is imported, compiled or loaded, whatever the config asks for.

The test beside this one shows that an image's modules aren't run; this one that nothing even looks for them: an
audit hook (PEP 578) sees every import, every file that is opened and every library that is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.harness.box import Box
from tests.harness.terminal import ConsoleSocket
from tests.security.test_imports import everything

SCRIPT = ROOT / "tests" / "security" / "audited.py"
FORBIDDEN = ("import", "compile", "exec", "marshal.load", "marshal.loads", "ctypes.dlopen", "subprocess.Popen")
SOURCES = (".py", ".pyc", ".so", ".pth", ".zip")


@pytest.fixture
def audited(box: Box, place: Path) -> Box:
    """A box whose commands run under the audit hook; the report is at `place`/report."""
    if box.runtime.name != "ocirt":
        pytest.skip("another runtime has no Python interpreter to audit")
    box.runtime.prefix = ["/usr/bin/python3", "-I", "-S", str(SCRIPT), str(place / "report")]
    box.runtime.path = ""
    return box


@pytest.fixture(autouse=True)
def without_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is the program: argv is its arguments only."""
    from tests.harness.runtime import Runtime

    original = Runtime.argv
    monkeypatch.setattr(Runtime, "argv", lambda self, arguments: [a for a in original(self, arguments) if a])


def events(place: Path) -> list[str]:
    return (place / "report").read_text().splitlines()


def check(place: Path) -> None:
    seen = events(place)
    assert seen, "the hook saw nothing at all: it does not work"
    bad = [line for line in seen if line.split(" ", 1)[0] in FORBIDDEN]
    bad += [line for line in seen if line.startswith("open ") and line.endswith(SOURCES)]
    assert not bad, bad
    names = [line.split(" ", 1)[1] for line in seen if line.startswith("open ")]
    assert not [name for name in names if "nsswitch" in name or "nscd" in name or "/locale" in name], names


def test_create(audited: Box, place: Path) -> None:
    audited.create()
    check(place)


def test_every_step(audited: Box, place: Path) -> None:
    everything(audited.config)
    audited.namespace("cgroup")
    audited.create()
    check(place)


def test_user_namespace(audited: Box, place: Path) -> None:
    audited.add_user_namespace()
    audited.create()
    check(place)


def test_terminal(audited: Box, place: Path) -> None:
    audited.process["terminal"] = True
    with ConsoleSocket(place / "console") as console:
        audited.create("--console-socket", console.path)
        console.receive()
        check(place)
        audited.delete("--force")


def test_start_with_hooks(audited: Box, place: Path) -> None:
    """startContainer hooks run in the container, started by the interpreter that is in it."""
    audited.config["hooks"] = {
        "startContainer": [{"path": "/bin/true"}],
        "createContainer": [{"path": "/bin/true"}],
    }
    audited.write()
    audited.run("true")
    check(place)


def test_exec(audited: Box, place: Path) -> None:
    audited.create_and_start("sleep 1000")
    audited.exec("/bin/true", flags=("--user", "1000:1000", "--cwd", "/tmp"))
    check(place)


def fail_in(config: dict[str, Any], where: str) -> None:
    if where == "mount":
        config["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["bogus=1"]})
    elif where == "program":
        config["process"]["args"] = ["/nönexistent"]
    elif where == "sysctl":
        config["linux"]["sysctl"] = {"net.ipv4.no_such": "1"}
    else:
        config["process"]["cwd"] = "/etc/passwd"


@pytest.mark.parametrize("where", ["mount", "program", "sysctl", "cwd"])
def test_failures(audited: Box, place: Path, where: str) -> None:
    """Where an error is made into text: 3.13's uncaught exceptions import, ours must not."""
    fail_in(audited.config, where)
    assert audited.create(check=False).rc == 1
    check(place)


def test_debug(audited: Box, place: Path) -> None:
    audited.runtime.extra = ["--debug", "--log", str(place / "log")]
    audited.create()
    audited.runtime.extra = []
    check(place)

"""What a command costs, by its causes: system calls, opened files, starts of a program. Times depend on the machine.

Counted on a launcher with an image, as hack/install makes it, and beyond what a bare start of the same interpreter
does. Whoever raises a ceiling says in the commit what for.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocirt.cli import image, launcher
from tests.harness.box import Box
from tests.harness.peers import lacks
from tests.unit.seccomp_profiles import profile

pytestmark = lacks("runc", "crun", what="a ceiling")

TOP = Path(__file__).resolve().parents[2]
#: {verb: (system calls, successfully opened files)} of the command itself, beyond a bare start
CEILINGS = {
    "state": (50, 6),
    "list": (75, 9),
    "kill": (52, 7),
    "start": (70, 8),
    "delete": (80, 8),
    "pause": (72, 10),
    "resume": (62, 9),
    "update": (92, 11),
    "ps": (62, 7),
    "features": (150, 12),  # what it reads of the repository, to tell its commit, is now in one file and now in another
    "create": (440, 62),
    "exec": (325, 37),
    "run": (520, 72),
}
#: The same of init, from clone to the program's execve
INIT = {"create": (260, 24), "exec": (195, 4), "run": (330, 24)}


def within(package: str, names: str) -> set[str]:
    """A package and modules of it."""
    return {package, *(f"{package}.{name}" for name in names.split())}


#: Modules that these verbs may load beyond a bare start, as tests/unit/test_cli_imports.py has it for the shorter ones;
#: which of ocirt.cgroups, the host's hierarchies say.
_ALWAYS = (
    {"__future__", "_json", "fcntl", "gc"}
    | within("ocirt", "__main__ container errors ids jsontext lifecycle log")
    | within("ocirt.cli", "table")
    | within("ocirt.commands", "")
)
_CHECK = within("ocirt.validation", "found generated semantic strings") | within(
    "ocirt.validation.rules", "basics mounts namespaces process resources"
)
_INSIDE = (
    _ALWAYS
    | _CHECK
    | {"_blake2", "_ctypes", "_socket", "_stat", "_struct", "errno", "resource", "select"}
    | within("ocirt", "announcing console namespaces sysctl")
    | within("ocirt.identity", "capabilities labels limits scheduling seccomp user")
    | within("ocirt.identity.seccomp", "cache filter")
    | within("ocirt.linux", "capability fds files libc mount numbers oslike paths prctl sched seccomp signals")
    | within("ocirt.process", "entering executing init naming plan runtime seal start starting steps sync trampoline")
    | within("ocirt.rootfs", "binds cgroupfs devices explain masks mounts options pivot targets")
)
_MAKE = (
    _INSIDE | within("ocirt", "bundle creating limiting") | {"ocirt.commands.create", "ocirt.validation.rules.seccomp"}
)
IMPORTS = {
    "create": _MAKE,
    "exec": _INSIDE | {"ocirt.commands.exec", "ocirt.exec", "ocirt.foreground"},
    "run": _MAKE | {"ocirt.commands.run", "ocirt.foreground"},
    "mounts": _INSIDE
    | {"_collections_abc", "genericpath", "os", "posixpath", "stat"}
    | {"ocirt.commands.mounts", "ocirt.bundle", "ocirt.exec", "ocirt.mounting"}
    | within("ocirt.rootfs", "copyup idmaps nodes trees")
    # it checks strings that were not checked as one text
    | within("ocirt.validation", "kinds problem rules.seccomp walk"),
}

Trace = list[list[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launcher with an image of this checkout."""
    directory = tmp_path_factory.mktemp("installed")
    image.build(str(TOP), str(directory / "image"))
    paths = (str(TOP), sysconfig.get_path("purelib"))
    launcher.write(str(directory / "ocirt"), directories=paths, image=str(directory / "image"))
    return directory / "ocirt"


@pytest.fixture
def trace(box: Box, place: Path, installed: Path) -> Callable[..., Trace]:
    """Runs one command under strace: the calls of each process, the command's first; `then` ends what it has left."""

    def run(command: Callable[[], object], then: Callable[[], object] = lambda: None) -> Trace:
        file = place / "trace"
        file.unlink(missing_ok=True)
        # -D: strace is nobody's parent, so that the command ends for us when it ends
        box.runtime.prefix = ["strace", "-D", "-f", "-o", str(file)]
        command()
        box.runtime.prefix = []
        then()
        deadline = time.monotonic() + 10
        while True:
            lines = [line.split(maxsplit=1) for line in file.read_text().splitlines() if " " in line]
            order = list(dict.fromkeys(pid for pid, _ in lines))
            if {pid for pid, text in lines if text.startswith("+++")} == set(order):
                break
            assert time.monotonic() < deadline, "a traced process lives on"
            time.sleep(0.01)
        # a call that others interrupted stands there twice
        return [[text for one, text in lines if one == pid and "resumed>" not in text] for pid in order]

    box.runtime.path = str(installed)
    return run


def counts(calls: list[str]) -> tuple[int, int]:
    """(system calls, files opened)."""
    made = [text for text in calls if "(" in text and not text.startswith(("+++", "---"))]
    opened = [text for text in made if re.match(r"open(at2?)?\(", text) and not re.search(r"= -1 E", text)]
    return len(made), len(opened)


@pytest.fixture(scope="module")
def bare(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """Of the interpreter alone, with a script that ends at once."""
    script = tmp_path_factory.mktemp("bare") / "bare"
    script.write_text(f"{installed.read_text().splitlines()[0]}\nimport posix\nposix._exit(0)\n")
    script.chmod(0o755)
    file = script.with_name("trace")
    subprocess.run(["strace", "-o", str(file), str(script)], check=True, timeout=60)
    return counts(file.read_text().splitlines())


def beyond(calls: list[str], bare: tuple[int, int]) -> tuple[int, int]:
    """The counts beyond those of a bare start."""
    number, opened = counts(calls)
    return number - bare[0], opened - bare[1]


def check(verb: str, found: tuple[int, int], ceilings: dict[str, tuple[int, int]]) -> None:
    number, opened = ceilings[verb]
    assert found[0] <= number, f"{verb} makes {found[0]} system calls"
    assert found[1] <= opened, f"{verb} opens {found[1]} files"
    assert found[0] > number * 0.7, f"{verb} makes {found[0]} system calls: lower the ceiling"


def starts(calls: list[str]) -> list[str]:
    """The programs that a process has executed."""
    return [text for text in calls if re.match(r"execve(at)?\(", text) and "= -1" not in text]


def until_program(calls: list[str]) -> list[str]:
    """Of init: what comes before the trampoline."""
    first = next((at for at, text in enumerate(calls) if text.startswith("execve")), len(calls))
    return calls[:first]


@pytest.fixture(scope="module")
def seccomp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Docker's default profile."""
    return profile("docker", tmp_path_factory.getbasetemp() / "debian")


@pytest.fixture
def full(box: Box, seccomp: dict[str, Any]) -> Box:
    """A container as Docker asks for it: limits, a cgroup namespace, its seccomp profile, whose filter is known."""
    linux = box.config["linux"]
    if not any(namespace["type"] == "cgroup" for namespace in linux["namespaces"]):
        linux["namespaces"].append({"type": "cgroup"})
    linux["resources"] = {
        "memory": {"limit": 256 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 100},
    }
    linux["seccomp"] = seccomp
    box.args("/bin/sleep", "1000")
    box.create()
    box.delete("--force")
    return box


#: Flags and arguments of the short commands; those that aren't here take an id.
ARGUMENTS = {
    "list": "",
    "features": "",
    "kill": "ID TERM",
    "update": "--pids-limit 50 ID",
    "ps": "--format json ID",
}


@pytest.mark.parametrize("verb", [verb for verb in CEILINGS if verb not in ("create", "run", "exec", "delete")])
def test_short_commands(full: Box, trace: Callable[..., Trace], bare: tuple[int, int], verb: str) -> None:
    full.create()
    if verb not in ("start", "state", "list"):
        full.start()
    if verb == "resume":
        full.runtime("pause", full.id)
    arguments = ARGUMENTS.get(verb, "ID").replace("ID", full.id).split()
    (calls,) = trace(lambda: full.runtime(verb, *arguments))
    check(verb, beyond(calls, bare), CEILINGS)
    assert len(starts(calls)) == 1


def test_delete(full: Box, trace: Callable[..., Trace], bare: tuple[int, int]) -> None:
    full.args("/bin/true")
    full.create()
    pid = full.pid
    full.start()
    full.exit_status(pid)
    (calls,) = trace(full.delete)
    check("delete", beyond(calls, bare), CEILINGS)
    assert len(starts(calls)) == 1
    assert not [text for text in calls if "sleep" in text or text.startswith("poll")], "delete waits for nothing"


def test_create(full: Box, trace: Callable[..., Trace], bare: tuple[int, int]) -> None:
    calls, inside = trace(full.create, lambda: full.delete("--force"))
    check("create", beyond(calls, bare), CEILINGS)
    check("create", counts(until_program(inside)), INIT)
    assert len(starts(calls)) == 1, "no second interpreter"
    assert starts(inside) == []
    slow = [text for text in [*calls, *inside] if "cgroup.procs" in text and "O_RDONLY" not in text]
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        assert slow == [], "a process that is moved by others waits for a grace period of RCU"


def test_run(full: Box, trace: Callable[..., Trace], bare: tuple[int, int]) -> None:
    full.args("/bin/true")
    calls, inside = trace(full.run)
    check("run", beyond(calls, bare), CEILINGS)
    check("run", counts(until_program(inside)), INIT)
    assert len(starts(calls)) == 1
    assert len(starts(inside)) == 2, "the trampoline and the program"


def test_exec(full: Box, trace: Callable[..., Trace], bare: tuple[int, int]) -> None:
    """In a container whose processes can't trace each other: no second start."""
    full.create_and_start()
    calls, inside = trace(lambda: full.exec("/bin/true"))
    check("exec", beyond(calls, bare), CEILINGS)
    check("exec", counts(until_program(inside)), INIT)
    assert len(starts(calls)) == 1
    assert len(starts(inside)) == 2
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        assert not [text for text in [*calls, *inside] if "cgroup.procs" in text]


def test_a_second_start_where_it_is_needed(full: Box, trace: Callable[..., Trace]) -> None:
    """docs/security.md: init could be traced; the tests above would see a start that isn't."""
    full.capabilities("CAP_SYS_PTRACE")
    full.create_and_start()
    calls, _ = trace(lambda: full.exec("/bin/true"))
    assert len(starts(calls)) == 2


@pytest.mark.parametrize("verb", IMPORTS)
def test_imports(full: Box, place: Path, verb: str) -> None:
    """A launcher without an image: with one, the import system, which is asked here, is not used for ours."""
    path = place / "ocirt"
    launcher.write(str(path), directories=(str(TOP), sysconfig.get_path("purelib")))
    prefix = [path.read_text().split()[0][2:], launcher.FLAGS, "-X", "importtime"]
    bare = subprocess.run([*prefix, "-c", "pass"], capture_output=True, text=True, check=True, timeout=60).stderr
    if verb in ("exec", "mounts"):
        full.create_and_start()
    elif verb == "run":
        full.args("/bin/true")
    full.write()
    (place / "mounts.json").write_text('[{"destination": "/new", "type": "tmpfs", "source": "tmpfs"}]')
    given = {"exec": [full.id, "/bin/true"], "mounts": ["add", full.id, place / "mounts.json"]}
    arguments = given.get(verb, ["--bundle", full.path, full.id])
    full.runtime.path, full.runtime.prefix = str(path), prefix
    full.runtime(verb, *arguments, out=place / "out", err=place / "imports")
    full.runtime.prefix = []
    found = imported((place / "imports").read_text()) - imported(bare)
    assert {name for name in found if not name.startswith("ocirt.cgroups")} <= IMPORTS[verb]
    assert {f"ocirt.commands.{verb}", "ocirt.process.steps"} <= found


def imported(text: str) -> set[str]:
    """The modules that `-X importtime` tells."""
    return {line.rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("import time:")}

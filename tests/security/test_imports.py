"""Nothing of the image, the bundle or the current directory is ever run by the runtime's interpreter.

Each place that Python looks at holds a module for every name that might be imported late, codecs and NSS
included; each tells on itself by a file on the host's side, which a bind mount makes reachable.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.terminal import ConsoleSocket

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PLACES = (
    f"usr/lib/{VERSION}", f"usr/lib/{VERSION}/lib-dynload", "usr/lib/python3/dist-packages",
    f"usr/local/lib/{VERSION}/dist-packages", f"usr/local/lib/{VERSION}", f"usr/lib/{VERSION}/encodings", "usr/bin",
    "usr/local/bin", "", "root", "bin",
)  # fmt: skip
MODULES = """
abc ast bisect codecs collections contextlib copyreg ctypes dataclasses datetime encodings enum errno fcntl functools
genericpath getpass glob grp io json keyword linecache locale logging math ocirt operator os pathlib posixpath prctl
pwd random re reprlib resource select selectors shutil signal site sitecustomize socket sre_compile stat string struct
subprocess syslog tempfile threading time token tokenize traceback types typing usercustomize warnings weakref
zipimport _strptime _weakrefset _collections_abc ascii cp1252 cp437 idna latin_1 iso8859_1 mbcs punycode
unicode_escape utf_16 utf_8 aliases argparse atexit gettext click jsonschema pyroute2
""".split()  # noqa: SIM905


@pytest.fixture
def poisoned(box: Box) -> Box:
    """A box whose image, bundle and directory are full of modules that tell on themselves."""
    told = box.directory / "told"
    told.mkdir()
    box.bind(told, str(told), "bind", "rw")
    poison = f"""import posix
name = {str(told)!r} + "/" + __name__.replace(".", "_")
fd = posix.open(name, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND, 0o666)
posix.write(fd, b"imported from " + __file__.encode() + b"\\n")
posix.close(fd)
"""
    for place in (*(box.rootfs / p for p in PLACES), box.path, box.directory):
        place.mkdir(parents=True, exist_ok=True)
        for name in MODULES:
            target = place / f"{name}.py"
            if not target.exists():
                target.write_text(poison)
    (box.rootfs / "etc/nsswitch.conf").write_text("passwd: evil files\ngroup: evil files\nhosts: evil\n")
    (box.rootfs / "usr/lib/libnss_evil.so.2").write_bytes(b"\x7fELF not a library")
    return box


def told(box: Box) -> dict[str, str]:
    return {p.name: p.read_text() for p in (box.directory / "told").iterdir()}


def life(box: Box, **options: Any) -> None:
    """Every command, from the bundle's own directory."""
    for command in (
        lambda: box.create(cwd=box.path, **options),
        lambda: box.state(cwd=box.path),
        lambda: box.start(cwd=box.path),
        lambda: box.exec("/bin/true", cwd=box.path, check=False),
        lambda: box.runtime("list", cwd=box.path),
        lambda: box.kill("KILL", cwd=box.path),
    ):
        command()
    box.wait_for("stopped")
    box.delete(cwd=box.path)


def test_a_whole_life(poisoned: Box) -> None:
    poisoned.sh("sleep 1000")
    life(poisoned)
    assert told(poisoned) == {}


def everything(config: dict[str, Any]) -> None:
    """A config that goes through as many steps of set-up as possible."""
    process, linux = config["process"], config["linux"]
    process.update(
        user={"uid": 1000, "gid": 1000, "additionalGids": [5], "umask": 0o27},
        cwd="/new/cwd",
        rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        oomScoreAdj=1000,
        scheduler={"policy": "SCHED_BATCH"},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 5},
        noNewPrivileges=True,
    )
    config["hostname"] = "bücher"
    config["domainname"] = "dömain"
    config["annotations"] = {"ä": "ö"}
    config["mounts"].append({"destination": "/ünï", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})
    linux.update(
        sysctl={"net.ipv4.ip_forward": "1"},
        devices=[{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3}],
        rootfsPropagation="rslave",
        personality={"domain": "LINUX"},
        maskedPaths=[*linux["maskedPaths"], "/root"],
        seccomp={
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        },
    )


def test_with_every_step(poisoned: Box) -> None:
    everything(poisoned.config)
    poisoned.namespace("cgroup")
    poisoned.sh("sleep 1000")
    life(poisoned)
    assert told(poisoned) == {}


def test_with_a_user_namespace(poisoned: Box) -> None:
    poisoned.add_user_namespace()
    poisoned.sh("sleep 1000")
    (poisoned.directory / "told").chmod(0o777)
    life(poisoned)
    assert told(poisoned) == {}


def test_with_a_terminal(poisoned: Box, place: Path) -> None:
    poisoned.process["terminal"] = True
    poisoned.sh("sleep 1000")
    with ConsoleSocket(place / "console") as console:
        poisoned.create("--console-socket", console.path)
        console.receive()
        poisoned.start()
        poisoned.delete("--force")
    assert told(poisoned) == {}


@pytest.mark.parametrize("fail", ["program", "mount", "cwd", "device", "sysctl", "user"])
def test_where_set_up_fails_inside(poisoned: Box, fail: str) -> None:
    """An error is reported without importing anything (traceback, linecache, codecs of a path)."""
    if fail == "program":
        poisoned.args("/nönexistent\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    elif fail == "mount":
        poisoned.mount("/mnt", "tmpfs", options=["bogus=1"])
    elif fail == "cwd":
        poisoned.process["cwd"] = "/etc/passwd"
    elif fail == "device":
        (poisoned.rootfs / "dev-file").write_text("x")
        poisoned.linux["devices"] = [{"path": "/dev-file", "type": "c", "major": 1, "minor": 3}]
    elif fail == "sysctl":
        poisoned.linux["sysctl"] = {"net.ipv4.nö": "1"}
    else:
        poisoned.process["user"] = {"uid": 4294967294, "gid": 4294967294}
        poisoned.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 40, "hard": 1 << 41}]
    result = poisoned.create(check=False)
    if poisoned.runtime.name == "ocirt":
        assert result.rc == 1
    assert told(poisoned) == {}


def test_in_debug_mode(poisoned: Box, place: Path) -> None:
    poisoned.runtime.extra = ["--debug", "--log", str(place / "log"), "--log-format", "json"]
    poisoned.sh("sleep 1000")
    life(poisoned)
    poisoned.runtime.extra = []
    assert told(poisoned) == {}


def test_the_poison_works(poisoned: Box) -> None:
    """What is above can fail: an ordinary interpreter in the image falls for it."""
    import subprocess

    environment = {**os.environ, "PYTHONPATH": str(poisoned.rootfs / f"usr/lib/{VERSION}")}
    subprocess.run([sys.executable, "-c", "import idna, click"], env=environment, check=False)
    assert told(poisoned)

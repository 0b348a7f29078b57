"""What README.md tells to type, typed; the sections on engines are in tests/engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.harness.box import Box
from tests.harness.peers import lacks

pytestmark = lacks("runc", "crun", what="this README")

TOP = Path(__file__).resolve().parents[2]


def snippet(section: str) -> str:
    """The indented lines of a section."""
    text = (TOP / "README.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return "".join(f"{line}\n" for line in re.findall("^    (.*)", text, re.MULTILINE))


def test_by_hand(box: Box, place: Path) -> None:
    """In a shell that stops at the first command that fails; `exit` is typed into the shells inside."""
    box.rootfs.rename(place / "rootfs")
    (place / "box").mkdir()
    (place / "rootfs").rename(place / "box/rootfs")
    (place / "bin").mkdir()
    command = " ".join(box.runtime.argv([]))
    (place / "bin/ocirt").write_text(f'#!/bin/sh\necho "echo inside; exit" | {command} "$@"\n')
    (place / "bin/ocirt").chmod(0o755)
    script = snippet("By hand").replace("hello", f"{box.id}a").replace("sleeper", f"{box.id}b")
    environment = {"PATH": f"{place}/bin:{os.environ['PATH']}"}
    result = box.runtime(argv=["sh", "-exc", script.replace("; ocirt", " && ocirt")], cwd=place, env=environment)
    assert result.out.count("\ninside") == 2, result
    assert box.runtime("list", "--quiet").out == ""


def test_as_a_library(box: Box) -> None:
    box.sh("sleep 1000")
    box.write()
    script = snippet("As a library").replace("/run/ocirt", str(box.runtime.root)).replace("hello", box.id)
    done = subprocess.run(
        [sys.executable, "-c", script.replace("/path/to/bundle", str(box.path))],
        cwd=TOP, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "running\n"), done

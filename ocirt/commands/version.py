"""ocirt --version"""

from __future__ import annotations

import os

import ocirt
from ocirt.commands import Options, write

SPEC = "1.3.0"


def run(options: Options) -> int:  # noqa: ARG001
    """Print the version. Engines read the first line, `commit:` and the words after it."""
    lines = [f"ocirt version {ocirt.__version__}"]
    found = commit(os.path.dirname(os.path.abspath(ocirt.__file__)))
    if found:
        lines.append(f"commit: {found}")
    lines.append(f"spec: {SPEC}")
    lines.append("+SECCOMP +CAP +EBPF +SYSTEMD +SELINUX +APPARMOR")
    write("\n".join(lines) + "\n")
    return 0


def commit(package: str) -> str:
    """The package's commit, as hack/install noted it there or as the checkout's .git has it; "" if unknown."""
    git = os.path.join(os.path.dirname(package), ".git")
    found = _line(os.path.join(package, "COMMIT")) or _line(os.path.join(git, "HEAD"))
    if found.startswith("ref: "):
        return _line(os.path.join(git, found[5:]))
    return found


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""

"""ocirt --version"""

from __future__ import annotations

import os

import ocirt
from ocirt.commands import Options, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The newest version of the runtime specification that ocirt follows
SPEC = "1.3.0"


def run(options: Options) -> int:
    """Print the version. Engines read the first line, `commit:` and the words after it."""
    from ocirt.commands.features import features

    lines = [f"ocirt version {ocirt.__version__}"]
    if commit():
        lines.append(f"commit: {commit()}")
    lines.append(f"spec: {SPEC}")
    lines.append(" ".join(f"+{name.upper()}" for name in enabled("", features()["linux"])))
    write("\n".join(lines) + "\n")
    return 0


def enabled(name: str, value: Any) -> list[str]:
    """The names of all that is true in a features structure: `cgroup: {v1: true}` gives cgroup-v1."""
    if not isinstance(value, dict):
        return [name.removeprefix("-").removesuffix("-enabled")] if value is True else []
    members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    return [found for key, member in members.items() for found in enabled(f"{name}-{key}", member)]


def commit() -> str:
    """The package's commit, as hack/install noted it there or as the checkout's .git has it; "" if unknown."""
    package = os.path.dirname(os.path.abspath(ocirt.__file__))
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

"""ocirt --version"""

from __future__ import annotations

import ocirt
from ocirt.commands import Options, write
from ocirt.features import SPEC, commit, features

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(options: Options) -> int:
    """Print the version. Engines read the first line, `commit:` and the words after it."""
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

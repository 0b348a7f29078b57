"""What the statistics of v1 and v2 share; their shape is that of runc's `events --stats`, which engines parse.

Times are nanoseconds, sizes bytes; no limit is the number that the kernel or, on v2, runc has for it.
"""

from __future__ import annotations

from ocirt.cgroups import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NO_LIMIT = (1 << 64) - 1


def count(path: str) -> int:
    """A file's number; `max` is NO_LIMIT, no file 0."""
    number = files.number(path)
    return NO_LIMIT if number < 0 else number


def pressure(path: str) -> dict[str, Any]:
    """A PSI file (psi.rst): {"some": {avg10, avg60, avg300 in percent, total in ns}, "full": …}; {} without PSI."""
    found: dict[str, Any] = {}
    for line in files.read_or(path).split("\n"):
        kind, *words = line.split() if line else [""]
        entry: dict[str, float | int] = {}
        for word in words:
            key, _, value = word.partition("=")
            entry[key] = int(value) * 1000 if key == "total" else float(value)
        if kind and entry:
            found[kind] = entry
    return found


def numbers(text: str) -> list[int]:
    """`0-2,7` as a list."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found.extend(range(int(first), int(last or first) + 1))
    return found


def with_pressure(part: dict[str, Any], path: str) -> dict[str, Any]:
    """Add `psi` if the kernel has it."""
    found = pressure(path)
    if found:
        part["psi"] = found
    return part

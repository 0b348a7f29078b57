"""The shape of a probe and of what it found."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: All of it is there; some; nothing.
OK, PARTLY, MISSING = "ok", "partly", "missing"


class Probe:
    """A question to the host.

    ask       gives (OK, PARTLY or MISSING, what was found in words)
    remedy    what an administrator can do if it isn't OK
    required  is no container possible without it?
    """

    __slots__ = ("ask", "group", "name", "remedy", "required")

    def __init__(
        self, group: str, name: str, ask: Callable[[], tuple[str, str]], remedy: str = "", *, required: bool = False
    ) -> None:
        self.group = group
        self.name = name
        self.ask = ask
        self.remedy = remedy
        self.required = required


class Finding:
    """The answer to a probe."""

    __slots__ = ("detail", "group", "name", "remedy", "required", "status")

    def __init__(self, group: str, name: str, status: str, detail: str, remedy: str, required: bool) -> None:
        self.group = group
        self.name = name
        self.status = status
        self.detail = detail
        self.remedy = remedy
        self.required = required

    def as_dict(self) -> dict[str, str | bool]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("group", "name", "status", "detail", "remedy", "required")}


def amount(found: list[str], lacking: list[str]) -> tuple[str, str]:
    """The verdict on a list of which some are there: what lacks is what interests."""
    if not lacking:
        return OK, ", ".join(found)
    if not found:
        return MISSING, "none of " + ", ".join(lacking)
    return PARTLY, f"{', '.join(found)}; not {', '.join(lacking)}"


def read(path: str) -> str:
    """A file of the kernel, "" if it isn't there or isn't for us."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""

"""What the rules find."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ocirt.spec import Config
    from ocirt.validation.problem import Problem

    Rule = Callable[[Config, "Found"], None]

#: There is no value to show. (None would be null.)
NOTHING = object()


class Found:
    """Collects problems; what a problem is made of is only imported when there is one.

    problems  in the order in which they were found
    rule      the rule that is looking; its docstring names the section of the specification
    """

    __slots__ = ("problems", "rule")

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.rule: Rule | None = None

    def error(self, path: str, message: str, value: object = NOTHING, hint: str = "") -> None:
        """The configuration is wrong at `path`."""
        self._add("error", path, message, value, hint)

    def warn(self, path: str, message: str, value: object = NOTHING, hint: str = "") -> None:
        """The configuration is odd at `path`: the operation goes on (runtime.md, Warnings)."""
        self._add("warning", path, message, value, hint)

    def _add(self, severity: str, path: str, message: str, value: object, hint: str) -> None:
        from ocirt.validation.problem import Problem, show

        shown = "" if value is NOTHING else show(value)
        self.problems.append(Problem(severity, path, shown, message, hint=hint, spec=section(self.rule)))


def key(path: str, name: str) -> str:
    """The path of a key that may be no identifier, such as `linux.sysctl["net.ipv4.ip_forward"]`."""
    from ocirt.validation.problem import join

    return join(path, name)


def section(rule: Rule | None) -> str:
    """The section that a rule's docstring names in brackets at its end."""
    text = (rule.__doc__ or "").rstrip() if rule else ""
    return text.rpartition("[")[2].rstrip("]") if text.endswith("]") else ""

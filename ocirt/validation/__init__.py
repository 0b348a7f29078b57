"""Is this configuration right? Yes, quickly; or everything that is wrong with it.

The yes comes from functions generated from schemas/ (generated.py) and from the
rules that no schema can say (rules/). Only when the generated check says no is
jsonschema imported: it decides, and explains every error at once.
"""

from __future__ import annotations

from ocirt.errors import InvalidConfig
from ocirt.validation import generated, semantic
from ocirt.validation.strings import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.spec import Config, Process, Resources
    from ocirt.validation.problem import Problem

__all__ = ["check", "check_process", "check_resources", "problems"]


def check(config: Config, raw: bytes | None = None, name: str = "config.json") -> bool:
    """Raise InvalidConfig with every error of the configuration; log its warnings. `name` is what messages call it.

    What other runtimes take without a word (null for an absent key) is repaired
    in place; True if something was. `raw` is the JSON that `config` was parsed
    from: it saves a walk through all strings.
    """
    found, repaired = _find("config", config, raw)
    _settle(found, name)
    return repaired


def problems(config: Config, raw: bytes | None = None) -> list[Problem]:
    """Every error and warning of the configuration, and advice that check doesn't log; repairs it like check."""
    return _find("config", config, raw, advice=True)[0]


def check_process(process: Process, config: Config, raw: bytes | None = None) -> None:
    """Raise InvalidConfig for a process to be executed in the container of `config`.

    `raw` is the JSON that it was parsed from (exec --process); empty where its strings are those of a command line,
    which may hold any bytes but NUL.
    """
    _settle(_find("process", process, raw, config)[0], "process")


def check_resources(resources: Resources) -> None:
    """Raise InvalidConfig for the input of `update`."""
    _settle(_find("resources", resources, None)[0], "resources")


#: A message with more errors than this is no message.
_LISTED = 50

#: The parts that can be checked by themselves, and where they stand in a configuration.
_PREFIX = {"config": "", "process": "process.", "resources": "linux.resources."}


def _find(
    what: str, value: Any, raw: bytes | None, config: Config | None = None, advice: bool = False
) -> tuple[list[Problem], bool]:
    """The problems of a configuration or a part of it, and whether something was repaired.

    `what` is the entry point of the generated check and the schema's name.
    """
    found, repaired = clean(value, raw), False
    odd: list[Any] = []
    shaped = not found and getattr(generated, what)(value, odd)
    if not shaped or odd:
        from ocirt.validation.unshaped import look

        shaped, repaired = look(value, what, found)
    whole: Any = value
    if what == "process":
        whole = {**(config or {}), "process": value}
    elif what == "resources":
        whole = {"linux": {"resources": value}}
    errors = {p.path for p in found if p.severity == "error"}
    for problem in semantic.find(what, whole, shaped, advice):
        problem.path = problem.path.removeprefix(_PREFIX[what])
        if problem.path not in errors:  # one reason a value is enough
            found.append(problem)
    return found, repaired


def _settle(found: list[Problem], what: str) -> None:
    """Log the warnings, raise the errors."""
    if not found:
        return
    from ocirt import log

    errors = [p for p in found if p.severity == "error"]
    for problem in found:
        if problem.severity == "warning":
            log.warning(f"{what}: {problem}")
    if len(errors) == 1:
        raise InvalidConfig(f"invalid {what}: {errors[0]}")
    if errors:
        listed = [f"({number}) {problem}" for number, problem in enumerate(errors[:_LISTED], 1)]
        if len(errors) > _LISTED:
            listed.append(f"and {len(errors) - _LISTED} more")
        raise InvalidConfig(f"invalid {what}, {len(errors)} errors: {'; '.join(listed)}")

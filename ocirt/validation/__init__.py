"""Is this configuration right? Yes, quickly; or everything that is wrong with it.

The yes comes from functions generated from schemas/ (generated.py) and from the
rules that no schema can say (rules/). Only when the generated check says no is
jsonschema imported: it decides, and explains every error at once.
"""

from __future__ import annotations

from ocirt.errors import InvalidConfig
from ocirt.validation import generated, semantic
from ocirt.validation.problem import ERROR, WARNING, Problem
from ocirt.validation.strings import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.spec import Config, Process, Resources

__all__ = ["ERROR", "WARNING", "Problem", "check", "check_process", "check_resources", "problems"]


def check(config: Config, raw: bytes | None = None) -> None:
    """Raise InvalidConfig with every error of the configuration; log its warnings.

    `raw` is the JSON that `config` was parsed from: it saves a walk through all strings.
    """
    _settle(_find("config", config, raw), "config.json")


def problems(config: Config, raw: bytes | None = None) -> list[Problem]:
    """Every error and warning of the configuration, misspelt keys included, in the order of the document."""
    from ocirt.validation.keys import misspelt

    found = _find("config", config, raw)
    found += misspelt(config, "config")
    return found


def check_process(process: Process, config: Config) -> None:
    """Raise InvalidConfig for a process to be executed in the container of `config` (exec --process)."""
    _settle(_find("process", process, None, config), "process")


def check_resources(resources: Resources) -> None:
    """Raise InvalidConfig for the input of `update`."""
    _settle(_find("resources", resources, None), "resources")


def _find(what: str, value: Any, raw: bytes | None, config: Config | None = None) -> list[Problem]:
    """The problems of a configuration or a part of it; `what` is the entry point and the schema's name."""
    found = clean(value, raw)
    shaped = not found and getattr(generated, what)(value)
    if not shaped:
        from ocirt.validation.explain import explain

        found += explain(value, what)
        shaped = not found
    whole: Any = value
    if what == "process":
        whole = {**(config or {}), "process": value}
    elif what == "resources":
        whole = {"linux": {"resources": value}}
    return found + semantic.find(what, whole, shaped)


def _settle(found: list[Problem], what: str) -> None:
    """Log the warnings, raise the errors."""
    if not found:
        return
    errors = [p for p in found if p.severity == ERROR]
    for problem in found:
        if problem.severity == WARNING:
            from ocirt import log

            log.warning(f"{what}: {problem}")
    if len(errors) == 1:
        raise InvalidConfig(f"invalid {what}: {errors[0]}")
    if errors:
        listed = "; ".join(f"({number}) {problem}" for number, problem in enumerate(errors, 1))
        raise InvalidConfig(f"invalid {what}, {len(errors)} errors: {listed}")

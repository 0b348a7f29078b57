"""Which rules are asked: all before anything is created.

Rules about what few configurations have are imported only for those.
"""

from __future__ import annotations

from ocirt.validation.found import Found
from ocirt.validation.rules import basics, mounts, namespaces, process, resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config
    from ocirt.validation.found import Rule
    from ocirt.validation.problem import Problem


def rules(what: str, config: Config, advice: bool = False) -> tuple[Rule, ...]:
    """The rules for a whole configuration ("config") or a part of it ("process", "resources")."""
    chosen: tuple[Rule, ...] = ()
    if what == "config":
        chosen = basics.RULES + namespaces.RULES + mounts.RULES + process.RULES + resources.RULES + resources.FIRST
    elif what == "process":
        chosen = process.RULES
    elif what == "resources":
        chosen = resources.RULES
    part, linux = config.get("process") or {}, config.get("linux") or {}
    if "scheduler" in part or "execCPUAffinity" in part or "memoryPolicy" in linux:
        from ocirt.validation.rules import scheduling

        chosen += scheduling.RULES
    if what == "config":
        if any(name.startswith("run.oci.") for name in config.get("annotations") or ()):
            from ocirt.validation.rules import annotations

            chosen += annotations.RULES
        if "seccomp" in linux:
            from ocirt.validation.rules import seccomp

            chosen += seccomp.RULES
        if "sysctl" in linux:
            from ocirt.validation.rules import sysctl

            chosen += sysctl.RULES
        if "intelRdt" in linux:
            from ocirt.validation.rules import rdt

            chosen += rdt.RULES
    if advice:
        from ocirt.validation.rules import advice as more

        chosen += more.RULES
    return chosen


def find(what: str, config: Config, shaped: bool, advice: bool = False) -> list[Problem]:
    """What the rules find; where the shape isn't right, as far as it lets them look."""
    found = Found()
    if shaped:
        for rule in rules(what, config, advice):
            found.rule = rule
            rule(config, found)
        return found.problems
    try:
        chosen = rules(what, config, advice)
    except (AttributeError, TypeError):
        return []
    for rule in chosen:
        found.rule, before = rule, len(found.problems)
        try:
            rule(config, found)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            del found.problems[before:]  # explain() has said what is wrong there
    return found.problems

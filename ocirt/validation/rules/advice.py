"""Rules that are only asked by `validate`: the steps that apply these properties log the warnings at run time."""

from __future__ import annotations

from ocirt.linux.capability import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ocirt.spec import Config
    from ocirt.validation.found import Found, Rule

    Set = Literal["bounding", "effective", "inheritable", "permitted", "ambient"]

_SETS: tuple[Set, ...] = ("bounding", "effective", "inheritable", "permitted", "ambient")


def capabilities(config: Config, found: Found) -> None:
    """A capability that doesn't exist or can't be granted "MUST be logged as a warning by the runtime".

    [config.md, Linux Process]
    """
    sets = (config.get("process") or {}).get("capabilities")
    if not sets:
        return
    unknown: dict[str, str] = {}
    for key in _SETS:
        for index, name in enumerate(sets.get(key) or ()):
            if name not in NAMES:
                unknown.setdefault(name, f"process.capabilities.{key}[{index}]")
    for name, path in unknown.items():
        upper = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
        hint = f"did you mean {upper}?" if upper in NAMES else ""
        found.warn(path, "ignoring unknown or unavailable capabilities", name, hint)
    needed = {*(sets.get("permitted") or ())} & {*(sets.get("inheritable") or ())}
    for index, name in enumerate(sets.get("ambient") or ()):
        if name in NAMES and name not in needed:
            message = "can't be granted: an ambient capability must be permitted and inheritable as well"
            found.warn(f"process.capabilities.ambient[{index}]", message, name)


def deprecated_hooks(config: Config, found: Found) -> None:
    """ "prestart hooks were deprecated in favor of createRuntime, createContainer and startContainer hooks".

    [config.md, Prestart]
    """
    if (config.get("hooks") or {}).get("prestart"):
        hint = "use createRuntime, createContainer or startContainer"
        found.warn("hooks.prestart", "these hooks are deprecated", hint=hint)


def kernel_memory(config: Config, found: Found) -> None:
    """kernel and kernelTCP are NOT RECOMMENDED: cgroup v2 has no such limits, and newer kernels ignore them on v1.

    [config-linux.md, Memory]
    """
    memory = ((config.get("linux") or {}).get("resources") or {}).get("memory") or {}
    for key, value in (("kernel", memory.get("kernel")), ("kernelTCP", memory.get("kernelTCP"))):
        if value is not None:
            hint = "limit covers kernel memory as well"
            found.warn(f"linux.resources.memory.{key}", "is not recommended", value, hint)


RULES: tuple[Rule, ...] = (capabilities, deprecated_hooks, kernel_memory)

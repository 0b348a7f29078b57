"""The five capability sets: config.md, Linux Process; capabilities(7)."""

from __future__ import annotations

from ocirt import log
from ocirt.errors import Error
from ocirt.linux import prctl
from ocirt.linux.capability import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.process.plan import Plan

NUMBERS = {name: number for number, name in enumerate(NAMES)}

SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")

SYS_ADMIN = 1 << NUMBERS["CAP_SYS_ADMIN"]
SYS_PTRACE = 1 << NUMBERS["CAP_SYS_PTRACE"]

_ALL = (1 << 64) - 1

#: The highest number that a capability can have: they are kept in 64 bits.
_LAST = 63


class Sets:
    """The sets of a process as bit masks."""

    __slots__ = SETS

    def __init__(self, bounding: int, effective: int, inheritable: int, permitted: int, ambient: int) -> None:
        self.bounding = bounding
        self.effective = effective
        self.inheritable = inheritable
        self.permitted = permitted
        self.ambient = ambient


def grantable(config: Mapping[str, Any] | None, userns: bool) -> Sets:
    """The sets of process.capabilities, less what can't be granted here.

    userns  the process will live in another user namespace, whose root has them all

    config.md: a value that isn't known or can't be granted MUST be logged as a
    warning and SHOULD NOT fail. A set that isn't given is empty.
    """
    config = config or {}
    available = _available(userns)
    wanted: dict[str, int] = {}
    ignored: list[str] = []
    for name in SETS:
        mask = 0
        for capability in config.get(name) or ():
            number = NUMBERS.get(capability, -1)
            if number < 0 or not available >> number & 1:
                if capability not in ignored:
                    ignored.append(capability)
            else:
                mask |= 1 << number
        wanted[name] = mask
    if ignored:
        log.warning(f"ignoring unknown or unavailable capabilities: [{' '.join(ignored)}]")
    impossible = wanted["ambient"] & ~(wanted["inheritable"] & wanted["permitted"])
    if impossible:
        names = [n for n in NAMES if impossible >> NUMBERS[n] & 1]
        log.warning(f"ignoring ambient capabilities that are not inheritable and permitted: [{' '.join(names)}]")
        wanted["ambient"] &= ~impossible
    wanted["effective"] &= wanted["permitted"]
    return Sets(**wanted)


def _available(userns: bool) -> int:
    """What could be given: all in a user namespace, or this process's permitted set within its bounding set."""
    available = 0
    permitted = _ALL if userns else prctl.capget()[1]
    for number in range(len(NAMES)):
        if permitted >> number & 1 and (prctl.in_bounding_set(number) or (userns and prctl.knows(number))):
            available |= 1 << number
    return available


def drop_bounding_set(plan: Plan) -> None:
    """drop capabilities from the bounding set"""
    for number in range(_LAST + 1):
        if plan.capabilities.bounding >> number & 1:
            continue
        try:
            prctl.prctl(prctl.PR_CAPBSET_DROP, number)
        except Error as error:
            if error.errno != 22:  # EINVAL: the kernel knows no capability of this number, nor of a higher one
                raise
            break


def keep_capabilities(plan: Plan) -> None:
    """keep capabilities over the change of user"""
    if plan.process:
        prctl.prctl(prctl.PR_SET_KEEPCAPS, 1)


def set_capabilities(plan: Plan) -> None:
    """set the capabilities

    A seccomp filter without no_new_privs needs CAP_SYS_ADMIN to be loaded: it is
    kept until then (drop_kept_capability).
    """
    if not plan.process:
        return
    sets = plan.capabilities
    kept = SYS_ADMIN if plan.keeps_sys_admin else 0
    prctl.capset(sets.effective | kept, sets.permitted | kept, sets.inheritable)
    prctl.prctl(prctl.PR_SET_KEEPCAPS, 0)
    _set_ambient(sets.ambient)


def _set_ambient(ambient: int) -> None:
    try:
        prctl.prctl(prctl.PR_CAP_AMBIENT, prctl.PR_CAP_AMBIENT_CLEAR_ALL)
    except Error as error:
        if error.errno == 22 and not ambient:  # before Linux 4.3 there is no ambient set to clear
            return
        raise
    for number in range(len(NAMES)):
        if ambient >> number & 1:
            prctl.prctl(
                prctl.PR_CAP_AMBIENT,
                prctl.PR_CAP_AMBIENT_RAISE,
                number,
                shown=f"prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, {NAMES[number]})",
            )


def drop_kept_capability(plan: Plan) -> None:
    """drop the capability that loading the seccomp filter needed"""
    if plan.keeps_sys_admin:
        sets = plan.capabilities
        prctl.capset(sets.effective, sets.permitted, sets.inheritable)

"""Which devices may be opened and made: the rules of linux.resources.devices, and what both kernels make of them.

A rule is (allow, type, major, minor, access): type `b` or `c`, None for any number,
access a mask of MKNOD, READ and WRITE. The later rule decides.
"""

from __future__ import annotations

from ocirt.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

MKNOD, READ, WRITE = 1, 2, 4
ALL = MKNOD | READ | WRITE

Rule = tuple[bool, str, int | None, int | None, int]

#: What every container may use, whatever the config says. mknod alone opens nothing.
#: tun (10:200) is on the list because engines and users have relied on it since 2015.
DEFAULT: tuple[Rule, ...] = (
    (True, "c", None, None, MKNOD),
    (True, "b", None, None, MKNOD),
    (True, "c", 1, 3, ALL),  # null
    (True, "c", 1, 5, ALL),  # zero
    (True, "c", 1, 7, ALL),  # full
    (True, "c", 1, 8, ALL),  # random
    (True, "c", 1, 9, ALL),  # urandom
    (True, "c", 5, 0, ALL),  # tty
    (True, "c", 5, 1, ALL),  # console
    (True, "c", 5, 2, ALL),  # ptmx
    (True, "c", 136, None, ALL),  # pts/*
    (True, "c", 10, 200, ALL),  # net/tun
)


def rules(entries: Sequence[Mapping[str, Any]] | None) -> list[Rule]:
    """config.json's list, then DEFAULT. What no rule mentions is denied. Raises InvalidConfig."""
    found: list[Rule] = []
    for index, entry in enumerate(entries or ()):
        field = f"linux.resources.devices[{index}]"
        access = _access(entry.get("access"), field)
        numbers = (_number(entry.get("major")), _number(entry.get("minor")))
        found.extend((entry["allow"], kind, *numbers, access) for kind in _kinds(entry.get("type"), field))
    found.extend(DEFAULT)
    return found


def _kinds(kind: str | None, field: str) -> str:
    if kind in (None, "", "a"):
        return "bc"
    if kind in ("c", "u"):  # mknod's u is an unbuffered character device: the same thing on Linux
        return "c"
    if kind == "b":
        return "b"
    raise InvalidConfig(f"{field}.type: {kind!r} is no device type; a, b or c is")


def _number(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _access(text: str | None, field: str) -> int:
    if text is None:
        return ALL
    mask = 0
    for letter in text:
        bit = {"m": MKNOD, "r": READ, "w": WRITE}.get(letter)
        if bit is None:
            raise InvalidConfig(f"{field}.access: {text!r} must be made of r, w and m")
        mask |= bit
    if not mask:
        raise InvalidConfig(f"{field}.access: is empty; it must be made of r, w and m")
    return mask


def letters(mask: int) -> str:
    """The mask as the v1 files write it: `rwm` in that order."""
    return ("r" if mask & READ else "") + ("w" if mask & WRITE else "") + ("m" if mask & MKNOD else "")


Key = tuple[str, int | None, int | None]


class List:
    """A v1 device list: a default, and exceptions from it {(type, major, minor): access}."""

    __slots__ = ("allow", "exceptions")

    def __init__(self) -> None:
        self.allow = False
        self.exceptions: dict[Key, int] = {}

    @classmethod
    def of(cls, rules: list[Rule]) -> List:
        """What the rules come to. Raises InvalidConfig for a rule that a v1 list can't express."""
        made = cls()
        denied_all = allowed_all = ""
        for rule in rules:
            allow, kind, major, minor, access = rule
            if major is None and minor is None and access == ALL:
                # `a` is one line for the kernel, and two rules here
                if allow:
                    allowed_all += kind
                    denied_all = ""
                else:
                    denied_all += kind
                    allowed_all = ""
                if "b" in allowed_all and "c" in allowed_all:
                    made.allow, made.exceptions, allowed_all = True, {}, ""
                    continue
                if "b" in denied_all and "c" in denied_all:
                    made.allow, made.exceptions, denied_all = False, {}, ""
                    continue
            else:
                allowed_all = denied_all = ""
            made._add(rule)
        return made

    @classmethod
    def parse(cls, text: str) -> List:
        """The file devices.list; of a deny list it shows no exceptions."""
        made = cls()
        for line in text.split("\n"):
            kind, _, rest = line.partition(" ")
            numbers, _, access = rest.partition(" ")
            if kind == "a":
                made.allow = True
            elif kind:
                major, _, minor = numbers.partition(":")
                key = (kind, None if major == "*" else int(major), None if minor == "*" else int(minor))
                made.exceptions[key] = _access(access, "devices.list")
        return made

    def _add(self, rule: Rule) -> None:
        allow, kind, major, minor, access = rule
        if allow != self.allow:
            key = (kind, major, minor)
            self.exceptions[key] = self.exceptions.get(key, 0) | access
            return
        for key, mask in list(self.exceptions.items()):
            if key[0] != kind or not mask & access:
                continue
            if _covers(major, key[1]) and _covers(minor, key[2]):
                if mask & ~access:
                    self.exceptions[key] = mask & ~access
                else:
                    del self.exceptions[key]
            elif _meets(major, key[1]) and _meets(minor, key[2]):
                # the kernel takes such a line and ignores it
                verb, other = ("allow", "denied") if allow else ("deny", "allowed")
                raise InvalidConfig(
                    f"linux.resources.devices: cgroup v1 can't {verb} {show((kind, major, minor), access)} "
                    f"while {show(key, mask)} is {other}; name the {other} devices one by one"
                )

    def transition(self, new: List) -> list[tuple[str, str]]:
        """(file, line) to write to get from this list to `new`.

        Between lists of one kind nothing that both allow is ever denied, nothing that both
        deny ever allowed. The way to another kind leads over the kernel's `a`: everything
        is denied for a moment, or, towards a deny list, allowed: there the caller freezes.
        """
        opens, closes = ("devices.deny", "devices.allow") if new.allow else ("devices.allow", "devices.deny")
        if self.allow != new.allow:
            return [(closes, "a"), *((opens, show(key, mask)) for key, mask in new.exceptions.items())]
        lines: list[tuple[str, str]] = []
        for key, mask in new.exceptions.items():
            added = mask & ~self.exceptions.get(key, 0)
            if added:
                lines.append((opens, show(key, added)))
        for key, mask in self.exceptions.items():
            gone = mask & ~new.exceptions.get(key, 0)
            if gone:
                lines.append((closes, show(key, gone)))
        return lines


def _covers(wide: int | None, narrow: int | None) -> bool:
    return wide is None or wide == narrow


def _meets(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


def show(key: Key, mask: int) -> str:
    """A line of the v1 files: `c 1:3 rwm`."""
    kind, major, minor = key
    return f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {letters(mask)}"

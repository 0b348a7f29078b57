"""Lists of CPUs and memory nodes: "0-3,7"."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.validation.found import Found


def parse(text: str, limit: int = 1 << 16) -> list[tuple[int, int]]:
    """The ranges of a list, both ends included; an empty list has none.

    Raises ValueError with what is wrong. `limit` is the first number that is too large.
    """
    ranges: list[tuple[int, int]] = []
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.strip().partition("-")
        low = _number(first, limit)
        high = _number(last, limit) if dash else low
        if high < low:
            raise ValueError(f"the range {part.strip()} runs backwards")
        ranges.append((low, high))
    return ranges


def _number(text: str, limit: int) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit()):  # int() would take "+1", "1_0" and other scripts' digits
        raise ValueError(f"{text!r} is no number")
    if len(text) > 9 or int(text) >= limit:
        raise ValueError(f"{text} is too large, must be less than {limit}")
    return int(text)


def check(text: str | None, path: str, found: Found, what: str = "list of CPUs") -> None:
    """Report a list that can't be parsed."""
    try:
        parse(text or "")
    except ValueError as error:
        found.error(path, f'invalid {what}: {error}, must be such as "0-3,7"', text)

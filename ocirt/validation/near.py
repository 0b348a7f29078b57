"""Which known word was probably meant."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is nearest to `word`, "" if none is near.

    Near is: the same but for case and punctuation, or at most one slip in every
    four letters, but one in three (a letter too many, missing, wrong, or two swapped).
    """
    best, least = "", max(len(word) // 4, len(word) > 2) + 1
    plain = _plain(word)
    for candidate in known:
        if abs(len(candidate) - len(word)) >= least and _plain(candidate) != plain:
            continue
        slips = 0 if _plain(candidate) == plain else _slips(word.lower(), candidate.lower(), least)
        if slips < least:
            best, least = candidate, slips
    return best


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def _slips(a: str, b: str, limit: int) -> int:
    """The optimal string alignment distance, or `limit` if it is at least that."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(row[j - 1] + 1, before[j] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) >= limit:
            return limit
    return min(row[-1], limit)

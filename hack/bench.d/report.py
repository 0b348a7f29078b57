"""Results, and how they are shown."""

from __future__ import annotations

import statistics
from typing import Any

from measure import Sample


class Paired:
    """Samples of several ways of doing one thing, round by round.

    samples     {way: [sample of each round]}
    pairs       [(way, what it is compared with)]
    quantities  what is compared; one that a way hasn't ("state cpu" of bare) is its last word there
    unit        of times; "s" is shown as ms
    """

    def __init__(
        self,
        name: str,
        title: str,
        samples: dict[str, list[Sample]],
        pairs: list[tuple[str, str]],
        quantities: list[str],
        *,
        unit: str = "s",
    ) -> None:
        self.name, self.title, self.samples, self.pairs = name, title, samples, pairs
        self.quantities, self.unit = quantities, unit

    def values(self, way: str, quantity: str) -> list[float]:
        """A quantity of each round."""
        return [s[quantity] if quantity in s else s[quantity.rsplit(maxsplit=1)[-1]] for s in self.samples[way]]

    def ratio(self, way: str, base: str, quantity: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the ratios within the rounds."""
        pairs = zip(self.values(way, quantity), self.values(base, quantity), strict=True)
        ratios = [mine / other for mine, other in pairs if other > 0]
        if len(ratios) < 2:
            return (ratios * 3)[0:3] if ratios else (0.0, 0.0, 0.0)  # type: ignore[return-value]
        return tuple(statistics.quantiles(ratios, n=4, method="inclusive"))  # type: ignore[return-value]

    def shown(self, way: str, quantity: str) -> str:
        """The median in its unit."""
        value = statistics.median(self.values(way, quantity))
        return f"{value * 1000:.1f}" if self.unit == "s" else f"{value:.2f}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows."""
        ways = list(dict.fromkeys(way for pair in self.pairs for way in pair))
        if self._one_subject():
            unit = "ms" if self.unit == "s" else self.unit
            head = ["", *(f"{way}, {unit}" for way in ways), *(f"{a} / {b}" for a, b in self.pairs)]
            rows = [
                [
                    quantity,
                    *(self.shown(way, quantity) for way in ways),
                    *(self._cell(*p, quantity) for p in self.pairs),
                ]
                for quantity in self.quantities
            ]
            return head, rows
        head = ["", *(f"{quantity}, ms" for quantity in self.quantities), *(f"{q}, ratio" for q in self.quantities)]
        rows = []
        for way, base in self.pairs:
            times = [f"{self.shown(way, q)} / {self.shown(base, q)}" for q in self.quantities]
            rows.append([f"{way} / {base}", *times, *(self._cell(way, base, q) for q in self.quantities)])
        return head, rows

    def _one_subject(self) -> bool:
        return len({way for way, _ in self.pairs}) == 1

    def _cell(self, way: str, base: str, quantity: str) -> str:
        low, middle, high = self.ratio(way, base, quantity)
        return f"{middle:.2f} [{low:.2f}–{high:.2f}]"

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {"name": self.name, "title": self.title, "unit": self.unit, "samples": self.samples, "pairs": self.pairs}


class Table:
    """A result that is a table already."""

    def __init__(self, name: str, title: str, head: list[str], rows: list[list[str]]) -> None:
        self.name, self.title, self.head, self.rows = name, title, head, rows

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows."""
        return self.head, self.rows

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {"name": self.name, "title": self.title, "head": self.head, "rows": self.rows}


def text(results: list[Paired | Table], facts: dict[str, str], rounds: int, *, markdown: bool) -> str:
    """All results for people."""
    parts = ["; ".join(f"{key}: {value}" for key, value in facts.items()) + f"; {rounds} rounds"]
    for found in results:
        head, rows = found.table()
        parts.append(f"### {found.title}" if markdown else f"{found.name}: {found.title}")
        parts.append(_markdown(head, rows) if markdown else _columns(head, rows))
    return "\n\n".join(parts)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = []
    for line in (head, *rows):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join((first, *rest)).rstrip())
    return "\n".join(lines)

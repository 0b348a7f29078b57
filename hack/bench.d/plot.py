"""The ratios as a plot: a dot at the median, a line from quartile to quartile."""

from __future__ import annotations

from html import escape

from report import Paired, Table

_ROW, _LEFT, _WIDTH, _TOP = 22, 330, 480, 40
_COLOURS = {"runc": "#1f77b4", "crun": "#d62728"}


def svg(results: list[Paired | Table]) -> str:
    """An SVG picture of every ratio to another runtime; 1 is "as much as the other"."""
    rows = [
        (f"{found.name}, {quantity} / {base}", base, *found.ratio(way, base, quantity))
        for found in results
        if isinstance(found, Paired)
        for quantity in found.quantities
        for way, base in found.pairs
    ]
    most = max([2.0, *(high for *_, high in rows)]) * 1.05
    height = _TOP + _ROW * len(rows) + 20

    def x(ratio: float) -> float:
        return _LEFT + ratio / most * _WIDTH

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 80}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{x(1)}" y="{_TOP - 14}" text-anchor="middle">1</text>',
        f'<line x1="{x(1)}" y1="{_TOP - 8}" x2="{x(1)}" y2="{height - 12}" stroke="#888" stroke-dasharray="4 3"/>',
    ]
    for number, (label, base, low, middle, high) in enumerate(rows):
        y = _TOP + _ROW * number + _ROW / 2
        colour = _COLOURS.get(base, "#444")
        lines += [
            f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>',
            f'<line x1="{x(low)}" y1="{y}" x2="{x(high)}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x(middle)}" cy="{y}" r="4.5" fill="{colour}"/>',
            f'<text x="{x(high) + 8}" y="{y + 4}">{middle:.2f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])

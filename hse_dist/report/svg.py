"""Charts as inline SVG, in the page's own colours, so that they are readable in light and dark.

In: series of points. Out: markup in which every text is escaped. No script: a point's numbers are its title.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 32
COLOURS = 6
"""Classes c0 … c5 of the page's style."""

Points = Sequence[tuple[float, float]]


def lines(series: Mapping[str, Points], x_label: str, *, zero: bool = False) -> str:
    """Lines over one axis; points that are no number are left out.

    Args:
        zero: the y axis begins at 0.
    """
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    every = [point for points in kept.values() for point in points]
    if not every:
        return '<p class="none">nothing was measured</p>'
    (x_low, x_high), (y_low, y_high) = _range([x for x, _ in every]), _range([y for _, y in every], zero=zero)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(series))} by {x_label}">']
    for step in range(5):
        y = y_low + step / 4 * (y_high - y_low)
        _, down = place(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(f'<text x="{place(x, y_low)[0]:.1f}" y="{HEIGHT - 14}" text-anchor="{anchor}">{number(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for index, (name, points) in enumerate(kept.items()):
        colour = f"c{index % COLOURS}"
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in points))
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        for x, y in points:
            a, b = place(x, y)
            text = escape(f"{name}: {number(y)} at {number(x)}")
            parts.append(
                f'<circle class="dot {colour}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"><title>{text}</title></circle>'
            )
    return "".join(parts) + "</svg>" + _legend(list(kept))


def bars(values: dict[str, float], unit: str) -> str:
    """Horizontal bars, one a name, with their numbers."""
    most = max([value for value in values.values() if math.isfinite(value)], default=0.0)
    if most <= 0:
        return '<p class="none">nothing was measured</p>'
    height = 26 * len(values) + 8
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(unit)}">']
    for index, (name, value) in enumerate(values.items()):
        top, long = 4 + 26 * index, max(value, 0.0) / most * (WIDTH - 210)
        parts.append(f'<text x="112" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="bar c0" x="118" y="{top + 2}" width="{long:.1f}" height="18"/>')
        parts.append(f'<text x="{124 + long:.1f}" y="{top + 15}">{number(value)} {escape(unit)}</text>')
    return "".join(parts) + "</svg>"


def _legend(names: list[str]) -> str:
    if len(names) < 2:
        return ""
    keys = (f'<span><i class="key c{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{"".join(keys)}</p>'


def _range(values: list[float], *, zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = min(low, 0.0) if zero else low
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def number(value: float) -> str:
    """Three or four digits, thousands apart."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"

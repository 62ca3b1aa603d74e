"""`Panels` as a PNG file: several panels with one legend.

In: curves by panel. Out: a file, whole or not there. A curve that is far below the best of its panel would press all
others together: it is left out of the panel, and named in its corner with its highest value. The same with curves whose
x lies far off: they are levels with their x in words.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hse_dist.benchmark.report import Curve, Panels, as_text
from hse_dist.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (6.0, 4.4)
"""Inches of a panel, at 150 dots an inch."""
ALONE = (7.5, 5.0)
"""Inches of a panel that is the only one."""
COLUMNS = 2
LEAST = 0.6
"""Share of the panel's highest value: curves that stay below it are named in the corner, points below it cut off."""
STRONG = "black"
MARKS = "osD^vP*X<>hd"


def draw_panels(chart: Panels, path: Path) -> None:
    """Write the picture to `path`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    width, height = PANEL if len(chart.panels) > 1 else ALONE
    figure = Figure(figsize=(width * columns, height * rows + 0.6), dpi=150, layout="constrained")
    figure.suptitle(chart.title, fontsize=11)
    looks = _looks(chart)
    shown: dict[str, Any] = {}
    for place, (name, curves) in enumerate(chart.panels.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        shown |= _panel(axes, curves, looks)
        axes.set(title=name, xlabel=chart.x_label, ylabel=chart.y_label if place % columns == 0 else "")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(chart.ticks, [as_text(round(size)) for size in chart.ticks])
    ordered = [shown[name] for name in looks if name in shown]
    figure.legend(handles=ordered, loc="outside lower center", ncols=1 + 2 * columns, frameon=False, fontsize=9)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _looks(chart: Panels) -> dict[str, dict[str, Any]]:
    """Colour and mark by name, strong curves first."""
    from matplotlib import colormaps

    curves = {curve.name: curve for panel in chart.panels.values() for curve in panel}
    colours = [colour for index, colour in enumerate(colormaps["tab10"].colors) if index != 7] * 3  # type: ignore[attr-defined]
    looks, taken = {}, 0
    for curve in sorted(curves.values(), key=lambda curve: not curve.strong):
        colour = STRONG if curve.strong else colours[taken]
        looks[curve.name] = {"color": colour, "marker": MARKS[taken % len(MARKS)]}
        taken += not curve.strong
    return looks


def _panel(axes: Axes, curves: list[Curve], looks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Draw one panel; what the legend names."""
    heights = {curve.name: max(point[1] for point in curve.points) for curve in curves}
    bottom = LEAST * max(heights.values(), default=0.0)
    shown, levels, low = {}, [], []
    for curve in curves:
        look = looks[curve.name]
        if heights[curve.name] < bottom:
            low.append(f"{curve.name} {as_text(heights[curve.name])}")
        elif curve.level:
            size, height, *_ = curve.points[0]
            levels.append((height, f"{curve.name}, {as_text(round(size))} bytes", look["color"]))
            shown[curve.name] = axes.axhline(
                height, color=look["color"], linestyle=":", linewidth=1.4, label=curve.name
            )
        else:
            shown[curve.name] = _curve(axes, curve, look)
    values = [point[1] for curve in curves for point in curve.points if point[1] >= bottom]
    if values:
        room = 0.08 * (max(values) - min(values)) or 0.05 * max(values)
        axes.set_ylim(min(values) - room, max(values) + 2 * room)
    _name_levels(axes, levels)
    if low:
        text = "below the picture: " + "; ".join(low)
        axes.text(0.99, 0.015, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="0.35")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return shown


def _curve(axes: Axes, curve: Curve, look: dict[str, Any]) -> Any:
    xs, ys, lowest, highest = (list(part) for part in zip(*curve.points, strict=True))
    below = [max(y - low, 0.0) for y, low in zip(ys, lowest, strict=True)]
    above = [max(high - y, 0.0) for y, high in zip(ys, highest, strict=True)]
    style = {
        "linestyle": "--" if curve.broken else "-",
        "linewidth": 3.0 if curve.strong and not curve.broken else 1.3,
        "markersize": 6 if curve.strong else 5,
        "zorder": 5 if curve.strong else 3,
        "capsize": 2,
        "elinewidth": 0.8,
    }
    bars = [below, above] if any(below) or any(above) else None
    return axes.errorbar(xs, ys, yerr=bars, label=curve.name, **look, **style)  # type: ignore[arg-type]


def _name_levels(axes: Axes, levels: list[tuple[float, str, Any]]) -> None:
    """The names of levels at the left, where curves are low; one above the other where the levels are close."""
    bottom, top = axes.get_ylim()
    least, last = 0.045 * (top - bottom), -math.inf
    for height, text, colour in sorted(levels, key=lambda level: level[0]):
        at = max(height + 0.006 * (top - bottom), last + least)
        place = axes.get_yaxis_transform()
        axes.text(0.01, at, text, transform=place, ha="left", va="bottom", fontsize=7, color=colour)
        last = at

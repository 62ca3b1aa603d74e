"""A `Chart` as a PNG file.

In: a chart. Out: a file, whole or not there. Matplotlib is imported here and in `panels`, and draws without a screen.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from hse_dist.benchmark.report import Chart, as_text
from hse_dist.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8.0, 4.8)
"""Inches, at 150 dots an inch."""
GROUP = 0.8
"""What part of the distance between two places on the axis their bars take."""
LEGEND_COLUMNS = 4
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
"""What is behind a bar's number: it hides the line of the target, not the number."""
LETTERS = 88
"""That fit side by side under the axis; names of bars are broken into lines where they need more."""
MOST_TICKS = 10
"""Measured numbers that stand on the axis themselves; more would overlap."""


def draw(chart: Chart, path: Path) -> None:
    """Write the picture to `path`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shown = _bars(axes, chart) if chart.kind == "bars" else _lines(axes, chart)
    if chart.target is not None:
        label = f"target {as_text(chart.target)}"
        shown.append(axes.axhline(chart.target, color="0.35", linestyle="--", linewidth=1.0, label=label))
    # after everything is drawn: limits that are set early leave out what comes later
    if chart.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(shown) > 1:
        figure.legend(handles=shown, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=9)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _bars(axes: Axes, chart: Chart) -> list[Any]:
    """Draw bars; what the legend names."""
    width, shown = GROUP / len(chart.series), []
    for place, (name, heights) in enumerate(chart.series.items()):
        left = [index + (place - (len(chart.series) - 1) / 2) * width for index in range(len(chart.x))]
        bars = axes.bar(left, heights, width * 0.92, label=name)
        axes.bar_label(bars, [as_text(float(height)) for height in heights], padding=2, fontsize=8, bbox=LABEL)
        shown.append(bars)
    axes.set_xticks(range(len(chart.x)), [fill(_place(x), LETTERS // len(chart.x)) for x in chart.x])
    axes.margins(y=0.12)
    return shown


def _lines(axes: Axes, chart: Chart) -> list[Any]:
    """Draw lines; what the legend names."""
    named = any(isinstance(x, str) for x in chart.x)
    places: Any = range(len(chart.x)) if named else chart.x
    shown = [line for name, heights in chart.series.items() for line in axes.plot(places, heights, "o-", label=name)]
    if chart.log_x and not named:
        axes.set_xscale("log")
        axes.minorticks_off()
    if named or len(chart.x) <= MOST_TICKS:
        axes.set_xticks(places, [_place(x) for x in chart.x])
    axes.margins(y=0.08)
    return shown


def _place(x: float | str) -> str:
    """The name of a place on the axis; 2.0 ranks are 2."""
    return as_text(int(x) if isinstance(x, float) and x.is_integer() else x)

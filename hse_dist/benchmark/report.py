"""What a benchmark found, shown in four ways: a table, one JSON object, a file of it, and a picture.

In: a `Report` of figures and rows. Out: the JSON-able object that the command prints, with the versions, cores and
processor that figures mean nothing without. Benchmarks measure and fill in a `Report`; nothing here measures.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from hse_dist.errors import UserError
from hse_dist.files import write_json
from hse_dist.screen import show_table

PACKAGES = ("torch", "torchrec", "fbgemm", "ray", "pyarrow", "numpy")
SPREAD = ("median", "lowest", "highest")

Spread = dict[str, float]


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        series: name → heights, as many as there are in `x`; NaN is a gap.
        x: numbers, or names of the places on the axis. Bars stand side by side at each of them.
        target: height of a horizontal line, the value to reach.
    """

    title: str
    y_label: str
    x_label: str
    series: dict[str, list[float]]
    x: list[float] | list[str]
    kind: Literal["bars", "lines"]
    log_x: bool = False
    log_y: bool = False
    target: float | None = None


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
        points: (x, y, lowest y, highest y) by rising x; the last two stand as a bar where they differ.
        level: one point far off the other curves' x: drawn as a level across the panel, with its x in words.
        strong: drawn thick, above all others. broken: drawn with a broken line.
    """

    name: str
    points: list[tuple[float, float, float, float]]
    level: bool = False
    strong: bool = False
    broken: bool = False


@dataclass(frozen=True)
class Panels:
    """A picture of several panels with one legend; a name has one colour in all of them.

    Attributes:
        ticks: the numbers on the x axis, which is logarithmic.
    """

    title: str
    y_label: str
    x_label: str
    panels: dict[str, list[Curve]]
    ticks: list[float]


@dataclass(frozen=True)
class Report:
    """What one benchmark found.

    Attributes:
        kind: the benchmark's name, also that of its files.
        figures: the keys that go to the top level of the JSON object, where the table has the key `table`.
        rows: the table: all with the same keys in the same order; a value is a text, a number or a `spread`.
        shape: what was measured: sizes, ranks, threads, device.
        notes: targets that were missed and why, what is an estimate, what was oversubscribed.
        tables: further tables, each shown under its key in the JSON object.
        records: single measurements by the key they have in the JSON object; not shown.
    """

    kind: str
    figures: dict[str, float | int | str]
    rows: list[dict[str, Any]]
    shape: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    chart: Chart | Panels | None = None
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def spread(values: Sequence[float]) -> Spread:
    """The median of repeated measurements, with the lowest and the highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def finish(report: Report, folder: Path | None) -> dict[str, Any]:
    """Show the table and the notes; write KIND.json and KIND.png into `folder` (None: neither); the JSON-able object.

    Raises:
        UserError: the folder cannot be written.
    """
    result = {
        "kind": report.kind,
        **report.figures,
        "table": report.rows,
        **report.tables,
        **report.records,
        "shape": report.shape,
        "notes": report.notes,
        **machine(str(report.shape.get("device", "cpu"))),
    }
    for name, rows in {f"benchmark {report.kind}": report.rows, **report.tables}.items():
        if rows:
            show_table(name.replace("_", " "), list(rows[0]), [_texts(row) for row in rows])
    for note in report.notes:
        print(f"- {note}", file=sys.stderr)
    if folder is not None:
        with _writing(folder):
            write_json(folder / f"{report.kind}.json", result)
            if report.chart is not None:
                _draw(report.chart, folder / f"{report.kind}.png")
    return result


def _draw(chart: Chart | Panels, path: Path) -> None:
    if isinstance(chart, Panels):
        from hse_dist.benchmark.panels import draw_panels

        draw_panels(chart, path)
    else:
        from hse_dist.benchmark.picture import draw

        draw(chart, path)


def open_folder(path: str | Path) -> Path:
    """The folder for the files, made before minutes are spent on what should go into it.

    Raises:
        UserError: there can be no such folder.
    """
    folder = Path(path)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The benchmark's files cannot be written: {error}.", setting="--folder", value=str(folder)
        ) from error


def machine(device: str) -> dict[str, Any]:
    """Versions, cores that this process may use, the processor's name, and the device's."""
    name = device
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    return {
        "versions": {package: _version(package) for package in PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "device": name,
    }


def _version(package: str) -> str | None:
    """Of an installed package; fbgemm is one of two."""
    for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if package == "fbgemm" else (package,):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return None


def _processor() -> str:
    """The processor's name; Linux keeps it where `platform` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [as_text(value) for value in row.values()]


def as_text(value: Any) -> str:
    """A cell: three significant digits and whole thousands; a spread as `38.1 (36.9 – 41.2)`; None as –."""
    if isinstance(value, Mapping) and tuple(value) == SPREAD:
        decimals = _decimals(value["median"])
        median, lowest, highest = (_fixed(value[name], decimals) for name in SPREAD)
        return f"{median} ({lowest} – {highest})"
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return _fixed(value, _decimals(value))
    return f"{value:,}".replace(",", " ") if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _decimals(value: float) -> int | None:
    """Decimals that show three digits; None where the number is too small for that and wants an exponent."""
    size = abs(value)
    for decimals, least in enumerate((100.0, 10.0, 1.0, 0.1, 0.01)):
        if size >= least:
            return decimals
    return 0 if size == 0 else None


def _fixed(value: float, decimals: int | None) -> str:
    return f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}".replace(",", " ")

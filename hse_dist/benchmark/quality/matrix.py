"""`benchmark quality`: the matrix, filled as far as time allows, and shown.

In: what to measure, and a folder that holds what was measured before. Out: the report of all that is there now. Cells
that are kept are not computed again; failures are tried again only where that is asked for. The limit of time ends the
work between two cells. Several commands may work in one folder at a time: each cell is one's alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

from hse_dist.baselines.registry import BASELINES
from hse_dist.benchmark.quality import derive
from hse_dist.benchmark.quality.plan import Request, check_sources, make_cells, open_data
from hse_dist.benchmark.quality.settings import BYTES, COORDINATION, FULL, METHODS, OURS_NAME, TARGETS
from hse_dist.benchmark.quality.store import DONE, FAILED, Cell, Store
from hse_dist.benchmark.quality.worker import Worker
from hse_dist.benchmark.report import Curve, Panels, Report
from hse_dist.evaluate.bootstrap import compare

NEAR = 1.5
"""By what factor a method's own size may be outside the budgets and still be a point of the picture, not a level."""

log = logging.getLogger(__name__)


def benchmark_quality(
    *,
    data: tuple[str, ...] = ("ml-100k",),
    methods: tuple[str, ...] | None = None,
    bytes: tuple[int, ...] = BYTES,
    seeds: tuple[int, ...] | None = None,
    hours: int | None = None,
    minutes: int | None = None,
    cell_minutes: int | None = None,
    retry: bool = False,
    show: bool = False,
    configs: str = "configs",
    folder: Path = Path("runs/benchmark"),
) -> Report:
    """Fill the matrix of data × method × budget × seed, and show it.

    Args:
        data: names of `configs`/NAME.toml. methods: of `settings.METHODS` and baselines; None: all. bytes: budgets.
        seeds: of the split and the run; None: those of `settings.SEEDS`.
        hours, minutes: of this call, together; None: until the matrix is full. cell_minutes: most of one cell.
        retry: try again what failed. show: measure nothing. folder: the work goes into `folder`/quality.

    Returns:
        figures `measured` (by this call), `kept` (before it), `failed`, `left` (cells), `defeats` (places where a
        baseline of the same bytes is above ours); tables `bytes_needed`, `coordination`, `share_of_ease`; records
        `cells`.

    Raises:
        ConfigError, DataError: a name, a setting or a log is at fault; before anything runs.
    """
    limited = hours is not None or minutes is not None
    deadline = monotonic() + 3600 * (hours or 0) + 60 * (minutes or 0) if limited else None
    request = Request(data, methods or (*METHODS, *BASELINES), bytes, seeds, Path(configs))
    store = Store(Path(folder).absolute() / "quality")
    if not show:
        check_sources(request)
    cells = make_cells(request, store, open_data(request, store, make=not show))
    missing = [] if show else [cell for cell in cells if _wanted(store.read(cell), retry)]
    measured = _fill(store, missing, deadline, 60.0 * cell_minutes if cell_minutes else None, retry)
    return make_report(store, cells, measured, request)


def _wanted(kept: dict[str, Any] | None, retry: bool) -> bool:
    return kept is None or (retry and kept["state"] == FAILED)


def _fill(store: Store, missing: list[Cell], deadline: float | None, seconds: float | None, retry: bool) -> int:
    """Compute what is missing until the deadline; how many cells that were."""
    measured = 0
    with Worker(store.folder, seconds) as worker:
        for index, cell in enumerate(missing, start=1):
            if deadline is not None and monotonic() >= deadline:
                log.info("quality: the time is over, %d cells are left", len(missing) - index + 1)
                break
            with store.lock(cell.name) as mine:
                if not mine or not _wanted(store.read(cell), retry):
                    continue  # another command has it, or had it meanwhile
                outcome = worker.compute(cell)
                store.write(cell, outcome)
            measured += 1
            _say(f"{index} of {len(missing)}", cell, outcome)
    return measured


def _say(place: str, cell: Cell, outcome: dict[str, Any]) -> None:
    if outcome["state"] == DONE:
        found = f"nDCG@100 {outcome['result']['ndcg@100']:.4f}, {outcome['result']['bytes_per_item']:.0f} bytes"
        log.info("quality %s: %s: %s, %.0f s", place, cell, found, outcome["seconds"])
    else:
        log.warning("quality %s: %s failed: %s", place, cell, outcome["error"])


def make_report(store: Store, cells: list[Cell], measured: int, request: Request) -> Report:
    """The report of all cells that are there, `measured` of them by this call."""
    kept = [(cell, found) for cell in cells if (found := store.read(cell)) is not None]
    failed = [(cell, found) for cell, found in kept if found["state"] == FAILED]
    done = [(cell, found) for cell, found in kept if found["state"] == DONE]
    records = [_record(cell, found) for cell, found in done]
    users = {(cell.data, cell.method, cell.budget, cell.seed): store.users(cell) for cell, _ in done}
    defeats = derive.defeats(records, OURS_NAME, METHODS)
    worth = derive.coordination(records, COORDINATION)
    notes = [_defeat_note(defeat, users) for defeat in defeats]
    errors = Counter((cell.data, cell.method, found["error"].splitlines()[0]) for cell, found in failed)
    notes += [f"{data}, {method}: {count} failed: {why}" for (data, method, why), count in errors.items()]
    for data, seeds in derive.uneven(records).items():
        known = " ".join(map(str, seeds)) or "none"
        notes.append(f"{data}: the picture and bytes_needed are of the seeds that every method has so far: {known}")
    if best := derive.best_kind(worth, COORDINATION):
        notes.append(f"of the kinds of budget, {best} is the best over all rows")
    counts = {"measured": measured, "kept": len(kept) - measured, "failed": len(failed), "left": len(cells) - len(kept)}
    if counts["left"]:
        notes.append(f"{counts['left']} of {len(cells)} cells are left: run the same command again")
    table = derive.quality_table(records, OURS_NAME, METHODS)
    return Report(
        kind="quality",
        figures={**counts, "defeats": len(defeats)},
        rows=[{key: value for key, value in row.items() if key != "budget"} for row in table],
        shape={"data": list(request.data), "methods": list(request.methods), "bytes": list(request.budgets)},
        notes=notes,
        chart=_picture(records),
        tables={
            "bytes_needed": derive.bytes_needed(records),
            "coordination": worth,
            "share_of_ease": derive.shares(records, OURS_NAME, FULL, TARGETS),
        },
        records={"cells": records},
    )


def _record(cell: Cell, kept: dict[str, Any]) -> dict[str, Any]:
    result = kept["result"]
    return {
        "data": cell.data,
        "method": cell.method,
        "budget": cell.budget,
        "seed": cell.seed,
        "seconds": kept["seconds"],
        **{key: result[key] for key in ("bytes_per_item", "ndcg@100", "recall@20", "recall@50", "coverage")},
    }


def _defeat_note(defeat: dict[str, Any], users: dict[tuple[Any, ...], Path]) -> str:
    """Who is above ours where, by how much, and how sure that is over the users."""
    data, budget, method, seeds = (defeat[key] for key in ("data", "budget", "method", "seeds"))
    files = [[users[data, name, budget, seed] for seed in seeds] for name in (OURS_NAME, method)]
    found = compare(files[0], files[1], derive.METRIC, resamples=2000)
    return (
        f"{data}, {budget} bytes: ours {defeat['ours']:.4f} is below {method} {defeat['theirs']:.4f}: "
        f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}], seeds {' '.join(map(str, seeds))}"
    )


def _picture(records: list[dict[str, Any]]) -> Panels | None:
    """A panel a data set, of methods that the table of coordination does not show already; None if there are none."""
    apart = set(COORDINATION.values()) - {OURS_NAME}
    ticks = sorted({float(record["budget"]) for record in records if record["budget"] is not None})
    panels: dict[str, list[Curve]] = {}
    curves: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    levels: set[tuple[str, str]] = set()
    for (data, method, budget), by_seed in derive.places(derive.even(records)).items():
        if method in apart:
            continue
        values = [record[derive.METRIC] for record in by_seed.values()]
        point = derive.mean(by_seed, "bytes_per_item"), derive.mean(by_seed), min(values), max(values)
        curves.setdefault((data, method), []).append(point)
        if budget is None and not (ticks and ticks[0] / NEAR <= point[0] <= ticks[-1] * NEAR):
            levels.add((data, method))
    for (data, method), points in curves.items():
        own = method in METHODS
        curve = Curve(method, sorted(points), (data, method) in levels, strong=own, broken=own and method != OURS_NAME)
        panels.setdefault(data, []).append(curve)
    title = "Quality against size: means over seeds, bars from the lowest to the highest"
    return None if not panels else Panels(title, "nDCG@100", "bytes an item (log)", panels, ticks)

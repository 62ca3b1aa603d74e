"""`benchmark prepare`: from a raw log to histories, beside a plain scan of the same log.

In: the size of a made-up log. Out: interactions a second of `prepare` and of a pyarrow scan that only reads the three
columns, in turn; both also by core time, which other work on the machine hardly changes; and the largest peak of memory
of a task. The log is written first and does not count; nor does Ray, which is started where more than one task is to
run at a time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.cluster import connect
from hse_dist.config import ClusterSettings, Config, SyntheticSettings, parse_config
from hse_dist.data import synthetic
from hse_dist.data.prepare import prepare

LEAST_RATE = 1e6
"""Target: interactions a second on two cores."""


def benchmark_prepare(
    *,
    interactions: int = 20_000_000,
    items: int = 1_000_000,
    history: int = 20,
    tasks: int = 2,
    memory_mb: int = 1024,
    repeats: int = 3,
) -> Report:
    """Medians of `repeats` preparations.

    Args:
        interactions: of the log, about. items: distinct ones. history: mean interactions a user. tasks: at a time.
        memory_mb: of a task.

    Returns:
        figures `interactions_per_second`, `interactions_per_core_second` and `task_memory_mb` (MiB, the largest peak of
        a task; −1 where the system does not tell); a row for `prepare` and one for the scan.

    Raises:
        ResourceError: fewer cores than tasks.
    """
    shape = {"interactions": interactions, "items": items, "history": history, "tasks": tasks, "memory_mb": memory_mb}
    with tempfile.TemporaryDirectory() as folder, connect(ClusterSettings(workers=tasks if tasks > 1 else 0)):
        config = _config(shape, folder)
        made = SyntheticSettings(users=-(-interactions // history), items=items, mean_history=history)
        synthetic.write(made, config.data.columns, Path(config.data.source), tasks=tasks)
        summaries, scans = [], []
        for _ in range(repeats):
            summaries.append(prepare(config))
            scans.append(_scan(config))
    return _report(summaries, scans, {**shape, "repeats": repeats})


def _config(shape: dict[str, int], folder: str) -> Config:
    data = {
        "source": f"{folder}/log",
        "folder": f"{folder}/data",
        "columns": {"timestamp": "timestamp"},
        "tasks": shape["tasks"],
        "memory_mb": shape["memory_mb"],
    }
    return parse_config({"data": data}, "of the benchmark")


def _scan(config: Config) -> dict[str, float]:
    """Read the log and do no more, by pyarrow's own threads."""
    began, core_began, rows = time.perf_counter(), time.process_time(), 0
    for batch in ds.dataset(config.data.source).to_batches():
        rows += batch.num_rows
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - core_began
    return {"read": rows, "seconds": seconds, "core_seconds": core_seconds}


def _row(what: str, runs: list[dict[str, Any]], peak: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "interactions/s": spread([run["read"] / run["seconds"] for run in runs]),
        "interactions/core s": spread([run["read"] / run["core_seconds"] for run in runs]),
        "seconds": spread([run["seconds"] for run in runs]),
        "peak of a task, MiB": peak,
    }


def _report(summaries: list[dict[str, Any]], scans: list[dict[str, float]], shape: dict[str, int]) -> Report:
    peaks = [summary["task_memory_mb"] for summary in summaries]
    peak = max((peak for peak in peaks if peak is not None), default=-1.0)
    rows = [_row(f"prepare, {shape['tasks']} tasks", summaries, peak), _row("pyarrow scan", scans, None)]
    rate, by_core = (rows[0][name]["median"] for name in ("interactions/s", "interactions/core s"))
    notes = []
    if rate < LEAST_RATE:
        notes.append(f"{rate:,.0f} interactions a second; the target is {LEAST_RATE:,.0f} on two cores")
    if peak > shape["memory_mb"]:
        notes.append(f"a task took {peak:.0f} MiB, the setting is {shape['memory_mb']}")
    return Report(
        kind="prepare",
        figures={
            "interactions_per_second": rate,
            "interactions_per_core_second": by_core,
            "task_memory_mb": peak,
        },
        rows=rows,
        shape=dict(shape),
        notes=notes,
        chart=Chart(
            title="From a log to histories",
            y_label="interactions a second, the median (log)",
            x_label="",
            series={"interactions a second": [row["interactions/s"]["median"] for row in rows]},
            x=[row["what"] for row in rows],
            kind="bars",
            log_y=True,
            target=LEAST_RATE,
        ),
    )

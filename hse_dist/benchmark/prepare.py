"""`benchmark prepare`: from a raw log to histories, beside a plain scan of the same log.

In: the size of a made-up log. Out: interactions a second of `prepare` and of a pyarrow scan that only reads the three
columns, in turn; and the largest peak of memory of a task. The log is written first and does not count; nor does Ray,
which is started where more than one task is to run at a time.
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
        figures `interactions_per_second` and `task_memory_mb` (MiB, the largest peak of a task; −1 where the system
        does not tell); a row for `prepare` and one for the scan.

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


def _scan(config: Config) -> float:
    """Interactions a second of reading the log and no more, by pyarrow's own threads."""
    began, rows = time.perf_counter(), 0
    for batch in ds.dataset(config.data.source).to_batches():
        rows += batch.num_rows
    return rows / (time.perf_counter() - began)


def _report(summaries: list[dict[str, Any]], scans: list[float], shape: dict[str, int]) -> Report:
    rates, scanned = spread([summary["read"] / summary["seconds"] for summary in summaries]), spread(scans)
    peaks = [summary["task_memory_mb"] for summary in summaries]
    peak = max((peak for peak in peaks if peak is not None), default=-1.0)
    notes = []
    if rates["median"] < LEAST_RATE:
        notes.append(f"{rates['median']:,.0f} interactions a second; the target is {LEAST_RATE:,.0f} on two cores")
    if peak > shape["memory_mb"]:
        notes.append(f"a task took {peak:.0f} MiB, the setting is {shape['memory_mb']}")
    name, scan = f"prepare, {shape['tasks']} tasks", "pyarrow scan"
    return Report(
        kind="prepare",
        figures={"interactions_per_second": rates["median"], "task_memory_mb": peak},
        rows=[
            {
                "what": name,
                "interactions/s": rates,
                "seconds": spread([summary["seconds"] for summary in summaries]),
                "peak of a task, MiB": peak,
            },
            {
                "what": scan,
                "interactions/s": scanned,
                "seconds": spread([summaries[0]["read"] / rate for rate in scans]),
                "peak of a task, MiB": None,
            },
        ],
        shape=dict(shape),
        notes=notes,
        chart=Chart(
            title="From a log to histories",
            y_label="interactions a second, the median (log)",
            x_label="",
            series={"interactions a second": [rates["median"], scanned["median"]]},
            x=[name, scan],
            kind="bars",
            log_y=True,
            target=LEAST_RATE,
        ),
    )

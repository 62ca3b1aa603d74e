"""`benchmark prepare`: from a raw log to histories, beside a plain scan of the same log.

In: the size of a made-up log. Out: interactions a second of `prepare` and of a pyarrow scan that only reads the three
columns, in turn; both also by core time, which other work on the machine hardly changes; and the largest peaks of
memory of a task and of the driver. With a size of a sketch (`data.admission_mb`) `prepare` also runs with it. The log
is written first and does not count; nor does Ray, which is started where more than one task is to run at a time.
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
from hse_dist.data.task_memory import TaskMemory
from hse_dist.tasks import ray_is_running

LEAST_RATE = 1e6
"""Target: interactions a second on two cores."""


def benchmark_prepare(
    *,
    interactions: int = 20_000_000,
    items: int = 1_000_000,
    history: int = 20,
    tasks: int = 2,
    memory_mb: int = 1024,
    min_item_count: int = 1,
    admission_mb: int | None = None,
    repeats: int = 3,
) -> Report:
    """Medians of `repeats` preparations.

    Args:
        interactions: of the log, about. items: distinct ones. history: mean interactions a user. tasks: at a time.
        memory_mb: of a task. min_item_count: users of an item that stays. admission_mb: of a sketch; None: without.

    Returns:
        figures `interactions_per_second`, `interactions_per_core_second` and `task_memory_mb` (MiB, the largest peak of
        a task; −1 where the system does not tell), without the sketch; rows for `prepare`, the same with the sketch
        where there is one, and the scan. The driver's peak is known where tasks have processes of their own.

    Raises:
        ConfigError: the sketch has no use or no room.
        ResourceError: fewer cores than tasks.
    """
    shape = {"interactions": interactions, "items": items, "history": history, "tasks": tasks, "memory_mb": memory_mb}
    shape["min_item_count"] = min_item_count
    sketches = {"": None} if admission_mb is None else {"": None, f", sketch of {admission_mb} MiB": admission_mb}
    with tempfile.TemporaryDirectory() as folder, connect(ClusterSettings(workers=tasks if tasks > 1 else 0)):
        configs = {name: _config(shape, folder, size) for name, size in sketches.items()}
        config = configs[""]
        made = SyntheticSettings(users=-(-interactions // history), items=items, mean_history=history)
        synthetic.write(made, config.data.columns, Path(config.data.source), tasks=tasks)
        summaries: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
        scans = []
        for _ in range(repeats):
            for name, own in configs.items():
                summaries[name].append(_prepare(own))
            scans.append(_scan(config))
    return _report(summaries, scans, {**shape, "repeats": repeats})


def _config(shape: dict[str, int], folder: str, admission_mb: int | None) -> Config:
    data = {
        "source": f"{folder}/log",
        "folder": f"{folder}/data",
        "columns": {"timestamp": "timestamp"},
        "tasks": shape["tasks"],
        "memory_mb": shape["memory_mb"],
        "min_item_count": shape["min_item_count"],
        **({} if admission_mb is None else {"admission_mb": admission_mb}),
    }
    return parse_config({"data": data}, "of the benchmark")


def _prepare(config: Config) -> dict[str, Any]:
    """The summary of a preparation, with the driver's peak (MiB; None: tasks run in this process, or nobody knows)."""
    if not ray_is_running():
        return {**prepare(config), "driver_memory_mb": None}
    with TaskMemory() as memory:
        summary = prepare(config)
    return {**summary, "driver_memory_mb": None if memory.peak is None else memory.peak / 2**20}


def _scan(config: Config) -> dict[str, Any]:
    """Read the log and do no more, by pyarrow's own threads."""
    began, core_began, rows = time.perf_counter(), time.process_time(), 0
    for batch in ds.dataset(config.data.source).to_batches():
        rows += batch.num_rows
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - core_began
    return {"read": rows, "seconds": seconds, "core_seconds": core_seconds}


def _row(what: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": what,
        "interactions/s": spread([run["read"] / run["seconds"] for run in runs]),
        "interactions/core s": spread([run["read"] / run["core_seconds"] for run in runs]),
        "seconds": spread([run["seconds"] for run in runs]),
        "peak of a task, MiB": _largest(runs, "task_memory_mb"),
        "peak of the driver, MiB": _largest(runs, "driver_memory_mb"),
        "item ids counted": runs[0].get("counted_items"),
        "items": runs[0].get("items"),
    }


def _largest(runs: list[dict[str, Any]], what: str) -> float | None:
    return max((run[what] for run in runs if run.get(what) is not None), default=None)


def _report(summaries: dict[str, list[dict[str, Any]]], scans: list[dict[str, Any]], shape: dict[str, int]) -> Report:
    rows = [_row(f"prepare, {shape['tasks']} tasks{name}", runs) for name, runs in summaries.items()]
    known = [row["peak of a task, MiB"] for row in rows if row["peak of a task, MiB"] is not None]
    peak = known[0] if known else -1.0
    rows.append(_row("pyarrow scan", scans))
    rate, by_core = (rows[0][name]["median"] for name in ("interactions/s", "interactions/core s"))
    notes = []
    if rate < LEAST_RATE:
        notes.append(f"{rate:,.0f} interactions a second; the target is {LEAST_RATE:,.0f} on two cores")
    if max(known, default=peak) > shape["memory_mb"]:
        notes.append(f"a task took {max(known):.0f} MiB, the setting is {shape['memory_mb']}")
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

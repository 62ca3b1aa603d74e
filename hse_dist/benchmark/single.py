"""One history at a time: what `benchmark retrieve` says of latency.

In: a shape. Out: milliseconds of a whole `Recommender.recommend` (raw ids in, raw ids out) by each way to answer,
beside the exact product of dense rows of equal bytes (matrix × vector, `argpartition`, the best in order). All run in
one thread and take turns of a few histories each. Early answers also have their recall: the share of the exact answer's
items that they have.

Beside the time on the clock stands the core's time: on a machine that others use, the first also has what they took.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hse_dist.benchmark.made_up import MadeUp
from hse_dist.cluster import prepare_process
from hse_dist.config import ClusterSettings
from hse_dist.export.format import load_export, write_export
from hse_dist.export.recommender import Recommender

TURN = 20
"""Histories of a turn."""
EARLY = (64, 32, 128)
"""Early answers read one in so many of the table's live entries; the first is the one that figures are of."""

Ways = dict[str, Callable[[list[int]], list[int]]]
Times = dict[str, list[tuple[float, float]]]
"""Seconds on the clock, and of the core."""


def measure_single(
    *, items: int, live: int, dims: int, top: int, queries: int, history: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures for the report, and a row for each way."""
    made = MadeUp(items, live, dims)
    asked = [rows.tolist() for rows in made.histories(queries + TURN, history)]
    prepare_process(ClusterSettings(cpus_per_worker=1))
    with tempfile.TemporaryDirectory() as folder:
        ids = pa.array(np.arange(items))
        place = f"{folder}/export"
        summary = write_export(place, made.blocks(), item_ids=ids, dims=dims, row_norm="unit", form="mapped")
        figures = {"mapped_bytes": float(summary["bytes"])} | _starts(place, asked[0], top)
        ways = _ways(place, top, made)
        seconds, answers = _take_turns(ways, asked)
    exact = answers["index, exact"]
    rows = [_row(name, seconds[name], answers[name], exact) for name in ways]
    named = {row["way"]: row for row in rows}
    early = rows[1]
    figures |= {
        "p50_milliseconds": named["index, exact"]["p50, ms"],
        "p99_milliseconds": named["index, exact"]["p99, ms"],
        "p99_core_milliseconds": named["index, exact"]["p99, core ms"],
        "dense_64_p50_milliseconds": rows[-1]["p50, ms"],
        "dense_64_p99_milliseconds": rows[-1]["p99, ms"],
        "dense_64_p99_core_milliseconds": rows[-1]["p99, core ms"],
        "early_p99_milliseconds": early["p99, ms"],
        "early_recall": early["recall"],
    }
    return figures, rows


def _starts(folder: str, history: list[int], top: int) -> dict[str, float]:
    """Seconds from a folder whose pages are in memory to the first answer, with all checks and with those of bounds."""
    found = {}
    for name, verify in (("start_verified_seconds", True), ("start_seconds", False)):
        began = time.perf_counter()
        Recommender.load(folder, 1, verify=verify).recommend(history, top)
        found[name] = time.perf_counter() - began
    return found


def _ask(recommender: Recommender, top: int) -> Callable[[list[int]], list[int]]:
    return lambda history: recommender.recommend(history, top).items


def _ways(folder: str, top: int, made: MadeUp) -> Ways:
    """What is timed."""
    export = load_export(folder, verify=False)
    exact = Recommender(export, 1)
    sweep = Recommender(export, 1, index=False)
    for one in (exact, sweep):
        one.prepare()
    ways: Ways = {"index, exact": _ask(exact, top)}
    for part in EARLY:
        ways[f"index, 1/{part} of the entries"] = _ask(Recommender(export, 1, early=export.matrix.nnz // part), top)
    ways["all postings, by columns"] = _ask(sweep, top)
    narrow = 2 * made.live
    table = torch.from_numpy(np.random.default_rng(0).standard_normal((made.items, narrow), dtype=np.float32))
    ways[f"dense, D = {narrow} (same bytes)"] = lambda history: _dense(table, history, top)
    return ways


def _dense(table: torch.Tensor, history: list[int], top: int) -> list[int]:
    # torch's product keeps to its threads, NumPy's takes all cores; both wait for the memory
    scores = (table @ table[history].sum(0)).numpy()
    scores[history] = -np.inf
    best = np.argpartition(scores, -top)[-top:]
    return best[np.argsort(-scores[best])].tolist()


def _take_turns(ways: Ways, asked: list[list[int]]) -> tuple[Times, dict[str, list[list[int]]]]:
    """Seconds and answers of each; the first turn does not count."""
    seconds: Times = {name: [] for name in ways}
    answers: dict[str, list[list[int]]] = {name: [] for name in ways}
    for first in range(0, len(asked), TURN):
        for name, answer in ways.items():
            for history in asked[first : first + TURN]:
                began, core = time.perf_counter(), time.process_time()
                items = answer(history)
                if first:
                    seconds[name].append((time.perf_counter() - began, time.process_time() - core))
                    answers[name].append(items)
    return seconds, answers


def _row(
    name: str, seconds: list[tuple[float, float]], found: list[list[int]], exact: list[list[int]]
) -> dict[str, Any]:
    shares = [len(set(one) & set(other)) / max(len(other), 1) for one, other in zip(found, exact, strict=True)]
    clock, core = 1000 * np.array(seconds).T
    return {
        "way": name,
        "p50, ms": float(np.percentile(clock, 50)),
        "p99, ms": float(np.percentile(clock, 99)),
        "p50, core ms": float(np.percentile(core, 50)),
        "p99, core ms": float(np.percentile(core, 99)),
        # other rows have another answer
        "recall": "" if name.startswith("dense") else float(np.mean(shares)),
    }

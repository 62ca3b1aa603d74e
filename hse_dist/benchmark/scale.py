"""`benchmark scale`: does a step take as long on two ranks as on one, when every rank has the same work?

In: the shape of one rank's work: its batch, and its part of the table. Out: milliseconds a step on 1, 2 and 4 ranks,
each a process with one thread that is pinned to one core, over gloo on the loopback interface; the efficiency
time(1) / time(N); and the same for a dense table of equal bytes, through the same loop.

All worlds live at once and take turns, so that a machine whose speed drifts is fair to all. Two worlds of one rank that
work at the same time, and have nothing to tell each other, show what two busy cores take from one another; what two
ranks of one world take more is the exchange. More ranks than cores share a core: then 1 / (ranks a core) is the best
that there can be, and the report says so.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from typing import Any

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.benchmark.step import make_batch, packed_table
from hse_dist.benchmark.worlds import World
from hse_dist.config import ModelSettings, TrainSettings
from hse_dist.errors import ResourceError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.tables.sharded import DenseTable

TARGET = 0.80
"""Least efficiency on two ranks."""
TABLES = {"packed": "packed", "dense": "dense, same bytes"}
PHASES = ("step", "lookup", "loss", "backward")
Times = dict[str, list[float]]


class Rank:
    """One rank's tables and batch; made and called on all ranks of a world together."""

    def __init__(self, ranks: Ranks, shape: dict[str, int]) -> None:
        self.ranks, rows = ranks, shape["rows"] * ranks.size
        settings = TrainSettings(learning_rate=0.01, warm_accumulator=1.0)
        sizes = (shape["candidates"], shape["users"], shape["history"], rows)
        self.batch = make_batch(*sizes, ranks.device, seed=ranks.rank)
        dense = DenseTable(rows, 2 * shape["live"], ranks, settings, "row_wise")
        dense.local_values().normal_()
        packed = packed_table(rows, shape["dims"], shape["live"], shape["chunk_width"], ranks, settings)
        self.tables = {"packed": packed, "dense": dense}
        self.model = Autoencoder(ModelSettings(row_norm="unit"))

    def measure(self, table: str, steps: int) -> Times:
        """Milliseconds of each of some steps, and of their phases; lookup and backward exchange with other ranks.

        As in training, the ids of a step travel while the step before computes.
        """
        times: Times = {name: [] for name in PHASES}
        self.ranks.barrier()
        asked = self.tables[table].ask(self.batch.candidates)
        for _ in range(steps):
            marks = [time.perf_counter()]
            rows = self.tables[table].answer(asked)
            asked = self.tables[table].ask(self.batch.candidates)
            marks.append(time.perf_counter())
            loss, _ = self.model.loss(rows, self.batch, None)
            marks.append(time.perf_counter())
            asked.advance()
            loss.backward()
            marks.append(time.perf_counter())
            times["step"].append(1e3 * (marks[-1] - marks[0]))
            for name, began, ended in zip(PHASES[1:], marks, marks[1:], strict=False):
                times[name].append(1e3 * (ended - began))
        self.tables[table].answer(asked)  # nothing stays under way
        return times


def benchmark_scale(
    *,
    candidates: int = 8192,
    live: int = 32,
    dims: int = 4096,
    users: int = 512,
    history: int = 60,
    rows: int = 200_000,
    chunk_width: int = 32,
    rounds: int = 12,
    steps: int = 4,
) -> Report:
    """Weak scaling 1 → 2 → 4 ranks.

    Args:
        candidates, users, history, rows: of each rank; a table has rows × ranks.
        rounds: turns of every world and table. steps: of a turn, after one that is not counted.

    Returns:
        figure `efficiency_2`; a row for each table and number of ranks.

    Raises:
        ResourceError: there are fewer than two cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ResourceError("Two ranks want two cores of their own; this process may use one.")
    shape = {"candidates": candidates, "live": live, "dims": dims, "users": users, "history": history, "rows": rows}
    shape["chunk_width"] = chunk_width
    found: dict[tuple[str, str], Times] = {}
    with ExitStack() as stack:
        sizes = {"1": (1, cores), "other": (1, cores[1:]), "2": (2, cores), "4": (4, cores)}
        worlds = {
            name: stack.enter_context(World(Rank, size, shape, cores=places)) for name, (size, places) in sizes.items()
        }
        for turn in range(rounds + 1):
            for table in TABLES:
                for name, members in {"1": ("1",), "2 apart": ("1", "other"), "2": ("2",), "4": ("4",)}.items():
                    times = _turn([worlds[member] for member in members], table, steps)
                    if turn:
                        _add(found.setdefault((table, name), {phase: [] for phase in PHASES}), times)
    return _report(found, {**shape, "rounds": rounds, "steps": steps, "threads_a_rank": 1}, len(cores))


def _turn(worlds: list[World], table: str, steps: int) -> list[Times]:
    """Every rank's times when all of these worlds work at once; a first step that is not counted wakes the caches."""
    for world in worlds:
        world.begin("measure", table, steps + 1)
    answers = [answer for world in worlds for answer in world.end()]
    return [{phase: values[1:] for phase, values in answer.items()} for answer in answers]


def _add(found: Times, ranks: list[Times]) -> None:
    """Steps as long as the slowest rank took."""
    for phase, values in found.items():
        values.extend(max(times) for times in zip(*(rank[phase] for rank in ranks), strict=True))


def _report(found: dict[tuple[str, str], Times], shape: dict[str, int], cores: int) -> Report:
    median = {key: statistics.median(times["step"]) for key, times in found.items()}
    efficiency = {key: median[key[0], "1"] / value for key, value in median.items()}
    rows: list[dict[str, Any]] = []
    for (table, name), times in found.items():
        phases = {phase: statistics.median(times[phase]) for phase in PHASES[1:]}
        labels = {"table": TABLES[table], "ranks": name if name != "4" or cores >= 4 else f"4 on {cores} cores"}
        row = {**labels, "step, ms": spread(times["step"]), "efficiency": efficiency[table, name]}
        rows.append({**row, **{f"{phase}, ms": value for phase, value in phases.items()}})
    return Report(
        kind="scale",
        figures={
            "efficiency_2": efficiency["packed", "2"],
            "efficiency_2_apart": efficiency["packed", "2 apart"],
            "efficiency_2_fastest": min(found["packed", "1"]["step"]) / min(found["packed", "2"]["step"]),
            "efficiency_2_dense_equal_bytes": efficiency["dense", "2"],
            "efficiency_2_to_4": median["packed", "2"] / median["packed", "4"],
        },
        rows=rows,
        shape=dict(shape),
        notes=_notes(median, efficiency, cores),
        chart=Chart(
            title="Weak scaling: the same work on every rank",
            y_label="efficiency, time of 1 rank / time",
            x_label="ranks",
            series={
                TABLES[table]: [efficiency[table, name] for name in ("1", "2 apart", "2", "4")] for table in TABLES
            },
            x=["1", "2, nothing exchanged", "2", f"4 on {min(cores, 4)} cores"],
            kind="bars",
            target=TARGET,
        ),
    )


def _notes(median: dict[tuple[str, str], float], efficiency: dict[tuple[str, str], float], cores: int) -> list[str]:
    apart, together = median["packed", "2 apart"], median["packed", "2"]
    lost = together - median["packed", "1"]
    notes = [
        f"two ranks take {lost:.1f} ms a step more than one: {apart - median['packed', '1']:.1f} ms because two cores "
        f"are busy, {together - apart:.1f} ms because they exchange rows and gradients"
    ]
    if efficiency["packed", "2"] < TARGET:
        notes.append(f"the efficiency on two ranks is {efficiency['packed', '2']:.2f}; the target is {TARGET}")
    if cores < 4:
        notes.append(f"4 ranks on {cores} cores are oversubscribed: {cores / 4:g} of one rank's efficiency is the most")
    return notes

"""`benchmark rewire`: what rewiring costs a run, and what it costs the SparsityServer.

In: a shape. Out: two things. What an interval costs beyond its ordinary steps, in ordinary steps: collecting growth
scores, and the rewire itself, on one rank, measured over whole intervals. And the server's own time for a rewire,
against the number of rows and of ranks: the ranks are simulated, by histograms drawn from a density of scores, for the
server sees nothing else of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.benchmark.step import make_batch, packed_table
from hse_dist.cluster import prepare_process, usable_device
from hse_dist.config import ClusterSettings, Config, SparsitySettings, parse_config
from hse_dist.ranks import Ranks, free_address, process_group
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.messages import Close, Histogram, Message, Open, Purpose
from hse_dist.sparsity.selection import KEY_BITS, Query, Selection
from hse_dist.sparsity.server import SparsityServer
from hse_dist.train.step import Trainer

MOST_STEPS, MOST_SECONDS = 1.0, 2.0
"""Targets: ordinary steps an interval's step, and seconds of the server with all ranks."""
ROWS = (10**5, 10**6, 10**7, 10**8)
Pair = npt.NDArray[np.float64]
SIGN = 1 << (KEY_BITS - 1)


def benchmark_rewire(
    *,
    candidates: int = 8192,
    live: int = 32,
    dims: int = 4096,
    users: int = 512,
    history: int = 60,
    rows: int = 200_000,
    chunk_width: int = 32,
    interval: int = 10,
    window: int = 2,
    collect_users: int = 64,
    repeats: int = 7,
    threads: int | None = None,
    ranks: int = 1024,
) -> Report:
    """Whole intervals of training, then the server's side of rewires.

    Args:
        candidates: C, rows looked up a step. live: k, live entries a row. dims: D. users: B. history: mean items a
            user. rows: of the table. chunk_width: w, slots a chunk. interval: steps between rewires. window,
            collect_users: of the growth scores; the defaults of a run gather more, for its longer interval. repeats:
            intervals measured, and times that the server decides each rewire.
        ranks: most ranks of the simulated rewires, at least 2.

    Returns:
        figures `cost_in_steps`: what rewiring adds to an interval, by its ordinary steps (and by core time);
        `seconds_at_1024_ranks` (or as many as `ranks`) for the most rows, and `seconds_ratio_most_rows`, by those for
        the fewest; a row an operation.
    """
    usable_device("cpu")
    threads = threads or os.cpu_count() or 1
    prepare_process(ClusterSettings(cpus_per_worker=threads))
    shape = {"candidates": candidates, "live": live, "dims": dims, "users": users, "history": history, "rows": rows}
    shape |= {"chunk_width": chunk_width, "interval": interval, "window": window, "collect_users": collect_users}
    shape |= {"repeats": repeats, "threads": threads, "ranks": ranks}
    config = _config(shape)
    with process_group(0, 1, free_address(), usable_device("cpu"), 600.0) as group:
        times = _train(config, shape, group)
    served = {
        (count, many): _serve(config.sparsity, count, live, many, repeats)
        for many in sorted({min(step, ranks) for step in (2, 32, 1024, ranks)})
        for count in ROWS
    }
    return _report(times, served, shape)


def _config(shape: dict[str, int]) -> Config:
    """Default settings but for the shape."""
    item = {"dims": shape["dims"], "live": shape["live"], "chunk_width": shape["chunk_width"]}
    schedule = {"stop": 1.0, "interval": shape["interval"]}
    grow = {name: shape[name] for name in ("window", "collect_users")}
    sparsity = {"start": "random", "schedule": schedule, "grow": grow}
    train = {"warm_accumulator": 1.0, "batch_size": shape["users"]}
    model = {"row_norm": "unit"}
    return parse_config(
        {"tables": {"item": item}, "sparsity": sparsity, "train": train, "model": model}, "of the benchmark"
    )


def _now() -> Pair:
    """Seconds by the clock, and of all cores by this process: the first are what counts, the second hardly change with
    other work on the machine."""
    return np.array([time.perf_counter(), time.process_time()])


class _TimedTrainer(Trainer):
    """Notes what the last rewire took."""

    rewiring = np.zeros(2)

    def rewire(self, step: int) -> dict[str, Any]:
        """A trainer's rewire."""
        began = _now()
        entry = super().rewire(step)
        self.rewiring = _now() - began
        return entry


def _train(config: Config, shape: dict[str, int], ranks: Ranks) -> dict[str, list[Pair]]:
    """Milliseconds (clock, cores) of each kind of step, without its rewire, and of the rewires; `cost`, of each
    interval."""
    table = packed_table(shape["rows"], shape["dims"], shape["live"], shape["chunk_width"], ranks, config.train)
    interval, window = shape["interval"], config.sparsity.grow.window
    steps = interval * (shape["repeats"] + 2)
    transport = GroupTransport(ranks, lambda: SparsityServer(config.sparsity, steps, ranks.size))
    trainer = _TimedTrainer(config, table, transport, ranks, steps)
    batch = make_batch(shape["candidates"], shape["users"], shape["history"], shape["rows"], ranks.device)
    times: dict[str, list[Pair]] = {name: [] for name in ("ordinary", "collecting", "rewire", "cost")}
    for first in range(1, interval * (shape["repeats"] + 1), interval):
        taken = []
        for step in range(first, first + interval):
            trainer.rewiring, began = np.zeros(2), _now()
            trainer.step(batch, step)
            taken.append(1e3 * (_now() - began - trainer.rewiring))
        if first == 1:
            continue  # to warm up
        plain, collecting = taken[:-window], taken[-window:]
        times["ordinary"] += plain
        times["collecting"] += collecting
        times["rewire"].append(1e3 * trainer.rewiring)
        ordinary = np.median(plain, axis=0)
        more = np.sum(collecting, axis=0) - window * ordinary + 1e3 * trainer.rewiring
        times["cost"].append(more / (interval * ordinary))
    return times


def _serve(settings: SparsitySettings, rows: int, live: int, ranks: int, repeats: int) -> list[float]:
    """Seconds that the server takes for a rewire of so many simulated rows and ranks, `repeats` times."""
    taken = [0.0] * repeats
    servers = [SparsityServer(settings, 100, ranks) for _ in taken]
    conversation, answer = Simulated(rows, live, ranks).conversation(), None
    with suppress(StopIteration):
        while True:
            messages = conversation.send(answer)
            for index, server in enumerate(servers):
                began = time.perf_counter()
                replies = server.decide(messages)
                taken[index] += time.perf_counter() - began
            answer = replies[0]
    return taken


@dataclass
class Simulated:
    """The messages of ranks that hold equal shares of a table with half-normal drop scores, and as many positions that
    could grow as there are rows.

    No key is ever made: ranks count theirs by drawing from the density, and after each answer from the part of it that
    the answer's bin has.
    """

    rows: int
    live: int
    ranks: int

    def conversation(self) -> Generator[list[Message], Any, None]:
        """One message of every rank at a time; is sent the server's reply to one rank."""
        share = np.diff(np.linspace(0, self.rows, self.ranks + 1).astype(np.int64))
        firsts = np.cumsum(share) - share
        live = share * self.live
        told = zip(firsts.tolist(), live.tolist(), (live - share).tolist(), strict=True)
        plan = yield [Open(1, 1, first, own, droppable) for first, own, droppable in told]
        chosen: dict[Purpose, int] = {}
        for purpose in ("drop", "grow", "restore"):
            held = {"drop": live - share, "grow": share, "restore": share * plan.drop // self.rows}[purpose]
            chosen[purpose] = yield from self._selection(purpose, held)
        dropped, grown, restored = chosen["grow"] + chosen["restore"], chosen["grow"], chosen["restore"]
        first = Close(1, 1, int(live[0]), dropped, grown, restored, visits=0)
        yield [first, *(Close(1, 1, int(one), 0, 0, 0, visits=0) for one in live[1:])]

    def _selection(self, purpose: Purpose, held: npt.NDArray[np.int64]) -> Generator[list[Message], Any, int]:
        rng = np.random.default_rng([self.rows, self.ranks])
        answer: Query | Selection = Query(0, 0)
        while isinstance(answer, Query):
            counts = rng.multinomial(held, density(answer))
            query, answer = answer, (yield [Histogram(1, purpose, one) for one in counts])
            if isinstance(answer, Query):
                held = counts[:, answer.prefix - query.prefix * query.bins]
        return answer.count


def density(query: Query) -> npt.NDArray[np.float64]:
    """Shares of a query's bins among keys of half-normal scores that have its prefix, float64 [bins]."""
    from scipy.special import erf

    width = 1 << query.shift
    edges = (query.prefix * query.bins + np.arange(query.bins + 1, dtype=np.int64)) * width
    bits = np.clip(edges - SIGN, 0, 0x7F7FFFFF).astype(np.uint32)  # of floats from 0 on
    share = np.diff(erf(bits.view(np.float32).astype(np.float64) / np.sqrt(2.0)))
    total = share.sum()
    return share / total if total > 0 else np.full(query.bins, 1.0 / query.bins)


def _report(times: dict[str, list[Pair]], served: dict[tuple[int, int], list[float]], shape: dict[str, Any]) -> Report:
    most = max(many for _, many in served)
    seconds = {key: statistics.median(values) for key, values in served.items()}
    cost, core_cost = np.median(times["cost"], axis=0).tolist()
    figures: dict[str, float | int | str] = {
        "cost_in_steps": cost,
        "cost_in_steps_by_core_time": core_cost,
        f"seconds_at_{most}_ranks": seconds[ROWS[-1], most],
        "seconds_ratio_most_rows": seconds[ROWS[-1], most] / seconds[ROWS[0], most],
    }
    notes = [f"the server's {', '.join(f'{count:.0e}' for count in ROWS)} rows and their ranks are simulated"]
    if cost > MOST_STEPS:
        notes.append(
            f"rewiring costs {cost:.2f} ordinary steps, averaged over the interval; the target is {MOST_STEPS}"
        )
    if seconds[ROWS[-1], most] > MOST_SECONDS:
        notes.append(f"the server takes {seconds[ROWS[-1], most]:.2f} s; the target is {MOST_SECONDS}")
    names = {"ordinary": "ordinary step", "collecting": "collecting step", "rewire": "rewire"}
    table: list[dict[str, Any]] = [
        {
            "operation": text,
            "milliseconds": spread([float(clock) for clock, _ in times[name]]),
            "core milliseconds": float(np.median(times[name], axis=0)[1]),
        }
        for name, text in names.items()
    ]
    table += [
        {
            "operation": f"server, {many} ranks, {count:.0e} rows",
            "milliseconds": spread([1e3 * value for value in values]),
            "core milliseconds": None,
        }
        for (count, many), values in served.items()
    ]
    many = sorted({many for _, many in served})
    chart = Chart(
        title="The SparsityServer's time for one rewire",
        y_label="seconds, the median (log)",
        x_label="rows of the table (log)",
        series={f"{one} ranks": [seconds[count, one] for count in ROWS] for one in many},
        x=[float(count) for count in ROWS],
        kind="lines",
        log_x=True,
        log_y=True,
        target=MOST_SECONDS,
    )
    return Report("rewire", figures, table, shape, notes, chart)

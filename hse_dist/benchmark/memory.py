"""`benchmark memory`: a table that is far too large as dense values, trained and rewired on this machine.

In: a shape. Out: the resident memory of all ranks together at its highest, stage by stage: the table is made on `meta`
and filled shard by shard, trained, growth scores are gathered, it is rewired, and trained on; and seconds.

Resident memory is the sum over the ranks of what the system says of each, 50 times a second; pages of libraries that
ranks share count for each of them. Whoever watches also ends the ranks at a limit: the machine may be shared.

The start is made as it is read: a folder of it would be 8 GB of Parquet. Columns are one in each of k strips.
Histories are synthetic, of geometric length; popular items are more likely.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Self

import numpy as np

from hse_dist.benchmark.report import Chart, Report
from hse_dist.benchmark.worlds import World
from hse_dist.config import Config, parse_config
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import ResourceError, TrainingError
from hse_dist.memory import available_memory, resident_bytes
from hse_dist.ranks import Ranks
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start.folder import StartFolder
from hse_dist.sparsity.tables import make_table
from hse_dist.tables.sharded import PackedTable
from hse_dist.train.step import Trainer

TARGET_BYTES = 10 * 10**9
SECONDS_BETWEEN_LOOKS = 0.02
WARMING, WINDOW, AFTER = 3, 2, 2
"""Steps before growth scores are gathered, steps that gather them, and steps after the rewire."""
SEED = 1
STAGE_SECONDS = 3600.0
"""Most of a stage; on a machine that is busy otherwise."""


class RandomStart(StartFolder):
    """Rows of `live` random entries and length 1, made when they are asked for; other ranges, other rows."""

    def __init__(self, rows: int, dims: int, live: int) -> None:
        self.rows, self.dims, self.each, self.live_entries = rows, dims, live, rows * live

    def live(self, first: int = 0, last: int | None = None) -> np.ndarray:
        return np.full((self.rows if last is None else last) - first, self.each)

    def gains(self, first: int = 0, last: int | None = None) -> np.ndarray:
        return np.ones(len(self.live(first, last)), np.float32)

    def entries(self, first: int = 0, last: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, rng = len(self.live(first, last)), np.random.default_rng([SEED, first])
        strip = self.dims // self.each
        columns = rng.integers(0, strip, (rows, self.each)) + np.arange(self.each) * strip
        values = rng.standard_normal((rows, self.each), dtype=np.float32)
        values /= np.sqrt((values**2).sum(axis=1, keepdims=True))
        return np.arange(0, rows * self.each + 1, self.each), columns.ravel(), values.ravel()


class PausedTrainer(Trainer):
    """A trainer that leaves its rewires to be asked for, so that they are a stage of their own."""

    def rewire(self, step: int) -> dict[str, Any]:
        return {"live": self.live}

    def rewire_now(self, step: int) -> dict[str, Any]:
        """What the step would have done."""
        return super().rewire(step)


class Rank:
    """One rank; its methods are the stages, called on all ranks together."""

    def __init__(self, ranks: Ranks, shape: dict[str, int]) -> None:
        self.ranks, self.shape, self.config = ranks, shape, config_of(shape)
        self.step = 0

    def fill(self) -> None:
        """Make the table, holding its start."""
        shape = self.shape
        start = RandomStart(shape["rows"], shape["dims"], shape["live"])
        table = make_table(self.config, shape["rows"], start, self.ranks)
        assert isinstance(table, PackedTable)
        steps = WARMING + WINDOW + AFTER
        transport = GroupTransport(self.ranks, lambda: SparsityServer(self.config.sparsity, steps, self.ranks.size))
        self.table, self.trainer = table, PausedTrainer(self.config, table, transport, self.ranks, steps)

    def train(self, steps: int) -> float:
        """Some steps; seconds of one."""
        began = time.perf_counter()
        for _ in range(steps):
            self.step += 1
            seed = self.step * self.ranks.size + self.ranks.rank
            self.trainer.step(self.trainer.batch(histories(self.shape, seed), self.step), self.step)
        return (time.perf_counter() - began) / steps

    def rewire(self) -> dict[str, Any]:
        """The journal's entry."""
        return self.trainer.rewire_now(self.step)

    def live(self) -> int:
        """Live entries of the whole table."""
        return self.table.live_entries()


def config_of(shape: dict[str, int]) -> Config:
    """The settings of a shape."""
    item = {name: shape[name] for name in ("dims", "live", "chunk_width")}
    schedule = {"interval": WARMING + WINDOW, "stop": 1.0}
    return parse_config(
        {
            "tables": {"item": item},
            "model": {"row_norm": "unit", "compact_above": 50_000},
            "sparsity": {"start": "random", "schedule": schedule, "grow": {"window": WINDOW}},
            "train": {"negatives": shape["candidates"]},
        },
        "of the measurement",
    )


def histories(shape: dict[str, int], seed: int) -> HistoryBlock:
    """Users of geometric length; popular items are more likely."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1.0 / shape["history"], shape["users"]), shape["rows"])
    rows = [np.unique((shape["rows"] * rng.random(n) ** 3).astype(np.int64)) for n in lengths]
    return HistoryBlock(np.cumsum([0, *map(len, rows)]), np.concatenate(rows))


class Watcher:
    """Resident memory of processes, all together, at its highest in each stage.

    Args:
        limit: bytes at which they are killed.
    """

    def __init__(self, pids: list[int], limit: int) -> None:
        self.pids, self.limit, self.stage = pids, limit, ""
        self.highest: dict[str, int] = {}
        self.killed = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            found = sum(map(resident_bytes, self.pids))
            self.highest[self.stage] = max(self.highest.get(self.stage, 0), found)
            if found > self.limit and not self.killed:
                self.killed = True
                for pid in self.pids:
                    os.kill(pid, 9)


def benchmark_memory(
    *,
    rows: int = 20_000_000,
    dims: int = 4096,
    live: int = 32,
    chunk_width: int = 32,
    ranks: int = 2,
    users: int = 128,
    history: int = 60,
    candidates: int = 8192,
    limit_gb: int = 12,
) -> Report:
    """Fill, train, gather growth scores, rewire, train.

    Args:
        live: k, live entries a row. chunk_width: w, slots a chunk. users, candidates: of each rank's batch; the
            latter are its negatives. limit_gb: GB of all ranks at which they are ended.

    Returns:
        figures `resident_bytes` (the highest of all ranks together) and `rows`; a row a stage.

    Raises:
        ResourceError: the ranks came to the limit, or the machine has less than the table alone takes.
    """
    shape = {"rows": rows, "dims": dims, "live": live, "chunk_width": chunk_width, "ranks": ranks, "users": users}
    shape |= {"history": history, "candidates": candidates, "limit_gb": limit_gb}
    # values and columns as float32, and every rank's offsets
    table = 8 * rows * -(-live // chunk_width) * chunk_width + 8 * rows * ranks
    if table > min(limit_gb * 10**9, available_memory()):
        raise ResourceError(
            f"The table alone takes {1e-9 * table:.1f} GB; {1e-9 * available_memory():.1f} GB are free here.",
            cause="Ask for fewer rows, or raise --limit-gb where there is memory.",
            setting="--rows",
            value=rows,
        )
    with World(Rank, ranks, shape, limit=STAGE_SECONDS) as world, Watcher(world.pids, limit_gb * 10**9) as watcher:
        try:
            return _report(*_stages(world, watcher, rows * live), watcher, shape, table)
        except TrainingError as error:
            if not watcher.killed:
                raise
            raise ResourceError(
                f"The ranks took more than {limit_gb} GB in the stage '{watcher.stage}'.",
                cause="GB at most in each stage: "
                + ", ".join(f"{stage} {1e-9 * most:.2f}" for stage, most in watcher.highest.items())
                + ". Ask for fewer rows, or raise --limit-gb where there is memory.",
                setting="--limit-gb",
                value=limit_gb,
            ) from error


def _stages(world: World, watcher: Watcher, live: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each stage, and what the rewire says of itself."""
    seconds: dict[str, float] = {}
    answers: dict[str, list[Any]] = {}
    for stage, method, *arguments in (
        ("import", "__repr__"),
        ("fill", "fill"),
        ("step", "train", WARMING),
        ("step that gathers growth scores", "train", WINDOW),
        ("rewire", "rewire"),
        ("step after it", "train", AFTER),
        ("count of live entries", "live"),
    ):
        watcher.stage, began = str(stage), time.perf_counter()
        answers[stage] = world.call(method, *arguments)
        seconds[stage] = max(answers[stage]) if method == "train" else time.perf_counter() - began
        time.sleep(2 * SECONDS_BETWEEN_LOOKS)
    if (found := answers["count of live entries"][0]) != live:
        raise TrainingError(f"The table had {live} live entries and has {found} after the rewire.")
    return seconds, answers["rewire"][0]


def _report(
    seconds: dict[str, float], journal: dict[str, Any], watcher: Watcher, shape: dict[str, int], table: int
) -> Report:
    highest = {stage: watcher.highest[stage] for stage in seconds}
    most, dense = max(highest.values()), 4 * shape["rows"] * shape["dims"]
    notes = [
        f"as dense values {1e-9 * dense:.0f} GB, {dense / most:.0f} times as much",
        f"values, columns and offsets alone are {1e-9 * table:.2f} GB",
        f"the rewire dropped {journal['dropped']}, grew {journal['grown']} and restored {journal['restored']} entries",
    ]
    if most > TARGET_BYTES:
        stage = max(highest, key=lambda name: highest[name])
        notes.append(f"{1e-9 * most:.2f} GB in the stage '{stage}' are over the target of {1e-9 * TARGET_BYTES:.0f} GB")
    return Report(
        kind="memory",
        figures={
            "resident_bytes": most,
            "rows": shape["rows"],
            "table_bytes": table,
            "dense_bytes": dense,
            "grown": journal["grown"],
        },
        rows=[{"stage": stage, "resident, GB": 1e-9 * highest[stage], "seconds": seconds[stage]} for stage in highest],
        shape=dict(shape),
        notes=notes,
        chart=Chart(
            title=f"{shape['rows']:,} rows of {shape['live']} of {shape['dims']} on {shape['ranks']} ranks".replace(
                ",", " "
            ),
            y_label="resident memory of all ranks, GB",
            x_label="",
            series={"GB": [1e-9 * value for value in highest.values()]},
            x=list(highest),
            kind="bars",
            target=1e-9 * TARGET_BYTES,
        ),
    )

"""`benchmark checkpoint`: what a checkpoint costs training, written at once and by a thread; and what checking costs.

In: a table's shape. Out: on 1 and 2 ranks, turn by turn in one run: the seconds for which `save` holds training up,
the seconds until the checkpoint is committed, how much longer steps take while a thread writes, and the seconds of
reading and checking every file. Files are made durable (fsync) as in a run; `--where` is the folder in which they are.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.benchmark.step import make_batch, packed_table, step_of
from hse_dist.benchmark.worlds import World
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import TrainSettings
from hse_dist.ranks import Ranks

SIZES = (1, 2)
MOST_SHARE = 0.1
"""Of a synchronous save, for which an asynchronous one may hold training up."""
USERS, HISTORY, CANDIDATES = 128, 60, 4096
HASHED = 2**28


class Rank:
    """One rank; made and called on all ranks of a world together."""

    def __init__(self, ranks: Ranks, shape: dict[str, int], folder: str) -> None:
        self.ranks, self.folder = ranks, folder
        logging.getLogger("hse_dist").setLevel(logging.ERROR)
        self.table = packed_table(
            shape["rows"], shape["dims"], shape["live"], shape["chunk_width"], ranks, TrainSettings()
        )
        batch = make_batch(min(CANDIDATES, shape["rows"]), USERS, HISTORY, shape["rows"], ranks.device, seed=ranks.rank)
        self.step, self.number = step_of(self.table, batch), 0
        self.stores = {mode: CheckpointStore(folder, 1, asynchronous=mode) for mode in (False, True)}

    def save(self, asynchronous: bool) -> dict[str, float]:
        """One checkpoint between steps; seconds of its parts, and of the steps that were made until it was there."""
        for _ in range(3):
            self.step()
        plain = self._timed_step()
        self.ranks.barrier()
        store, began = self.stores[asynchronous], time.perf_counter()
        self.number += 1
        facts: dict[str, Any] = {"step": self.number, "metric": None}
        store.save(self.table.state_dict(), {"own": np.zeros(1)}, facts, self.ranks)
        held, steps = time.perf_counter() - began, []
        while asynchronous and self.ranks.largest(store.under_way):
            steps.append(self._timed_step())
        store.wait()
        done = time.perf_counter() - began
        return {"held": held, "done": done, "plain": plain, "during": statistics.median(steps or [plain])}

    def _timed_step(self) -> float:
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began

    def load(self) -> dict[str, float]:
        """Check every file of the newest checkpoint, and load it; seconds."""
        self.ranks.barrier()
        store, began = self.stores[False], time.perf_counter()
        found = store.open_latest(self.ranks)
        assert found is not None
        checked = time.perf_counter()
        store.load(found, self.table.state_dict())
        size = sum(content.size for content in found.manifest.files.values())
        return {"check": checked - began, "load": time.perf_counter() - checked, "bytes": float(size)}


def benchmark_checkpoint(
    *,
    rows: int = 1_000_000,
    live: int = 32,
    dims: int = 4096,
    chunk_width: int = 32,
    repeats: int = 5,
    where: str | None = None,
) -> Report:
    """Synchronous and asynchronous saves of one table, in turns.

    Args:
        rows, live, dims, chunk_width: of the table. repeats: of each kind; the median counts.
        where: folder on the disk to be measured; None: the system's for temporary files.

    Returns:
        figures `held_share` (the largest of all numbers of ranks), `checksum_gb_per_second` (one thread) and more.
    """
    shape = {"rows": rows, "live": live, "dims": dims, "chunk_width": chunk_width, "repeats": repeats}
    saves: dict[tuple[int, bool], list[dict[str, float]]] = {}
    loads: dict[int, list[dict[str, float]]] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=where) as folder, World(Rank, size, shape, folder) as world:
            modes = (False, True)
            for mode in modes:
                world.call("save", mode)  # to warm up
            for _ in range(repeats):
                for mode in modes:
                    saves.setdefault((size, mode), []).append(_slowest(world.call("save", mode)))
                loads.setdefault(size, []).append(_slowest(world.call("load")))
            left = [path.name for path in Path(folder).iterdir()]
            assert len(left) == 1, left
    return _report(saves, loads, checksum_speed(), shape)


def _slowest(answers: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(answer[name] for answer in answers) for name in answers[0]}


def checksum_speed() -> float:
    """GB of SHA-256 a second and thread, of bytes in memory."""
    data, seconds = bytes(HASHED), []
    for _ in range(3):
        began = time.perf_counter()
        hashlib.sha256(data).digest()
        seconds.append(time.perf_counter() - began)
    return HASHED / 1e9 / statistics.median(seconds)


def _report(
    saves: dict[tuple[int, bool], list[dict[str, float]]],
    loads: dict[int, list[dict[str, float]]],
    checksum: float,
    shape: dict[str, Any],
) -> Report:
    def middle(size: int, mode: bool, name: str) -> float:
        return statistics.median(one[name] for one in saves[size, mode])

    shares = {size: middle(size, True, "held") / middle(size, False, "held") for size in SIZES}
    figures: dict[str, float | int | str] = {
        "held_share": max(shares.values()),
        "checksum_gb_per_second": checksum,
        "megabytes": loads[1][0]["bytes"] / 1e6,
    }
    table: list[dict[str, Any]] = []
    for size in SIZES:
        names = [
            (False, "held", "save, synchronous"),
            (True, "held", "save, asynchronous: held up"),
            (True, "done", "asynchronous: until committed"),
            (True, "plain", "a step"),
            (True, "during", "a step while a thread writes"),
        ]
        parts = [(text, [one[name] for one in saves[size, mode]]) for mode, name, text in names]
        parts += [(text, [one[name] for one in loads[size]]) for name, text in (("check", "check"), ("load", "load"))]
        table += [
            {"operation": f"{size} rank(s), {text}", "milliseconds": spread([1e3 * s for s in seconds])}
            for text, seconds in parts
        ]
        figures |= {
            f"held_share_{size}": shares[size],
            f"slower_steps_{size}": middle(size, True, "during") / middle(size, True, "plain"),
        }
    notes = []
    if max(shares.values()) > MOST_SHARE:
        notes.append(
            f"training is held up for {max(shares.values()):.2f} of a synchronous save; the target is {MOST_SHARE}"
        )
    chart = Chart(
        title="How long a checkpoint holds training up",
        y_label="seconds, the median",
        x_label="ranks",
        series={
            "synchronous": [middle(size, False, "held") for size in SIZES],
            "asynchronous": [middle(size, True, "held") for size in SIZES],
        },
        x=[str(size) for size in SIZES],
        kind="bars",
    )
    return Report("checkpoint", figures, table, shape, notes, chart)

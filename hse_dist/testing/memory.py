"""How much memory training takes where a dense table would not fit: `python -m hse_dist.testing.memory '{"rows": …}'`.

In: a shape as JSON, over that of `SHAPE`. Out: one JSON line with the peak of resident memory (MB, of this rank, beyond
what the imports take), the size that the dense table would have, and the times of steps and rewires. Random start, unit
rows, made-up histories with a long tail; table, trainer and server are those of a run.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from hse_dist.cluster import prepare_process
from hse_dist.config import Config, parse_config
from hse_dist.data.prepared import HistoryBlock
from hse_dist.ranks import Ranks, free_address, process_group
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import make_start
from hse_dist.sparsity.tables import make_table
from hse_dist.tables.sharded import PackedTable
from hse_dist.train.step import Trainer

SHAPE: dict[str, int] = {
    "rows": 1_000_000,
    "dims": 262_144,
    "live": 32,
    "users": 128,
    "history": 60,
    "candidates": 8192,
    "steps": 8,
    "interval": 4,
    "window": 2,
}


class Catalogue:
    """As much of prepared histories as a random start asks for."""

    def __init__(self, items: int) -> None:
        self.items, self.manifest = items, {"items": items}

    def counts(self) -> np.ndarray:
        """A long tail, int64 [items]."""
        return 1 + 1_000_000 // (1 + np.arange(self.items))

    def matrix(self, split: str) -> sp.csr_matrix:
        """No histories: a random start does without."""
        return sp.csr_matrix((0, self.items), dtype=np.float32)


def config_of(shape: dict[str, int], folder: str) -> Config:
    """The settings of a shape."""
    rewire = {"interval": shape["interval"], "window": shape["window"], "stop": 1.0}
    return parse_config(
        {
            "run": {"folder": folder},
            "tables": {"item": {"dims": shape["dims"], "live": shape["live"]}},
            "model": {"row_norm": "unit", "compact_above": 50_000},
            "sparsity": {"start": "random", "rewire": rewire},
            "train": {"negatives": shape["candidates"]},
        },
        "of the measurement",
    )


def histories(shape: dict[str, int], step: int) -> HistoryBlock:
    """Users of geometric length; popular items are more likely."""
    rng = np.random.default_rng(step)
    lengths = np.minimum(rng.geometric(1.0 / shape["history"], shape["users"]), shape["rows"])
    rows = [np.unique((shape["rows"] * rng.random(n) ** 3).astype(np.int64)) for n in lengths]
    return HistoryBlock(np.cumsum([0, *map(len, rows)]), np.concatenate(rows))


def peak_mb() -> float:
    """The largest resident size so far; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(ranks: Ranks, shape: dict[str, int], folder: str) -> dict[str, Any]:
    """Train and rewire; peaks after each stage, and seconds."""
    config, base = config_of(shape, folder), peak_mb()
    start = make_start(config, Catalogue(shape["rows"]), f"{folder}/start")
    peaks = {"start": peak_mb() - base}
    table = make_table(config, shape["rows"], start, ranks)
    assert isinstance(table, PackedTable)
    peaks["table"] = peak_mb() - base
    transport = GroupTransport(ranks, lambda: SparsityServer(config.sparsity, 2 * shape["steps"], ranks.size))
    trainer = Trainer(config, table, transport, ranks, 2 * shape["steps"])
    seconds: dict[str, list[float]] = {"step": [], "collecting step": [], "rewire": []}
    for step in range(1, shape["steps"] + 1):
        block, began = histories(shape, step), time.perf_counter()
        collects = -step % shape["interval"] < shape["window"]
        inside = len(seconds["rewire"])
        with _timed(trainer, seconds["rewire"]):
            trainer.step(trainer.batch(block, step), step)
        taken = time.perf_counter() - began - sum(seconds["rewire"][inside:])
        seconds["collecting step" if collects else "step"].append(taken)
        peaks["rewire" if len(seconds["rewire"]) else "collect" if collects else "steps"] = peak_mb() - base
    (journal, live) = transport.state_dict()["journal"], table.live_entries()
    return {
        "peak_mb": peaks,
        "dense_mb": 4e-6 * shape["rows"] * shape["dims"],
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "live": live,
        "grown": [entry["grown"] for entry in journal],
        "shape": shape,
    }


class _timed:
    """Takes the time of the trainer's rewires."""

    def __init__(self, trainer: Trainer, seconds: list[float]) -> None:
        self.trainer, self.seconds, self.rewire = trainer, seconds, trainer.rewire

    def __enter__(self) -> None:
        self.trainer.rewire = self._rewire  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self.trainer.rewire = self.rewire  # type: ignore[method-assign]

    def _rewire(self, step: int) -> dict[str, Any]:
        began = time.perf_counter()
        answer = self.rewire(step)
        self.seconds.append(time.perf_counter() - began)
        return answer


def main() -> None:
    """Measure in this process, on one rank."""
    shape = {**SHAPE, **json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")}
    with tempfile.TemporaryDirectory() as folder:
        prepare_process(config_of(shape, folder).cluster)
        with process_group(0, 1, free_address(), torch.device("cpu"), 600.0) as ranks:
            print(json.dumps(measure(ranks, shape, folder)))


if __name__ == "__main__":
    main()

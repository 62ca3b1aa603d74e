"""A rank of a real run that the plan's models are held to: its memory beyond its imports, and what its meter counted.

In: a shape. Out: bytes. The start is made as it is read, and histories are drawn evenly, so that it is known what a
batch has.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hse_dist.benchmark.memory import PausedTrainer, RandomStart
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.cluster import release_memory
from hse_dist.config import Config, parse_config
from hse_dist.data.prepared import HistoryBlock
from hse_dist.plan.shape import Shape
from hse_dist.ranks import Ranks
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.tables import layout_state, make_table
from hse_dist.train.step import Trainer


def config_of(shape: Shape) -> Config:
    """The settings of a shape."""
    item = {"dims": shape.dims, "live": shape.live, "chunk_width": shape.chunk_width}
    return parse_config(
        {
            "tables": {"item": item | {"wire": shape.wire.model_dump()}},
            "model": {"row_norm": "free" if shape.gains else "unit"},
            "sparsity": {
                "start": "random",
                "schedule": {"interval": shape.interval, "stop": 1.0},
                "grow": {
                    "window": shape.window,
                    "explore": shape.explore,
                    "collect_users": shape.collect_users,
                },
            },
            "train": {"negatives": shape.negatives, "optimizer": shape.optimizer},
        },
        "of the measurement",
    )


class Rank:
    """One rank; made and called on all ranks of a world together."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        gc.freeze()  # what was imported is not searched again and again

    def measure(self, shape: Shape, folder: str) -> dict[str, Any]:
        """An interval of training and its rewire: bytes of a table, at most, sent in a step, and of a checkpoint."""
        config, meter = config_of(shape), self.ranks.meter
        self._settle()
        before, sent = resident(), dict(meter.sent)
        table = make_table(config, shape.items, RandomStart(shape.items, shape.dims, shape.live), self.ranks)
        self._settle()
        found: dict[str, Any] = {"table": resident() - before}
        forget_highest()
        steps = 2 * shape.interval
        transport = GroupTransport(self.ranks, lambda: SparsityServer(config.sparsity, steps, self.ranks.size))
        trainer = PausedTrainer(config, table, transport, self.ranks, steps)
        candidates = [self._step(trainer, shape, step) for step in range(1, shape.interval + 1)]
        trainer.rewire_now(shape.interval)
        found["highest"] = highest() - before
        wire = meter.since(sent)
        store = CheckpointStore(Path(folder), 1)
        path = store.save(table.state_dict(), {}, {"step": 1}, self.ranks, layout_state(table))
        found["checkpoint"] = sum(file.stat().st_size for file in Path(path).iterdir())
        del trainer, table, transport
        self._settle()
        found["distinct"] = float(np.mean(candidates))
        found["wire"] = {kind: count / shape.interval for kind, count in wire.items()}
        return found

    def _step(self, trainer: Trainer, shape: Shape, step: int) -> int:
        rng = np.random.default_rng([step, self.ranks.rank])
        rows = [rng.choice(shape.items, shape.history, replace=False) for _ in range(shape.users)]
        ends = np.arange(0, (shape.users + 1) * shape.history, shape.history)
        batch = trainer.batch(HistoryBlock(ends, np.concatenate(rows)), step)
        trainer.step(batch, step)
        return len(batch.candidates)

    def _settle(self) -> None:
        gc.collect()
        release_memory()
        self.ranks.barrier()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def highest() -> int:
    """The most of it since `forget_highest`."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == "VmHWM:")


def forget_highest() -> None:
    """Begin to look for the most anew."""
    Path("/proc/self/clear_refs").write_text("5")


def known(shape: Shape, distinct: float) -> Shape:
    """The shape with the candidates that its batches had."""
    return replace(shape, distinct=distinct)

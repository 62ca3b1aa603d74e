"""The run that is planned: its table, its batches, its machines.

In: numbers. Out: `Shape`, and what follows from it: chunks, candidates of a batch, and how unevenly owners are asked.

Popularity is taken as rank^−z. Rows are ordered by it, so under row-wise sharding the first worker owns the rows that
all others ask for: its answers are what a step waits for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from hse_dist.config import WireSettings

BINS = 4096
"""Ranges of ranks, evenly spaced by logarithm, over which expectations are summed."""


@dataclass(frozen=True)
class Shape:
    """A run.

    Attributes:
        items: rows. dims: D. live: k, mean live entries a row. chunk_width: w. slack: further slots, as a share.
        kernel, cache_load_factor: where a GPU's shards lie, as in tables.item. host_memory: of its machine, a worker.
        even: whether all rows have the same number of entries; else a row's last chunk is half full on average.
        gains: whether rows have a gain. optimizer: of the values.
        users, history, negatives: of a worker's batch. zipf: z of the items' popularity.
        interval, window, explore, collect_users: of rewires, as in sparsity.schedule and sparsity.grow.
        threads: of a worker. memory: bytes a worker may use. network, disk: bytes a second of a worker.
        distinct: candidates of a batch where they are known; None: as expected.
    """

    items: int
    dims: int
    live: int
    workers: int
    memory: int
    network: float
    device: str = "cpu"
    chunk_width: int = 16
    slack: float = 0.0
    kernel: str = "fused"
    cache_load_factor: float = 0.2
    host_memory: int = 2**40
    even: bool = False
    gains: bool = True
    optimizer: str = "rowwise_adagrad"
    wire: WireSettings = field(default_factory=WireSettings)
    users: int = 256
    history: int = 60
    negatives: int = 2048
    zipf: float = 1.0
    interval: int = 50
    window: int = 4
    explore: int = 16
    collect_users: int = 128
    compact_above: int = 100_000
    threads: int = 1
    disk: float = 0.5e9
    distinct: float | None = None

    def on(self, workers: int) -> Shape:
        """The same on so many workers."""
        return replace(self, workers=workers)

    @property
    def chunks_a_row(self) -> float:
        """Chunks of w slots that a row takes on average, at least 1."""
        slots = math.ceil(self.live * (1 + self.slack))
        return float(max(1, -(-slots // self.chunk_width))) if self.even else max(1.0, slots / self.chunk_width + 0.5)

    @property
    def chunks(self) -> int:
        """Of the whole table."""
        return math.ceil(self.items * self.chunks_a_row)

    @property
    def chunks_a_worker(self) -> int:
        """Row-wise shards are of equal size."""
        return -(-self.chunks // self.workers)

    @property
    def rows_a_worker(self) -> int:
        return -(-self.items // self.workers)

    @property
    def candidates(self) -> float:
        """C, distinct rows of a worker's batch."""
        return self.distinct or expected_candidates(self)[0]

    @property
    def remote(self) -> float:
        """Share of what is looked up that other workers own."""
        return (self.workers - 1) / self.workers

    @property
    def busiest(self) -> float:
        """Share of what is looked up that the first worker owns."""
        return expected_candidates(self)[1]


def expected_candidates(shape: Shape) -> tuple[float, float]:
    """Distinct rows of a batch, and the share of them in the first worker's rows.

    Σ over items of 1 − exp(−B · h · p_i − n / N), p_i ∝ i^−z: the expected number of those drawn at least once.
    """
    items = shape.items
    bounds = np.unique(np.floor(np.geomspace(1, items + 1, BINS))).astype(np.float64)
    bounds[-1] = items + 1
    first = items / shape.workers + 1
    bounds = np.unique(np.append(bounds, first))
    widths, middles = np.diff(bounds), (bounds[:-1] + bounds[1:] - 1) / 2
    weights = middles**-shape.zipf
    drawn = shape.users * shape.history * weights / (weights * widths).sum() + shape.negatives / items
    found = -np.expm1(-drawn) * widths
    return float(found.sum()), float(found[bounds[:-1] < first].sum() / found.sum())

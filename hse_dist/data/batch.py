"""From a block of histories to what a step looks up.

In: a `HistoryBlock` and the number of uniform negatives. Out: the distinct candidates, and the histories as positions
among them. Each candidate is looked up once, however often it occurs (design: one all-to-all of distinct rows a step).

Negatives follow from (seed, step, rank) alone, so that a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hse_dist.data.prepared import HistoryBlock

MARKED_ROWS = 4_000_000
"""Up to so many rows a table of marks is faster than sorting; measured with 30 720 positions."""


@dataclass(frozen=True)
class Batch:
    """One rank's input of one step."""

    candidates: Tensor
    """int64 [C], distinct rows, rising: the histories' items and the negatives."""
    offsets: Tensor
    """int64 [B + 1]: history of user b is positions[offsets[b]:offsets[b + 1]]."""
    positions: Tensor
    """int64 [L], indices into `candidates`."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`: on CUDA copied from pinned memory, so that nobody waits for the copy.

        The CUDA branch has not been run: no machine with a GPU was at hand.
        """
        if device.type == "cpu":
            return self
        parts = (self.candidates, self.offsets, self.positions)
        return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in parts))


def make_batch(block: HistoryBlock, *, rows: int, negatives: int, seed: int, step: int, rank: int) -> Batch:
    """The batch of a block.

    Args:
        block: histories; an empty one gives negatives only.
        rows: of the item table.
        negatives: uniform draws from all rows, with replacement, so that fewer may be new; from `rows` on, all rows are
            candidates.
        seed, step, rank: key of the draws.
    """
    items = block.rows
    if negatives >= rows:
        candidates, positions = np.arange(rows), items.copy()
    else:
        drawn = np.random.default_rng([seed, step, rank]).integers(0, rows, negatives)
        candidates, positions = _marked(items, drawn, rows) if rows <= MARKED_ROWS else _sorted(items, drawn)
    # copies, as the block may be a view; NumPy's, as torch would start a team of threads for the thread that calls this
    return Batch(torch.from_numpy(candidates), torch.from_numpy(block.offsets.copy()), torch.from_numpy(positions))


def _marked(items: np.ndarray, drawn: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    marks = np.zeros(rows, bool)
    marks[items] = True
    marks[drawn] = True
    candidates = np.flatnonzero(marks)
    place = np.empty(rows, np.int64)
    place[candidates] = np.arange(len(candidates))
    return candidates, place[items]


def _sorted(items: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    candidates, inverse = np.unique(np.concatenate([items, drawn]), return_inverse=True)
    return candidates, inverse[: len(items)]

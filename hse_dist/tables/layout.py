"""Where a row's chunks lie.

In: the capacity of every row, in slots. Out: `RowLayout`, which turns rows into chunk ids.

A TorchRec table has one width, rows have different lengths; so a row is a run of consecutive chunks of w slots, found
by an offsets array of 8 bytes a row that every rank holds. Capacity is given at the start, and anew by a repack; a
rewire moves live entries within it.

Shapes: C candidates, N chunks of them, w slots a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hse_dist.errors import ConfigError


@dataclass(frozen=True)
class RowLayout:
    """`offsets` int64 [rows + 1]: row r has the chunks offsets[r] … offsets[r + 1] − 1, at least one."""

    offsets: Tensor
    width: int

    @classmethod
    def from_lengths(cls, lengths: np.ndarray, width: int) -> RowLayout:
        """The layout in which row r can hold at least `lengths[r]` live entries.

        Args:
            lengths: int64 [rows], live entries at the start.
            width: slots a chunk.
        """
        if not len(lengths):
            raise ConfigError("A table needs at least one row.")
        chunks = np.maximum(1, -(-lengths.astype(np.int64) // width))
        return cls(torch.from_numpy(np.concatenate([[0], np.cumsum(chunks)])), width)

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def chunks(self) -> int:
        return int(self.offsets[-1])

    @property
    def slots(self) -> int:
        return self.chunks * self.width

    def capacities(self, first: int, last: int) -> np.ndarray:
        """Slots of the rows first … last − 1, int64."""
        return np.diff(self.offsets[first : last + 1].cpu().numpy()) * self.width

    def chunks_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk ids of `rows` [C], one row after the other, int64 [N]; and row offsets into them, int64 [C + 1]."""
        first = self.offsets[rows]
        counts = self.offsets[rows + 1] - first
        ends = counts.cumsum(0)
        bounds = torch.cat([ends.new_zeros(1), ends])
        # a range a row without a loop: a running count, minus what came before the row, plus the row's first chunk
        ids = torch.arange(int(bounds[-1]), device=rows.device) + torch.repeat_interleave(first - bounds[:-1], counts)
        return ids, bounds

    def rows_starting_in(self, first_chunk: int, last_chunk: int) -> tuple[int, int]:
        """The rows whose first chunk is in [first_chunk, last_chunk), as a half-open range."""
        bounds = torch.tensor([first_chunk, last_chunk], device=self.offsets.device)
        first, last = torch.searchsorted(self.offsets[:-1].contiguous(), bounds).tolist()
        return first, last

"""Small packed tables with known content, for tests on real ranks.

In: a seed and a shape. Out: `Content`, the same on every rank, that a sharded table is filled with and compared to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hse_dist.config import StructureSettings, TrainSettings
from hse_dist.ranks import Ranks
from hse_dist.tables.block import SparseRows
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.shard_memory import ShardMemory
from hse_dist.tables.sharded import IN_PLACE, OwnedRows, PackedTable

SINGLE = StructureSettings()


@dataclass(frozen=True)
class Content:
    """Rows of any length: columns int64 and values float32 a row, gains float32 [rows]; whole blocks of columns."""

    columns: list[np.ndarray]
    values: list[np.ndarray]
    gains: np.ndarray
    dims: int
    width: int
    block: int = 1

    @classmethod
    def random(
        cls,
        seed: int,
        rows: int,
        dims: int,
        width: int,
        *,
        longest: int,
        long_rows: dict[int, int],
        ties: bool = False,
        structure: StructureSettings = SINGLE,
    ) -> Content:
        """Rows of 1 to `longest` entries, but for those of `long_rows` (row → entries).

        Args:
            ties: values are −3, −2, −1, 1, 2 or 3, else normal.
            structure: rows have as many whole blocks as they may have entries, or leave out what groups have no room
                for.
        """
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, longest + 1, rows)
        for row, length in long_rows.items():
            lengths[row] = length
        block = structure.unit
        columns = [_structured(rng.permutation(dims // block)[: -(-n // block)], structure) for n in lengths]
        sizes = [len(own) for own in columns]
        values = [rng.choice([-3, -2, -1, 1, 2, 3], n) if ties else rng.normal(size=n) for n in sizes]
        gains = rng.normal(size=rows).astype(np.float32)
        return cls(columns, [v.astype(np.float32) for v in values], gains, dims, width, block)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(columns) for columns in self.columns])

    @property
    def layout(self) -> RowLayout:
        return RowLayout.from_lengths(self.lengths, self.width)

    def owned(self, first: int, last: int) -> OwnedRows:
        """The rows first … last − 1 place by place, entries in the first slots of their row."""
        bounds = self.layout.offsets.numpy()[first : last + 1] * (self.width // self.block)
        bounds, free = bounds - bounds[0], self.dims // self.block
        values, columns = np.zeros((bounds[-1], self.block), np.float32), np.full(bounds[-1], free, np.int32)
        for row in range(first, last):
            numbers = self.columns[row][:: self.block] // self.block
            places = bounds[row - first] + np.arange(len(numbers))
            columns[places], values[places] = numbers, self.values[row].reshape(-1, self.block)
        return OwnedRows(first, last, bounds, values.ravel(), columns, free, self.block)

    def table(
        self,
        ranks: Ranks,
        sharding: str,
        settings: TrainSettings,
        *,
        with_gains: bool,
        memory: ShardMemory = IN_PLACE,
    ) -> PackedTable:
        """A sharded table of this content; a collective call."""
        table = PackedTable(
            self.layout, self.dims, ranks, settings, sharding, with_gains=with_gains, block=self.block, memory=memory
        )
        table.set_gains(lambda first, last: self.gains[first:last])
        table.put_back(self.owned(*table.row_ranges[ranks.rank]))
        return table


def _structured(numbers: np.ndarray, structure: StructureSettings) -> np.ndarray:
    """Columns of blocks; or of single entries those that groups have room for."""
    if structure.kind == "block":
        return (numbers[:, None] * structure.block + np.arange(structure.block)).ravel()
    if structure.kind == "n_of_m":
        group = numbers // structure.m
        order = np.argsort(group, kind="stable")
        place = np.arange(len(group)) - np.searchsorted(group[order], group[order])
        return numbers[np.sort(order[place < structure.n])]
    return numbers


def by_slot(owned: OwnedRows) -> OwnedRows:
    """The rows slot by slot, blocks of columns as single entries."""
    block = owned.block
    columns = (owned.columns.astype(np.int64)[:, None] * block + np.arange(block)).ravel()
    columns[columns > owned.dims * block] = owned.dims * block
    free = owned.dims * block
    return OwnedRows(owned.first, owned.last, owned.offsets * block, owned.values, columns.astype(np.int32), free)


def read_all(table: PackedTable) -> SparseRows:
    """Every row of the table, through its lookup; a collective call."""
    with torch.no_grad():
        rows = table.lookup(torch.arange(table.rows, device=table.ranks.device))
    assert isinstance(rows, SparseRows)
    return rows


def join(parts: list[OwnedRows]) -> OwnedRows:
    """The parts of all owners as one; ranks without rows may be among them."""
    parts = sorted((part for part in parts if part.last > part.first), key=lambda part: part.first)
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return OwnedRows(
        first=parts[0].first,
        last=parts[-1].last,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        values=np.concatenate([part.values for part in parts]),
        columns=np.concatenate([part.columns for part in parts]),
        dims=parts[0].dims,
        block=parts[0].block,
    )

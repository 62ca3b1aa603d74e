"""A table of more rows: what a larger vocabulary needs.

In: a packed table, and how many rows are to be appended; the new items' numbers follow those of the old ones. Out: a
table whose first rows are those of before (values, columns, gains, accumulators as after a repack), and whose new rows
have what a start gave them, or nothing in one free chunk: they grow at the next rewires. No row is ever put between
others: a vocabulary in another order needs another start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hse_dist.errors import ConfigError
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.repack import Contents, put_in, take_out
from hse_dist.tables.sharded import PackedTable


@dataclass(frozen=True)
class NewRows:
    """Rows to append, CSR: offsets int64 [n + 1], columns int64 [E] distinct within a row, values float32 [E], gains
    float32 [n]."""

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    gains: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> NewRows:
        """Rows without entries, with a gain of 1."""
        nothing = np.empty(0, np.int64)
        return cls(np.zeros(rows + 1, np.int64), nothing, nothing.astype(np.float32), np.ones(rows, np.float32))

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def last(self, rows: int) -> NewRows:
        """The last so many of them."""
        begin = self.rows - rows
        first = self.offsets[begin]
        return NewRows(self.offsets[begin:] - first, self.columns[first:], self.values[first:], self.gains[begin:])


def append_rows(
    table: PackedTable, new: NewRows, dims: int | None = None, lengths: np.ndarray | None = None
) -> PackedTable:
    """The table with the new rows at its end; a collective call, after which the old one is to be let go.

    Args:
        new: the same on all ranks.
        dims: D of the new table, at least that of the old one; None: the same.
        lengths: slots that each row of before is to have, int64 [rows]; None: as many as it has.

    Raises:
        ConfigError: D would fall, an entry lies beyond it, or live entries are blocks.
    """
    if table.block > 1:
        raise ConfigError("A table of blocks cannot get more rows.", setting="sparsity.structure.kind", value="block")
    dims = table.dims if dims is None else dims
    if dims < table.dims or (len(new.columns) and int(new.columns.max()) >= dims):
        raise ConfigError(f"A table of {table.dims} columns cannot get rows for {dims} columns.")
    width, warm = table.layout.width, table.warm_accumulator
    before = table.layout.capacities(0, table.rows) if lengths is None else lengths
    lengths = np.concatenate([before, np.diff(new.offsets)])
    layout, rows = RowLayout.from_lengths(lengths, width), table.rows
    contents = take_out(table)
    _append_entries(contents, new, layout.capacities(rows, layout.rows), rows, dims, warm)
    if contents.gains and contents.first_gain + len(contents.gains[0]) == rows:
        _append_gains(contents, new, warm)
    return put_in(contents, layout)


def replace_rows(table: PackedTable, rows: np.ndarray, new: NewRows) -> None:
    """Give rows of the table other items: the first ones of `new`, in their order. A collective call.

    Accumulators begin anew. Of a row that has too few slots the strongest entries stay, and that in the row's own
    column, which tells it from all others.

    Args:
        rows: int64 [n], rising; the same on all ranks, as `new`.
    """
    owned = table.owned()
    for place, row in enumerate(rows.tolist()):
        if owned.first <= row < owned.last:
            slots = slice(*owned.offsets[row - owned.first : row - owned.first + 2])
            owned.values[slots], owned.columns[slots] = 0.0, owned.dims
            entries = slice(new.offsets[place], new.offsets[place + 1])
            values, columns = new.values[entries], new.columns[entries]
            chosen = np.sort(np.lexsort((-np.abs(values), columns != row))[: slots.stop - slots.start])
            filled = slice(slots.start, slots.start + len(chosen))
            owned.values[filled], owned.columns[filled] = values[chosen], columns[chosen]
    table.put_back(owned)
    chunks = table.layout.chunks_of(torch.from_numpy(rows).to(table.layout.offsets.device))[0].cpu().numpy()
    first, last = table.ranges[table.ranks.rank]
    mine = torch.from_numpy(chunks[(chunks >= first) & (chunks < last)] - first)
    for kept in table.accumulators("values"):
        kept[mine.to(kept.device)] = table.warm_accumulator
    shards, begin = table.gain_shards()
    if shards:
        here = (rows >= begin) & (rows < begin + len(shards[0]))
        places = torch.from_numpy(rows[here] - begin).to(shards[0].device)
        shards[0][places] = _stored_gains(new.gains[: len(rows)][here], shards[0].shape[1]).to(shards[0])
        for kept in shards[1:]:
            kept[places] = table.warm_accumulator


def _append_entries(
    contents: Contents, new: NewRows, capacities: np.ndarray, rows: int, dims: int, warm: float
) -> None:
    """To the rows of whoever owns the last one; free slots get the code of the new D everywhere."""
    owned = contents.owned
    owned.columns = np.where(owned.columns == owned.dims, dims, owned.columns).astype(np.int32)
    owned.dims = dims
    if not (owned.first < owned.last == rows and new.rows):
        return
    ends = np.cumsum(capacities)
    values, columns = np.zeros(ends[-1], np.float32), np.full(ends[-1], dims, np.int32)
    of_entry = np.repeat(np.arange(new.rows), np.diff(new.offsets))
    slots = (ends - capacities)[of_entry] + np.arange(len(of_entry)) - new.offsets[of_entry]
    values[slots], columns[slots] = new.values, new.columns
    before = len(owned.values)
    owned.offsets = np.concatenate([owned.offsets, before + ends])
    owned.values, owned.columns = np.concatenate([owned.values, values]), np.concatenate([owned.columns, columns])
    owned.last += new.rows
    width = before // len(contents.accumulators[0])
    contents.accumulators = [_longer(kept, len(values) // width, warm) for kept in contents.accumulators]


def _append_gains(contents: Contents, new: NewRows, warm: float) -> None:
    gains, *accumulators = contents.gains
    more = _stored_gains(new.gains, gains.shape[1])
    contents.gains = [torch.cat([gains, more.to(gains)]), *(_longer(kept, new.rows, warm) for kept in accumulators)]


def _stored_gains(gains: np.ndarray, width: int) -> torch.Tensor:
    """As they stand in the table: size, sign, zeros."""
    stored = torch.zeros(len(gains), width)
    stored[:, 0] = torch.from_numpy(np.abs(gains))
    stored[:, 1] = torch.from_numpy(np.where(gains < 0, -1.0, 1.0).astype(np.float32))
    return stored


def _longer(kept: torch.Tensor, count: int, value: float) -> torch.Tensor:
    return torch.cat([kept, kept.new_full((count, *kept.shape[1:]), value)])

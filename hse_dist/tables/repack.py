"""A table's live entries into a table of fewer chunks.

In: a packed table whose rows have more slots than they need. Out: another one on the same ranks, in which every row's
entries lie in its first slots, in the order in which they were. Nobody holds more than the entries of its rows and its
shard of either table: what moves between ranks goes a block of rows at a time, to the holders of the new chunks.

What goes along:

* an accumulator a slot (Adagrad): with its entry; free slots begin anew.
* an accumulator a chunk (row-wise Adagrad): a new chunk gets the mean of its entries' old ones, one without entries the
  mean of its row, one of a row without any the value that accumulators begin with. So a chunk that moves whole keeps
  its number to the bit, and no step changes its size by the repack but for the average with its new neighbours: a sum,
  or the largest, would shrink the steps of all that were merged.
* gains and their accumulators: as they are.
* what a rank owes of its gradients (error feedback): to the new slot of the same row and column; what is owed to
  columns that are not live any more is forgotten, as it would be at the next gradient.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hse_dist.ranks import Ranks
from hse_dist.tables.block import SparseRows
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.numbers import padded, stored_numbers
from hse_dist.tables.sharded import OwnedRows, PackedTable, Recipe

BLOCK_ROWS = 2**15


def lengths_needed(live: np.ndarray, slack: float) -> np.ndarray:
    """Slots that rows with `live` entries should have, int64 [rows]: the rule of a start, too."""
    return np.ceil(live * (1.0 + slack)).astype(np.int64)


@dataclass
class Contents:
    """What a table held, on this rank; the table itself may go.

    Attributes:
        owned: the rows of this rank. accumulators: of their slots, float32 [slots, …] or of their chunks [chunks, …].
        gains: of this rank's shard of the gains, and their accumulators; first row of that shard.
        owed: row, column int64 [n] and value float32 [n] of this rank's residuals.
    """

    owned: OwnedRows
    accumulators: list[Tensor]
    gains: list[Tensor]
    first_gain: int
    owed: tuple[np.ndarray, np.ndarray, np.ndarray]
    recipe: Recipe
    ranks: Ranks


def packed_layout(table: PackedTable, slack: float) -> RowLayout:
    """The layout that the table's live entries need; a collective call."""
    return RowLayout.from_lengths(lengths_needed(live_of_rows(table), slack), table.layout.width)


def live_of_rows(table: PackedTable) -> np.ndarray:
    """Live entries of every row, int64 [rows]; a collective call."""
    live = torch.from_numpy(_live_of(table) * table.block)
    parts = table.ranks.exchange([live.to(table.ranks.device)] * table.ranks.size)
    by_first = sorted(zip(table.row_ranges, parts, strict=True), key=lambda one: one[0])
    return torch.cat([part for (first, last), part in by_first if last > first]).cpu().numpy()


def roomier(live: np.ndarray, capacities: np.ndarray, slack: float, ceiling: int) -> np.ndarray:
    """Slots that rows are to have when a run goes on, int64 [rows]: what their live entries need, and room for one more
    where a row has filled all that it had, so that it gets a chunk and can go on growing.

    Args:
        live, capacities: entries and slots of each row, int64 [rows]. ceiling: most entries of a row.
    """
    full = (live >= capacities) & (live < ceiling)
    return np.maximum(lengths_needed(live, slack), live + full)


def _live_of(table: PackedTable) -> np.ndarray:
    """Live places of each owned row, int64 [rows]."""
    owned = table.owned(borrow=True)
    try:
        return np.concatenate([np.add.reduceat(block.live, block.offsets[:-1]) for block in blocks(owned)] or [_NONE])
    finally:
        table.end_loan()


_NONE = np.empty(0, np.int64)


def blocks(owned: OwnedRows) -> Iterator[OwnedRows]:
    """The rows in blocks; views."""
    for first in range(0, owned.last - owned.first, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, owned.last - owned.first)
        bounds = owned.offsets[first : last + 1]
        here = slice(bounds[0], bounds[-1])
        rows = (owned.first + first, owned.first + last, bounds - bounds[0])
        yield OwnedRows(*rows, owned.by_place[here].reshape(-1), owned.columns[here], owned.dims, owned.block)


def take_out(table: PackedTable) -> Contents:
    """All that a table of another layout needs; the caller then lets go of the table. A collective call."""
    accumulators = [table.gather_chunks(shard) for shard in table.accumulators("values")]
    gains, first = table.gain_shards()
    return Contents(
        owned=table.owned(),
        accumulators=accumulators,
        gains=[shard.clone() for shard in gains],
        first_gain=first,
        owed=_owed(table),
        recipe=table.recipe,
        ranks=table.ranks,
    )


def put_in(contents: Contents, layout: RowLayout) -> PackedTable:
    """The new table; a collective call."""
    gc.collect()  # tables refer to themselves: the old one goes only now
    ranks, old = contents.ranks, contents.owned
    made = contents.recipe
    table = PackedTable(
        layout, old.dims * made.block, ranks, made.train, made.sharding,
        with_gains=made.with_gains, wire=made.wire, block=made.block, memory=made.memory,
    )  # fmt: skip
    shards = [table.local_values(), table.local_columns(), *table.accumulators("values")]
    mine = table.ranges[ranks.rank]
    parts = blocks(old)
    for _ in range(ranks.largest(-(-(old.last - old.first) // BLOCK_ROWS))):
        block = next(parts, None)
        ids, chunks = _pack(block, contents, layout, table.warm_accumulator)
        split = [(ids >= first) & (ids < last) for first, last in table.ranges]
        received = torch.cat(ranks.exchange([ids[part].to(ranks.device) for part in split])) - mine[0]
        for shard, chunk in zip(shards, chunks, strict=True):
            shard[received] = torch.cat(ranks.exchange([chunk[part].to(shard) for part in split]))
    _put_gains(contents, table)
    _put_owed(contents, table)
    return table


def _pack(block: OwnedRows | None, contents: Contents, layout: RowLayout, warm: float) -> tuple[Tensor, list[Tensor]]:
    """New chunk ids int64 [n] of a block of rows, and of each shard their content [n, …]."""
    size, free = contents.owned.block, contents.owned.dims
    width, places = layout.width, layout.width // size
    offsets = layout.offsets.cpu().numpy()
    first, last = (block.first, block.last) if block is not None else (0, 0)
    base, count = int(offsets[first]), int(offsets[last] - offsets[first])
    values, columns = np.zeros((count * places, size), np.float32), np.full(count * places, free, np.float32)
    accumulators = []
    if block is None:
        rows = begin = source = target = _NONE
    else:
        source = np.flatnonzero(block.live)
        rows = np.searchsorted(block.offsets, source, side="right") - 1
        begin = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=last - first))])
        target = (offsets[first:last][rows] - base) * places + np.arange(len(rows)) - begin[rows]
        values[target], columns[target] = block.by_place[source], block.columns[source]
        source = source + contents.owned.offsets[first - contents.owned.first]
    of_chunk = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
    for kept in contents.accumulators:
        if kept.dim() > 1 and kept.shape[1] == width:
            moved = torch.full((count * places, size), warm)
            moved[target] = kept.view(-1, size)[source]
            accumulators.append(moved.view(count, width))
        else:
            means = _means(kept.flatten().numpy()[source // places], target // places, rows, of_chunk, warm)
            accumulators.append(torch.from_numpy(means).view(count, *kept.shape[1:]))
    numbers = padded(torch.from_numpy(columns).view(count, places), stored_numbers(width, size), free)
    return torch.arange(base, base + count), [torch.from_numpy(values).view(count, width), numbers, *accumulators]


def _means(kept: np.ndarray, chunks: np.ndarray, rows: np.ndarray, of_chunk: np.ndarray, warm: float) -> np.ndarray:
    """The mean of the entries' numbers in each chunk, of its row's where a chunk has none, `warm` where the row has
    none either; float32 [chunks].

    Args:
        kept, chunks, rows: of each entry. of_chunk: the row of each chunk.
    """
    count = np.bincount(chunks, minlength=len(of_chunk))
    means = np.bincount(chunks, kept, minlength=len(of_chunk)) / np.maximum(count, 1)
    if not count.all():
        of_row, entries = (np.bincount(rows, part, minlength=of_chunk[-1] + 1) for part in (kept, None))
        of_row = np.where(entries > 0, of_row / np.maximum(entries, 1), warm)
        means[count == 0] = of_row[of_chunk[count == 0]]
    return means.astype(np.float32)


def _put_gains(contents: Contents, table: PackedTable) -> None:
    """The shards of the gains, which a planner may have placed on other ranks."""
    shards, first = table.gain_shards()
    ranks = contents.ranks
    ranges = ranks.gather((first, first + (len(shards[0]) if shards else 0)))
    for old, new in zip(contents.gains, shards, strict=True):
        cuts = [(max(begin - contents.first_gain, 0), max(end - contents.first_gain, 0)) for begin, end in ranges]
        received = [part for part in ranks.exchange([old[begin:end] for begin, end in cuts]) if len(part)]
        new.copy_(torch.cat([*received, old[:0]]))


def _owed(table: PackedTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of all that this rank owes."""
    state = table.residuals_state()
    if not state:
        return _NONE, _NONE, np.empty(0, np.float32)
    owed = state["residual_values"]
    chunk, slot = np.nonzero(owed)
    columns = state["residual_columns"][chunk, slot].astype(np.int64)
    offsets = table.layout.offsets.cpu().numpy()
    rows = np.searchsorted(offsets, state["residual_ids"][chunk], side="right") - 1
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], owed[chunk, slot][order]


def _put_owed(contents: Contents, table: PackedTable) -> None:
    """Owe the same to the same entries, whose new places the table itself knows; a collective call."""
    rows, columns, values = contents.owed
    every = np.unique(rows)
    width, dims, offsets = table.layout.width, table.dims, table.layout.offsets.cpu().numpy()
    for first in range(0, contents.ranks.largest(len(every)), BLOCK_ROWS):
        asked = every[first : first + BLOCK_ROWS]
        with torch.no_grad():
            there = table.lookup(torch.from_numpy(asked).to(contents.ranks.device))
        assert isinstance(there, SparseRows)
        bounds, known = there.offsets.cpu().numpy(), there.columns.cpu().numpy()
        if not len(asked):
            continue
        of_row = np.repeat(np.arange(len(asked)), np.diff(bounds))
        # entries lie in the first slots of their rows, so that an entry's place in the answer tells its slot
        slots = offsets[asked][of_row] * width + np.arange(len(known)) - bounds[of_row]
        ids = np.unique(slots // width)
        place = np.searchsorted(ids, slots // width) * width + slots % width
        state = {
            "residual_ids": ids,
            "residual_values": np.zeros((len(ids), width), np.float32),
            "residual_columns": np.full((len(ids), width), dims, np.float32),
            "residual_ranks": np.array(contents.ranks.size),
        }
        state["residual_columns"].reshape(-1)[place] = known
        mine = slice(*np.searchsorted(rows, [asked[0], asked[-1] + 1]))
        order = np.argsort(of_row * dims + known)
        wanted = np.searchsorted(asked, rows[mine]) * dims + columns[mine]
        found = np.searchsorted((of_row * dims + known)[order], wanted)
        found[found == len(order)] = 0
        same = (of_row * dims + known)[order][found] == wanted
        state["residual_values"].reshape(-1)[place[order[found[same]]]] = values[mine][same]
        owes = state["residual_values"].any(1)
        table.load_residuals({name: part[owes] if part.ndim else part for name, part in state.items()})

"""The table of a run: made from its start, filled shard by shard.

In: the start folder and the ranks. Out: a sharded table that holds the start. No rank ever holds more than its shard:
the table is made on `meta`, and each rank reads the rows that it owns.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from hse_dist.cluster import release_memory
from hse_dist.config import Config
from hse_dist.ranks import Ranks
from hse_dist.sparsity.start import StartFolder
from hse_dist.sparsity.start.folder import RANGE_ROWS
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.sharded import DenseTable, OwnedRows, PackedTable

log = logging.getLogger(__name__)


def make_table(config: Config, rows: int, start: StartFolder | None, ranks: Ranks) -> PackedTable | DenseTable:
    """The item table of `config`, holding its start; a dense one has no start folder and begins at random."""
    settings = config.tables.item
    if start is None:
        assert isinstance(settings.dims, int)
        dense = DenseTable(rows, settings.dims, ranks, config.train, settings.sharding)
        generator = torch.Generator(ranks.device).manual_seed(config.run.seed * 65_537 + ranks.rank)
        dense.local_values().normal_(generator=generator)
        dense.local_values().div_(settings.dims**0.5)
        return dense
    lengths = np.ceil(start.live(0, rows) * (1.0 + settings.slack)).astype(np.int64)
    layout = RowLayout.from_lengths(lengths, settings.chunk_width)
    sparsity = config.sparsity
    if sparsity.budget.kind == "global" and sparsity.rewire.interval and layout.slots == start.live_entries:
        log.warning("No row has a free slot, so rows cannot grow at others' cost: raise tables.item.slack")
    with_gains = config.model.row_norm == "free"
    table = PackedTable(
        layout, start.dims, ranks, config.train, settings.sharding, with_gains=with_gains, wire=settings.wire
    )
    table.set_gains(start.gains)
    fill(table, start)
    return table


def fill(table: PackedTable, start: StartFolder) -> None:
    """Write the start's entries into the rows' first slots; all other slots are free."""
    first, last = table.row_ranges[table.ranks.rank]
    bounds = table.layout.offsets[first : last + 1].cpu().numpy() * table.layout.width
    offsets = bounds - bounds[0]
    values = np.zeros(offsets[-1], dtype=np.float32)
    columns = np.full(offsets[-1], table.dims, dtype=np.int32)
    for begin in range(first, last, RANGE_ROWS):
        end = min(begin + RANGE_ROWS, last)
        row_offsets, entry_columns, entry_values = start.entries(begin, end)
        shift = offsets[begin - first : end - first] - row_offsets[:-1]
        slots = np.repeat(shift, np.diff(row_offsets)) + np.arange(len(entry_columns))
        values[slots], columns[slots] = entry_values, entry_columns
    table.put_back(OwnedRows(first, last, offsets, values, columns, table.dims))
    release_memory()

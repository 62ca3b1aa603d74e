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
from hse_dist.errors import RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.sparsity.budget import rows_compete
from hse_dist.sparsity.start import Start
from hse_dist.sparsity.start.folder import RANGE_ROWS
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.repack import lengths_needed
from hse_dist.tables.shard_memory import ShardMemory
from hse_dist.tables.sharded import DenseTable, PackedTable

log = logging.getLogger(__name__)


def layout_state(table: PackedTable | DenseTable) -> dict[str, np.ndarray]:
    """What a checkpoint says of the table's layout: a repack may have changed it."""
    if isinstance(table, DenseTable):
        return {}
    return {"chunks_of_rows": np.diff(table.layout.offsets.cpu().numpy()).astype(np.int32)}


def make_table(
    config: Config, rows: int, start: Start | None, ranks: Ranks, state: dict[str, np.ndarray] | None = None
) -> PackedTable | DenseTable:
    """The item table of `config`, holding its start; a dense one has no start folder and begins at random.

    Args:
        state: `layout_state()` of a checkpoint that will fill the table.
    """
    settings = config.tables.item
    if start is None:
        assert isinstance(settings.dims, int)
        dense = DenseTable(rows, settings.dims, ranks, config.train, settings.sharding, ShardMemory.of(settings))
        values = dense.local_values()
        drawn = values if values.is_cpu else torch.empty_like(values, device="cpu")  # the same numbers on any device
        drawn.normal_(generator=torch.Generator().manual_seed(config.run.seed * 65_537 + ranks.rank))
        values.copy_(drawn.div_(settings.dims**0.5))
        return dense
    if state is not None:
        chunks = state.get("chunks_of_rows", np.empty(0))
        most = -(-int(start.dims * (1.0 + settings.slack)) // settings.chunk_width) + 1
        if chunks.shape != (rows,) or chunks.dtype.kind != "i" or not 1 <= chunks.min() <= chunks.max() <= most:
            raise RunFolderError(
                f"The checkpoint's table is not one of {rows} rows of 1 to {most} chunks, as this run's is.",
                cause="It was changed, or it belongs to another run.",
            )
        lengths = chunks.astype(np.int64) * settings.chunk_width
    else:
        lengths = lengths_needed(start.live(0, rows), settings.slack)
    layout = RowLayout.from_lengths(lengths, settings.chunk_width)
    sparsity = config.sparsity
    moves_alone = rows_compete(sparsity.budget) and sparsity.schedule.kind == "fixed"
    if moves_alone and layout.slots == start.live_entries:
        log.warning("No row has a free slot, so rows cannot grow at others' cost: raise tables.item.slack")
    with_gains = config.model.row_norm == "free"
    table = PackedTable(
        layout, start.dims, ranks, config.train, settings.sharding,
        with_gains=with_gains, wire=settings.wire, block=sparsity.structure.unit,
        memory=ShardMemory.of(settings),
    )  # fmt: skip
    if state is None:
        table.set_gains(start.gains)
        fill(table, start)
    return table


def fill(table: PackedTable, start: Start) -> None:
    """Write the start's entries into the rows' first slots; all other slots are free.

    Each rank reads the rows that its shard holds a part of, a range at a time, and writes straight into the shard: a
    copy of the shard would be as large as all that it is trained with.
    """
    values, columns = table.local_values(), table.local_columns()
    width, offsets, size = table.layout.width, table.layout.offsets.cpu().numpy(), table.block
    stored = columns.shape[1]
    shard_first, shard_last = table.ranges[table.ranks.rank]
    first = max(int(np.searchsorted(offsets, shard_first, side="right")) - 1, 0)
    last = int(np.searchsorted(offsets, shard_last))
    for begin in range(first, last, RANGE_ROWS):
        end = min(begin + RANGE_ROWS, last)
        row_offsets, entry_columns, entry_values = start.entries(begin, end)
        base, ending = int(offsets[begin]), int(offsets[end])
        bounds = (offsets[begin : end + 1] - base) * width
        slots = np.repeat(bounds[:-1] - row_offsets[:-1], np.diff(row_offsets)) + np.arange(len(entry_columns))
        # the first and the last row may lie partly in other shards
        low, high = max(shard_first, base), min(shard_last, ending)
        # whole blocks of columns follow one another, each of which has one number
        chunk, place = np.divmod(slots[::size] // size, width // size)
        numbers = (chunk * stored + place, entry_columns[::size] // size, table.free)
        for shard, (places, entries, free) in ((values, (slots, entry_values, 0.0)), (columns, numbers)):
            block = np.full((ending - base) * shard.shape[1], free, dtype=np.float32)
            block[places] = entries
            part = block.reshape(-1, shard.shape[1])[low - base : high - base]
            shard[low - shard_first : high - shard_first] = torch.from_numpy(part).to(shard.device)
    release_memory()

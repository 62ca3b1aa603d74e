"""The export job: the best checkpoint of a run as files that need nothing of this project to be read.

In: a configuration, and perhaps an export that is there. Out: the folder of `format.py`, or, of what changed since that
export, of `delta.py`. All ranks take part in the lookups; rank 0 writes, one block of
rows in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hse_dist.cluster import connect, run_workers
from hse_dist.config import Config
from hse_dist.data.prepared import Prepared
from hse_dist.evaluate.driver import check_run, open_best
from hse_dist.export.delta import write_delta
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.progress import Meter, telling
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.tables.block import SparseRows
from hse_dist.tables.sharded import DenseTable, PackedTable

BLOCK_ROWS = 65_536


def export(config: Config, since: str | None = None, to: str | None = None) -> dict[str, Any]:
    """Write the export, or a delta; `folder`, `items`, `bytes` and more.

    Args:
        since: the export that a delta is written of. to: where the delta goes; None: `delta` in the run folder.

    Raises:
        HseError: there is no such run, its data are others or gone, the folder cannot be written, or workers failed.
    """
    check_run(config)
    places = None
    if since is not None:
        load_export(since)  # a wrong one is told before workers start
        places = (Path(since).absolute(), Path(to or Path(config.run.folder) / "delta").absolute())
    with connect(config.cluster), telling("export", RunFolder(config).progress / "export", "items") as meter:
        return run_workers(export_worker, {"config": config, "meter": meter, "places": places}, config, "export")


def export_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """One rank of the job."""
    config: Config = arguments["config"]
    prepared = Prepared(config.data.folder)
    table, step = open_best(config, prepared, ranks)
    meter = Meter(arguments["meter"] if ranks.rank == 0 else "")
    blocks = without_evicted(read_rows(table, reader=ranks.rank == 0, meter=meter), prepared.generations().evicted)
    if ranks.rank:
        for _ in blocks:
            pass
        return {}
    what: dict[str, Any] = {
        "item_ids": prepared.item_ids(),
        "dims": table.dims,
        "row_norm": config.model.row_norm,
        "value_type": config.export.values,
        "user_entries": config.model.user_entries,
        "extra": {"run": config.run.folder, "step": step, "start": config.sparsity.start},
    }
    if arguments["places"] is not None:
        since, to = arguments["places"]
        return write_delta(to, load_export(since), blocks, **what)
    return write_export(Path(RunFolder(config).export).absolute(), blocks, form=config.export.format, **what)


def without_evicted(blocks: Iterator[RowBlock], evicted: np.ndarray) -> Iterator[RowBlock]:
    """The rows in order, those that have no item any more (bool [rows]) with zeros: no history makes them a score."""
    first = 0
    for block in blocks:
        rows = len(block.offsets) - 1
        owner = np.repeat(np.arange(first, first + rows), np.diff(block.offsets))
        yield RowBlock(block.offsets, block.columns, np.where(evicted[owner], 0, block.values), block.gains)
        first += rows


@torch.no_grad()
def read_rows(table: PackedTable | DenseTable, *, reader: bool, meter: Meter | None = None) -> Iterator[RowBlock]:
    """All rows in order, in blocks, on the rank that is the `reader`; empty blocks on the others. A collective call.

    Args:
        meter: is told of each block that the reader has done with.
    """
    device = table.ranks.device
    for first in range(0, table.rows, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, table.rows) if reader else first
        rows = table.lookup(torch.arange(first, last, device=device))
        if isinstance(rows, SparseRows):
            offsets, columns, values = rows.offsets, rows.columns, rows.values
            gains = torch.ones(last - first) if rows.gains is None else rows.gains
        else:
            count, dims = rows.values.shape
            offsets = torch.arange(0, count * dims + 1, dims)
            columns, values = torch.arange(dims).repeat(count), rows.values.flatten()
            gains = torch.ones(count)
        yield RowBlock(*(np.ascontiguousarray(part.cpu().numpy()) for part in (offsets, columns, values, gains)))
        if meter is not None:
            meter(min(first + BLOCK_ROWS, table.rows) / table.rows, min(first + BLOCK_ROWS, table.rows))

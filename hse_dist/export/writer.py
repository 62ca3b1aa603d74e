"""The export job: the best checkpoint of a run as files that need nothing of this project to be read.

In: a configuration, and perhaps an export that is there. Out: the folder of `format.py`, or, of what changed since that
export, of `delta.py`. All ranks take part in the lookups; rank 0 writes, one block of rows in memory at a time.

Rows are written as the model uses them: an item's with those of its features added, which then cost nothing where it is
served; those of users' features with their weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hse_dist.cluster import connect, run_workers
from hse_dist.config import Config
from hse_dist.data.batch import feature_batch, item_batch
from hse_dist.data.prepared import Prepared
from hse_dist.errors import ConfigError
from hse_dist.evaluate.driver import Opened, check_run, open_best
from hse_dist.export.delta import write_delta
from hse_dist.export.features import Source
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.progress import Meter, telling
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.tables.block import DenseRows, SparseRows

BLOCK_ROWS, BLOCK_COMPOSED = 65_536, 8192
"""Items of a block; and where they have features, whose rows are looked up with them."""


def export(config: Config, since: str | None = None, to: str | None = None) -> dict[str, Any]:
    """Write the export, or a delta; `folder`, `items`, `bytes` and more.

    Args:
        since: the export that a delta is written of. to: where the delta goes; None: `delta` in the run folder.

    Raises:
        HseError: there is no such run, its data are others or gone, the folder cannot be written, a delta is wanted of
            a run with features, or workers failed.
    """
    check_run(config)
    places = None
    if since is not None:
        _refuse_features(config)
        load_export(since)  # a wrong one is told before workers start
        places = (Path(since).absolute(), Path(to or Path(config.run.folder) / "delta").absolute())
    with connect(config.cluster), telling("export", RunFolder(config).progress / "export", "items") as meter:
        return run_workers(export_worker, {"config": config, "meter": meter, "places": places}, config, "export")


def _refuse_features(config: Config) -> None:
    if config.tables.features:
        names = ", ".join(config.tables.features)
        cause = "Leave out --since: what changed of features is not written yet."
        raise ConfigError("A run with features has no delta.", cause=cause, setting="tables.features", value=names)


def export_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """One rank of the job."""
    config: Config = arguments["config"]
    prepared = Prepared(config.data.folder)
    run, reader = open_best(config, prepared, ranks), ranks.rank == 0
    meter = Meter(arguments["meter"] if reader else "")
    blocks = without_evicted(read_items(run, reader=reader, meter=meter), prepared.generations().evicted)
    features = {name: read_feature(run, name, reader=reader) for name in (run.features.users if run.features else ())}
    if not reader:
        for part in (blocks, *features.values()):  # the order in which they are written
            for _ in part:
                pass
        return {}
    what: dict[str, Any] = {
        "item_ids": prepared.item_ids(),
        "dims": run.table.dims,
        "row_norm": config.model.row_norm,
        "value_type": config.export.values,
        "user_entries": config.model.user_entries,
        "extra": {"run": config.run.folder, "step": run.step, "start": config.sparsity.start},
    }
    if arguments["places"] is not None:
        since, to = arguments["places"]
        return write_delta(to, load_export(since), blocks, **what)
    sources: dict[str, Source] = {name: (prepared.feature_values(name), rows) for name, rows in features.items()}
    folder = Path(RunFolder(config).export).absolute()
    return write_export(folder, blocks, form=config.export.format, features=sources, **what)


def without_evicted(blocks: Iterator[RowBlock], evicted: np.ndarray) -> Iterator[RowBlock]:
    """The rows in order, those that have no item any more (bool [rows]) with zeros: no history makes them a score."""
    first = 0
    for block in blocks:
        rows = len(block.offsets) - 1
        owner = np.repeat(np.arange(first, first + rows), np.diff(block.offsets))
        yield RowBlock(block.offsets, block.columns, np.where(evicted[owner], 0, block.values), block.gains)
        first += rows


@torch.no_grad()
def read_items(run: Opened, *, reader: bool, meter: Meter | None = None) -> Iterator[RowBlock]:
    """The rows of all items in order, in blocks, on the rank that is the `reader`; empty blocks on the others. A
    collective call.

    Args:
        meter: is told of each block that the reader has done with.
    """
    items = run.features.items if run.features else run.table.rows
    step = BLOCK_COMPOSED if run.features else BLOCK_ROWS
    for first in range(0, items, step):
        last = min(first + step, items)
        some = item_batch(first, last if reader else first, run.features).to(run.table.ranks.device)
        rows = run.table.lookup(some.candidates)
        yield _block(rows if some.features is None else run.model.block(rows, some.features).rows)
        if meter is not None:
            meter(last / items, last)


@torch.no_grad()
def read_feature(run: Opened, name: str, *, reader: bool) -> Iterator[RowBlock]:
    """The rows of a feature of users, as `read_items` gives those of items. A collective call."""
    assert run.features is not None
    begin, end = run.features.tables()[name]
    for first in range(begin, end, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, end) if reader else first
        some = feature_batch(first, last, run.features).to(run.table.ranks.device)
        yield _block(run.model.block(run.table.lookup(some.candidates), some.features).rows)


def _block(rows: SparseRows | DenseRows) -> RowBlock:
    if isinstance(rows, SparseRows):
        offsets, columns, values = rows.offsets, rows.columns, rows.values
        gains: Tensor = torch.ones(len(offsets) - 1) if rows.gains is None else rows.gains
    else:
        count, dims = rows.values.shape
        offsets = torch.arange(0, count * dims + 1, dims)
        columns, values, gains = torch.arange(dims).repeat(count), rows.values.flatten(), torch.ones(count)
    return RowBlock(*(np.ascontiguousarray(part.cpu().numpy()) for part in (offsets, columns, values, gains)))

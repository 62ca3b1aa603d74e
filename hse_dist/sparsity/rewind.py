"""The early values that a lottery goes back to.

In: a table at the early step. Out: a start folder (`start/folder.py`) of its entries and gains, keyed by row and
column, and later the same values in the entries that are left. Each rank writes and reads ranges of rows, so that no
more than a range is in memory, and any number of ranks can read what another wrote.
Source: Frankle & Carbin, *The Lottery Ticket Hypothesis* (ICLR 2019); going back to an early step and not to the start:
Frankle et al., *Linear Mode Connectivity and the Lottery Ticket Hypothesis* (ICML 2020).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from hse_dist.errors import RunFolderError
from hse_dist.files import replace_folder, write_json
from hse_dist.sparsity.start import Start
from hse_dist.sparsity.start.folder import (
    RANGE_ROWS,
    VERSION,
    Ints,
    StartFolder,
    row_ranges,
    write_entries,
    write_rows,
)
from hse_dist.tables.block import SparseRows
from hse_dist.tables.sharded import OwnedRows, PackedTable


@torch.no_grad()
def remember(table: PackedTable, folder: Path, step: int) -> None:
    """Write the table's entries and gains, as they are after `step`; a collective call."""
    ranks, target = table.ranks, folder.with_name(f".{folder.name}.tmp")
    if ranks.rank == 0:
        shutil.rmtree(target, ignore_errors=True)
    ranks.barrier()
    ranges, live = row_ranges(table.rows), table.live_entries()
    for turn in range(0, len(ranges), ranks.size):
        index = turn + ranks.rank
        first, last = ranges[index] if index < len(ranges) else (0, 0)
        rows = table.lookup(torch.arange(first, last, device=ranks.device))
        assert isinstance(rows, SparseRows)
        if last > first:
            _write_range(target, index, first, rows)
    ranks.barrier()
    if ranks.rank == 0:
        write_json(
            target / "manifest.json",
            {"version": VERSION, "rows": table.rows, "dims": table.dims, "live_entries": live, "step": step},
        )
        replace_folder(folder, target)
    ranks.barrier()


def _write_range(target: Path, index: int, first: int, rows: SparseRows) -> None:
    live = np.diff(rows.offsets.cpu().numpy())
    of_entry = np.repeat(np.arange(first, first + len(live)), live)
    columns, values = rows.columns.cpu().numpy(), rows.values.cpu().numpy()
    order = np.lexsort((columns, of_entry))
    write_entries(target, index, of_entry[order], columns[order], values[order])
    gains = np.ones(len(live), np.float32) if rows.gains is None else rows.gains.cpu().numpy()
    write_rows(target, index, live, gains)


def early_values(folder: Path, step: int) -> StartFolder:
    """What `remember` wrote after `step`.

    Raises:
        RunFolderError: it is of another step.
        DataError: it is not there, or damaged.
    """
    early = StartFolder(folder)
    if early.manifest.get("step") != step:
        raise RunFolderError(
            f"The early values in {folder} are those of step {early.manifest.get('step')}, not {step}.",
            cause="The run folder holds files of two runs.",
        )
    return early


def rewind(owned: OwnedRows, early: Start) -> None:
    """Give every live entry its early value, in place; 0 to one that was not live then, as to one that has grown."""
    for first in range(owned.first, owned.last, RANGE_ROWS):
        last = min(first + RANGE_ROWS, owned.last)
        begin, end = owned.offsets[[first - owned.first, last - owned.first]]
        columns, values = owned.columns[begin:end], owned.by_place[begin:end]
        places = np.flatnonzero(columns < owned.dims)
        bounds = owned.offsets[first - owned.first : last - owned.first + 1] - begin
        rows = np.searchsorted(bounds, places, side="right") - 1
        positions = (rows * owned.dims + columns[places])[:, None] * owned.block + np.arange(owned.block)
        values[places] = _values_at(early, first, last, positions)


def _values_at(early: Start, first: int, last: int, positions: Ints) -> np.ndarray:
    offsets, columns, values = early.entries(first, last)
    known = np.repeat(np.arange(last - first), np.diff(offsets)) * early.dims + columns
    if not len(known):
        return np.zeros(positions.shape, np.float32)
    place = np.minimum(np.searchsorted(known, positions), len(known) - 1)
    return np.where(known[place] == positions, values[place], np.float32(0.0))

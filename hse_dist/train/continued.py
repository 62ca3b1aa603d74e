"""A run that goes on from another one, whose catalogue had fewer items.

In: `run.continues`, the folder of a run, and prepared data that are those of that run or extend them. Out: the table of
its newest (or best) checkpoint with rows for the new items at its end: values, columns, gains, the optimizer's state
and D stay, and so do dense parameters. New rows are folded in (`sparsity/fold_in.py`) and have one chunk. Rows that
have filled all their chunks get one more, those that need fewer give them up, so that what grows can go on growing.

What begins anew: the step, the rates, the journal, births and growth candidates; what ranks owed of their gradients is
forgotten. The start folder of such a run has no entries, only sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from hse_dist.checkpoint.enlarge import NewRows, append_rows, replace_rows
from hse_dist.checkpoint.reading import fitting
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config
from hse_dist.data.checked import CheckedFiles
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.errors import RunFolderError
from hse_dist.files import write_json
from hse_dist.model.parameters import ARRAYS
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder, flat, read_record, stored_config
from hse_dist.sparsity.budget import rows_compete
from hse_dist.sparsity.fold_in import FoldIn, Level, user_weights
from hse_dist.sparsity.schedule import live_counts
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import StartFolder
from hse_dist.sparsity.start.folder import VERSION
from hse_dist.sparsity.tables import make_table
from hse_dist.tables.block import SparseRows
from hse_dist.tables.repack import live_of_rows, roomier
from hse_dist.tables.sharded import PackedTable
from hse_dist.train.dense_update import SQUARES

KIND = "continued"
"""What the journal and the start folder call it."""
EQUAL = (
    "tables.item.kind",
    "tables.item.dims",
    "tables.item.spare_columns",
    "tables.item.chunk_width",
    "model.row_norm",
    "sparsity.structure.",
    "train.optimizer",
)
"""Settings that make the table what it is."""
USERS_AT_A_TIME, ROWS_AT_A_TIME = 2048, 65_536
AS_RARE = 2
"""Known items of at most so many times the count of the most frequent new one say what scores of new ones should be."""


def check_predecessor(config: Config, prepared: Prepared) -> tuple[int, int]:
    """Check that the run of `config.run.continues` can be continued here; the rows of its catalogue, and its version.

    Raises:
        RunFolderError: there is no such run, its table is another kind of table, or its data are not what these extend.
    """
    other = stored_config(str(config.run.continues), "run.continues")
    there, here = flat(other.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    keys = [key for key in sorted(here.keys() | there.keys()) if key.startswith(EQUAL)]
    differ = [
        f"{key} = {here.get(key)!r} here, {there.get(key)!r} there" for key in keys if here.get(key) != there.get(key)
    ]
    if differ:
        raise _refusal(config, f"The run has another table: {'; '.join(differ)}.")
    lineage = [*prepared.manifest.get("lineage", []), {"fingerprint": prepared.fingerprint, "items": prepared.items}]
    known = {one["fingerprint"]: (int(one["items"]), version) for version, one in enumerate(lineage)}
    fingerprint = read_record(RunFolder(other).data, "record of the run's data").get("fingerprint")
    if fingerprint not in known:
        raise _refusal(config, f"The run was trained on data that those in {prepared.folder} do not extend.")
    return known[fingerprint]


def _refusal(config: Config, what: str) -> RunFolderError:
    return RunFolderError(what, cause="It cannot be continued.", setting="run.continues", value=config.run.continues)


def continued_table(config: Config, prepared: Prepared, ranks: Ranks) -> tuple[PackedTable, dict[str, np.ndarray]]:
    """The table of the run that is continued, with rows for all items of `prepared`, and its dense parameters, as
    `DenseUpdate` takes them (empty: it had none); a collective call.

    Raises:
        RunFolderError: see `check_predecessor`; or it has no good checkpoint.
    """
    (items, version), other = check_predecessor(config, prepared), stored_config(str(config.run.continues))
    store = CheckpointStore.of(other)
    found = store.open_best(ranks) if config.run.continues_from == "best" else store.open_latest(ranks)
    if found is None:
        raise _refusal(config, "The run has no checkpoint.")
    with fitting(found):
        start, layout = StartFolder(RunFolder(other).start), store.load_shared(found)
        made = make_table(config, items, start, ranks, layout)
    assert isinstance(made, PackedTable)
    table: PackedTable = made
    store.load(found, table.state_dict())
    table.check_loaded()
    # rows of before that are other items' now, or nobody's, and rows behind them
    others = np.flatnonzero(prepared.generations().since > version)
    new = _fold_in(config, prepared, table, others)
    replace_rows(table, others[others < items], new)
    lengths = table.layout.capacities(0, table.rows)
    if rows_compete(config.sparsity.budget):
        live = live_of_rows(table)
        lengths = roomier(live, lengths, config.tables.item.slack, min(config.sparsity.budget.ceiling, table.dims))
    dense = {name: part for name, part in layout.items() if name in (ARRAYS, SQUARES)}
    return append_rows(table, new.last(prepared.items - items), lengths=lengths), dense


def record_continued(config: Config, table: PackedTable) -> dict[str, Any]:
    """Write the run's start folder; the SparsityServer's state at its start. A collective call."""
    live, folder, server = table.live_entries(), RunFolder(config).start, SparsityServer(config.sparsity, 0, 1)
    if table.ranks.rank == 0:
        sizes = {"rows": table.rows, "dims": table.dims, "live_entries": live}
        content = {"version": VERSION, "kind": KIND, "continues": config.run.continues, "settings": None, **sizes}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "manifest.json", content)
    server.record_start(KIND, live_counts(config, live, table.rows))
    return server.state_dict()


def _fold_in(config: Config, prepared: Prepared, table: PackedTable, new: np.ndarray) -> NewRows:
    """Rows for the items that the table does not have, the same on all ranks; a collective call.

    Args:
        new: their rows, rising; rows of the table among them hold other items there.
    """
    if not len(new):
        return NewRows.empty(0)
    item, ranks, unit = config.tables.item, table.ranks, config.model.row_norm == "unit"
    entries = min(item.live, item.chunk_width) if rows_compete(config.sparsity.budget) else item.live
    folding = FoldIn(prepared.counts(), new, table.dims, min(entries, table.dims))
    known_rows = np.ones(prepared.items, bool)
    known_rows[new] = False
    popularity = np.zeros(prepared.items)
    files = CheckedFiles(prepared, config.data.on_bad_file)
    mine = prepared.row_groups("train")[ranks.rank :: ranks.size]
    blocks = _with_new_items(files, mine, known_rows, popularity)
    while True:
        block = next(blocks, None)
        if not ranks.largest(int(block is not None)):
            break
        rows = np.empty(0, np.int64) if block is None else block.rows
        known = np.unique(rows[known_rows[rows]])
        matrix, gains = _look_up(table, known, unit=unit)
        if block is not None:
            ones = np.ones(len(rows), np.float32)
            histories = sp.csr_matrix((ones, rows, block.offsets), shape=(len(block), prepared.items))
            folding.add(histories, known, matrix, gains)
    folding.merge(ranks.gather((folding.sums, folding.facts)))
    popularity = ranks.sum(torch.from_numpy(popularity)).numpy()
    level = _level(table, popularity, prepared.counts(), known_rows, unit=unit)
    own_columns = item.dims == "items"
    made = folding.result(level, popularity[new], unit=unit, own_columns=own_columns)
    return NewRows(made.offsets, made.columns, made.values, made.gains)


def _with_new_items(
    files: CheckedFiles, groups: list[tuple[str, int, int]], known: np.ndarray, popularity: np.ndarray
) -> Iterator[HistoryBlock]:
    """The users of these row groups who have an item that is not `known` (bool [rows]), in blocks; adds up all items'
    popularity."""
    held: list[HistoryBlock] = []
    for group in groups:
        block = files.read(*group)
        lengths = np.diff(block.offsets)
        owner = np.repeat(np.arange(len(block)), lengths)
        popularity += np.bincount(block.rows, user_weights(lengths)[owner], minlength=len(popularity))
        users = np.unique(owner[~known[block.rows]])
        if len(users):
            held.append(block.take(users))
        if sum(map(len, held)) >= USERS_AT_A_TIME:
            yield HistoryBlock.concatenate(held)
            held = []
    if held:
        yield HistoryBlock.concatenate(held)


def _level(table: PackedTable, popularity: np.ndarray, counts: np.ndarray, known: np.ndarray, *, unit: bool) -> Level:
    """What the scores of known items are like that are as rare as the new ones; a collective call."""
    popularity = np.where(known, popularity, 0.0)  # nobody has what is a row's item no more
    pooled, sums = np.zeros(table.dims), np.zeros(2)
    for rows, matrix, _ in _all_rows(table, unit=unit):
        pooled += popularity[rows] @ matrix
    pooled = table.ranks.sum(torch.from_numpy(pooled)).numpy()
    rare = known & (counts <= max(AS_RARE * counts[~known].max(), counts[known].min(initial=counts.max())))
    for rows, matrix, gains in _all_rows(table, unit=unit):
        own = popularity[rows] * np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel()  # of users who have the item
        scores = gains * (matrix @ pooled - own)
        sums += np.array([scores[rare[rows]].sum(), popularity[rows][rare[rows]].sum()])
    score, users = table.ranks.sum(torch.from_numpy(sums)).tolist()
    return Level(pooled, score / users if users else 0.0)


def _all_rows(table: PackedTable, *, unit: bool) -> Iterator[tuple[np.ndarray, sp.csr_matrix, np.ndarray]]:
    """This rank's share of all rows, in blocks: their numbers, the rows, gains. A collective call."""
    share = -(-table.rows // table.ranks.size)
    mine = np.arange(table.ranks.rank * share, min((table.ranks.rank + 1) * share, table.rows))
    for first in range(0, share, ROWS_AT_A_TIME):
        rows = mine[first : first + ROWS_AT_A_TIME]
        yield rows, *_look_up(table, rows, unit=unit)


def _look_up(table: PackedTable, rows: np.ndarray, *, unit: bool) -> tuple[sp.csr_matrix, np.ndarray]:
    """Rows [C, D], at length 1 where they are unit rows, and their gains. A collective call."""
    with torch.no_grad():
        found = table.lookup(torch.from_numpy(rows).to(table.ranks.device))
    assert isinstance(found, SparseRows)
    return _matrix(found, unit=unit)


def _matrix(rows: SparseRows, *, unit: bool) -> tuple[sp.csr_matrix, np.ndarray]:
    """The rows as a matrix, at length 1 where they are unit rows, and their gains."""
    count = len(rows.offsets) - 1
    parts = [part.cpu().numpy() for part in (rows.values, rows.columns, rows.offsets)]
    matrix = sp.csr_matrix(tuple(parts), shape=(count, rows.dims), dtype=np.float64)
    gains = np.ones(count) if rows.gains is None else rows.gains.cpu().numpy().astype(np.float64)
    if unit:
        norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        matrix = sp.csr_matrix(sp.diags(1.0 / np.where(norms > 0, norms, 1.0)) @ matrix)
    return matrix, gains

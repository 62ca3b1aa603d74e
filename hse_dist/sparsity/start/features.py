"""The first rows of features: where the items point beside which a value stands.

In: the items' start, histories with their users' features, the features of items. Out: a start folder of the features'
rows. A pair of sparse rows meets only in columns that both have. Growth would find these, and a start that has them
spares it the time:

* a value that users have points where their histories point: Σ over these users of their pooled rows, a user weighted
  by 1 / √length and an item by 1 / √count, of which the strongest columns stay (`fold_in.py` sums so for new items);
* a value that items have points where these items point, weighted alike.

A row has length 1; what it counts is the feature's weight. A value that no item stands beside gets random columns, as
all do where `tables.features.NAME.start` is `random`. Values and items are taken a range at a time, and histories are
read once for each pair of ranges, so that no more of both starts is in memory than these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from hse_dist.config import Config
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepared import Prepared
from hse_dist.errors import DataError
from hse_dist.files import new_folder, write_json
from hse_dist.sparsity.fold_in import KEPT, FoldIn, pruned, strongest, to_length_one
from hse_dist.sparsity.start.folder import RANGE_ROWS, VERSION, Ints, StartFolder, row_ranges, write_entries, write_rows
from hse_dist.sparsity.start.random_rows import random_entries

RANGE_ITEMS, RANGE_VALUES = 1 << 18, 16 * RANGE_ROWS
"""Rows of items, and of features, that are in memory at a time."""
BATCH_USERS = 8192


def make_feature_start(
    config: Config, prepared: Prepared, features: FeatureRows, items: StartFolder, folder: str | Path
) -> StartFolder:
    """Make the start of the features' rows, or open it where `folder` holds it already.

    Args:
        items: the start of the items.
    """
    settings = _settings(config, features, items)
    try:
        found = StartFolder(folder)
    except DataError:
        found = None
    shape = features.rows - features.items, items.dims
    if found is not None and found.manifest.get("settings") == settings and (found.rows, found.dims) == shape:
        return found
    with new_folder(folder) as target:
        live_entries = _write(target, config, prepared, features, items)
        facts = {"rows": shape[0], "dims": shape[1], "live_entries": live_entries}
        write_json(target / "manifest.json", {"version": VERSION, "kind": "features", **facts, "settings": settings})
    return StartFolder(folder)


def _settings(config: Config, features: FeatureRows, items: StartFolder) -> dict[str, Any]:
    """Everything that the content depends on."""
    tables = {name: config.tables.features[name].model_dump(mode="json", exclude={"weight"}) for name in features.names}
    return {"tables": tables, "seed": config.run.seed, "items": items.manifest["settings"]}


def _live(config: Config, features: FeatureRows) -> Ints:
    """Live entries of each row, int64 [rows of features]."""
    live = np.array([config.tables.features[name].live for name in features.names], np.int64)
    return np.repeat(live, np.diff(features.first))


def _write(target: Path, config: Config, prepared: Prepared, features: FeatureRows, items: StartFolder) -> int:
    """Write all rows, a range at a time; their live entries."""
    live, counts, total = _live(config, features), features.counts(prepared), 0
    for begin in range(0, len(live), RANGE_VALUES):
        end = min(begin + RANGE_VALUES, len(live))
        rows = _by_history(config, prepared, features, items, counts, np.arange(begin, end))
        rows = _with_random(rows, live[begin:end], begin, config.run.seed)
        for first, last in row_ranges(end - begin):
            part, index = rows[first:last].tocoo(), (begin + first) // RANGE_ROWS
            order = np.lexsort((part.col, part.row))
            write_entries(target, index, part.row[order] + begin + first, part.col[order], part.data[order])
            lengths = np.diff(rows.indptr[first : last + 1])
            write_rows(target, index, lengths, np.ones(last - first, np.float32))
        total += int(rows.nnz)
    return total


def _by_history(
    config: Config, prepared: Prepared, features: FeatureRows, items: StartFolder, counts: Ints, values: Ints
) -> sp.csr_matrix:
    """The strongest columns of a range of rows, [n, D]; none of those that start at random.

    Args:
        counts: of all rows of the table. values: the range, counted from the first row of features.
    """
    live = _live(config, features)[values]
    history = np.array([config.tables.features[name].start == "history" for name in features.names])
    wanted = values[history[features.feature_of(values + features.items)]] + features.items
    most, sums = int(live.max()), sp.csr_matrix((len(values), items.dims))
    for first in range(0, items.rows if len(wanted) else 0, RANGE_ITEMS):
        last = min(first + RANGE_ITEMS, items.rows)
        offsets, columns, entries = items.entries(first, last)
        rows = sp.csr_matrix((entries, columns, offsets), shape=(last - first, items.dims))
        found = _of_users(prepared, features, rows, first, most, counts, wanted)
        found = found + _of_items(features, rows, first, counts, wanted)
        places = sp.csr_matrix((np.ones(len(wanted)), (wanted - features.items - values[0], np.arange(len(wanted)))))
        places.resize(len(values), len(wanted))
        sums = pruned(sp.csr_matrix(sums + places @ found), KEPT * most)
    found = [strongest(sums[live == count], int(count)) for count in np.unique(live)]
    order = np.concatenate([np.flatnonzero(live == count) for count in np.unique(live)])
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return to_length_one(sp.csr_matrix(sp.vstack(found, format="csr")[back]))


def _of_users(
    prepared: Prepared,
    features: FeatureRows,
    rows: sp.csr_matrix,
    first: int,
    most: int,
    counts: Ints,
    wanted: Ints,
) -> sp.csr_matrix:
    """What a range of items gives the wanted rows (int64 [n], of the table) of users' features, [n, D]."""
    last = first + rows.shape[0]
    fold = FoldIn(counts, wanted, rows.shape[1], most)
    if wanted[0] < features.first[len(features.users)]:
        for block in prepared.scan("train", batch_users=BATCH_USERS, features=features.users):
            histories = _matrix(block.offsets, block.rows, features.rows)
            context = _matrix(*features.context(block), features.rows)
            known = np.unique(block.rows[(block.rows >= first) & (block.rows < last)])
            own = rows[known - first]
            fold.add(sp.csr_matrix(histories + context), known, own, np.ones(len(known)))
    return fold.sums


def _of_items(features: FeatureRows, rows: sp.csr_matrix, first: int, counts: Ints, wanted: Ints) -> sp.csr_matrix:
    """What a range of items gives the wanted rows of items' features, [n, D]."""
    items = np.arange(first, first + rows.shape[0])
    has = sp.csc_matrix(_matrix(*features.sides_of(items), features.rows))[:, wanted]
    weights = 1.0 / np.sqrt(np.maximum(counts[items], 1))
    return sp.csr_matrix(has.T @ sp.diags(weights) @ rows)


def _matrix(offsets: Ints, members: Ints, width: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(members)), members, offsets), shape=(len(offsets) - 1, width))


def _with_random(rows: sp.csr_matrix, live: Ints, first: int, seed: int) -> sp.csr_matrix:
    """The rows, with random ones in the place of those without an entry; `first` is the number of the first one."""
    empty = np.flatnonzero(np.diff(rows.indptr) == 0)
    lengths = np.zeros(len(live), np.int64)
    lengths[empty] = np.minimum(live[empty], rows.shape[1])
    drawn = random_entries(lengths, first, dims=rows.shape[1], seed=seed)
    places = drawn.rows - first, drawn.columns
    made = sp.csr_matrix((drawn.values.astype(np.float64), places), shape=rows.shape)
    return sp.csr_matrix(rows + made)


def live_of_features(config: Config, features: FeatureRows) -> int:
    """Live entries that the tables of features bring into the budget."""
    return int(_live(config, features).sum())

"""The tasks of features: what the rounds of `features.py` do to one part.

In: parts of a feature's table, grouped like those of a log (its users are users or items, its items are values), beside
the parts of the log. Out: how many training users, or items, have each value; then lists of rows: beside histories, or
in the order of the item rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hse_dist.config import DataSettings
from hse_dist.data.grouping import Part, group
from hse_dist.data.hashing import BUCKET_SEED, hash_ids
from hse_dist.data.histories import Selection, hidden_entries, select, trains
from hse_dist.data.lists import Lists, slice_lists, take_lists, to_arrow
from hse_dist.data.prepared import FEATURE
from hse_dist.data.schema import LogSchema
from hse_dist.data.shuffle import Spills
from hse_dist.data.task_memory import measured
from hse_dist.data.vocabulary import positions, take_rows
from hse_dist.progress import Meter

ITEMS_PER_ROW_GROUP = 1 << 16


@dataclass(frozen=True)
class FeatureTask:
    """A part of a feature's table; pickles."""

    settings: DataSettings
    name: str
    part: int
    work: str
    """Folder of the log's rounds."""
    schema: LogSchema | None = None
    """Of the spills that a part is still to be grouped of: values that stand in the log itself."""
    spills: tuple[str, ...] = ()
    meter: str = ""

    @property
    def folder(self) -> str:
        return f"{self.work}/features/{self.name}/part-{self.part:05d}"


@measured
def group_log_values(task: FeatureTask) -> None:
    """Group a part of the values that stand in the log itself, those beside a target of a held-out user left out: a
    value may tell of the item that stands in its line."""
    assert task.schema is not None
    log, chosen = _selected(task)
    spills = Spills(task.spills, task.part, task.schema)
    hidden = _hidden_lines(spills, log, hidden_entries(log, chosen, task.settings))
    group(lambda name: spills.read(name).filter(pa.array(~hidden)), timed=False).save(task.folder)
    Meter(task.meter)(1.0, spills.rows)


def _hidden_lines(spills: Spills, log: Part, hidden: np.ndarray) -> np.ndarray:
    """Which lines have a user and an item of these entries of the log: bool [lines]."""
    owner = np.searchsorted(log.offsets, hidden, side="right") - 1
    users = np.unique(owner)
    found = _places(spills.read("user"), log.users.take(pa.array(users)))
    lines = np.flatnonzero(found >= 0)
    hashes = hash_ids(log.items, BUCKET_SEED).view(np.int64)
    order = np.argsort(hashes)
    of_lines = spills.read("timestamp").to_numpy()[lines]
    code = order[np.minimum(np.searchsorted(hashes, of_lines, sorter=order), len(order) - 1)]
    known = hashes[code] == of_lines
    pairs = np.searchsorted(users, owner) * len(order) + log.codes[hidden]
    mask = np.zeros(len(found), bool)
    mask[lines[known]] = np.isin(found[lines[known]] * len(order) + code[known], pairs)
    return mask


def _selected(task: FeatureTask) -> tuple[Part, Selection]:
    """The log's part, and what of it is used."""
    folder = f"{task.work}/part-{task.part:05d}"
    log = Part.load(folder)
    with np.load(f"{folder}/counts.npz") as counts:
        return log, select(log, counts["places"] >= 0, task.settings)


@measured
def count_user_values(task: FeatureTask) -> None:
    """Write how many training users of the part have each of its values."""
    own, (log, chosen) = Part.load(task.folder), _selected(task)
    found = _places(log.users, own.users)[trains(chosen, task.settings)]
    has = np.zeros(len(own.users), bool)
    has[found[found >= 0]] = True
    _save_counts(task, own, has)


@measured
def count_item_values(task: FeatureTask) -> None:
    """Write the row of each item of the part, and how many items with a row have each of its values."""
    own = Part.load(task.folder)
    order = pc.sort_indices(own.users)
    places = positions(own.users.take(order), Path(task.work) / "items.arrow")
    rows = np.empty(len(order), np.int32)
    rows[order.to_numpy()] = take_rows(Path(task.work) / "rows.npy", places)
    np.save(f"{task.folder}/item-rows.npy", rows)
    _save_counts(task, own, rows >= 0)


def _save_counts(task: FeatureTask, own: Part, has: np.ndarray) -> None:
    np.save(f"{task.folder}/users-of-items.npy", own.count(own.of_entries(has)))
    Meter(task.meter)(1.0, len(own.codes))


def user_lists(
    work: Path, index: int, part: Part, selection: Selection, settings: DataSettings
) -> dict[str, pa.ListArray]:
    """Columns `feature_NAME` of all features of users: rows of each user of a part, list<uint32> [U] each.

    Args:
        work: folder of the log's rounds.
        index: of the part.
        selection: of the part.
    """
    lists = {}
    for name, feature in settings.features.items():
        if feature.of != "user":
            continue
        folder = work / "features" / name
        if feature.column is None:
            chosen = trains(selection, settings)
            offsets = np.concatenate([[0], np.cumsum(chosen)])
            rows = np.load(folder / "first-rows.npy")[index] + np.arange(offsets[-1])
        else:
            own = Part.load(str(folder / f"part-{index:05d}"))
            offsets, rows = _rows_of(folder, own)
            # who is not in the feature's table has the list of one more user, which is empty
            found = _places(part.users, own.users)
            ends = np.append(offsets, offsets[-1])
            offsets, rows = take_lists(ends, rows, np.where(found < 0, len(own.users), found))
        lists[FEATURE + name] = to_arrow(offsets, rows)
    return lists


def write_item_lists(folder: Path, parts: int, path: Path, items: int) -> int:
    """Write the rows of each item's values, column rows (list<uint32>), in the order of the item rows; how many items
    have any.

    Args:
        folder: of the feature's rounds.
        items: rows of the log's vocabulary.
    """
    owners, values = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for part in range(parts):
        own = Part.load(str(folder / f"part-{part:05d}"))
        offsets, rows = _rows_of(folder, own)
        owner = np.repeat(np.load(folder / f"part-{part:05d}" / "item-rows.npy"), np.diff(offsets))
        owners.append(owner[owner >= 0])
        values.append(rows[owner >= 0])
    owner = np.concatenate(owners)
    # an item is in one part, and its values rise there
    order = np.argsort(owner, kind="stable")
    offsets, rows = np.searchsorted(owner[order], np.arange(items + 1)), np.concatenate(values)[order]
    schema = pa.schema([("rows", pa.list_(pa.uint32()))])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, items, ITEMS_PER_ROW_GROUP):
            piece = to_arrow(*slice_lists(offsets, rows, first, min(first + ITEMS_PER_ROW_GROUP, items)))
            writer.write_table(pa.table([piece], schema=schema))
    return int(np.count_nonzero(np.diff(offsets)))


def _rows_of(folder: Path, own: Part) -> Lists:
    """Rows of the values of each user of a feature's part, rising; without the values that are left out."""
    rows = take_rows(folder / "rows.npy", positions(own.items, folder / "values.arrow"))[own.codes].astype(np.int64)
    kept = rows >= 0
    owner, rows = own.of_entries(np.arange(len(own.users)))[kept], rows[kept]
    order = np.lexsort((rows, owner))
    return np.searchsorted(owner, np.arange(len(own.users) + 1)), rows[order]


def _places(users: pa.Array, among: pa.Array) -> np.ndarray:
    """Position of each user among others, −1 where it is not there; int64 [U]."""
    return pc.index_in(users, value_set=among).fill_null(-1).to_numpy().astype(np.int64)

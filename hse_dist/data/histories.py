"""Who is held out, what is held back, and the Parquet files that say so.

In: the parts of `grouping` and the row of every item. Out: per split and bucket one Parquet file of histories. Pure
functions decide (`select`, `targets`), `HistoryWriter` writes. All decisions follow from ids and the split seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.config import DataSettings, SplitSettings
from hse_dist.data.grouping import Part
from hse_dist.data.hashing import SPLIT_SALT, TARGET_SALT, fraction_of, hash_ids, mix
from hse_dist.data.manifest import SPLITS
from hse_dist.data.vocabulary import plain_ids

LEFT_OUT = -1


@dataclass(frozen=True)
class Selection:
    """What of a part is used."""

    keep: np.ndarray
    """bool [L]: entries of kept items and kept users."""
    split: np.ndarray
    """int8 [U]: index into SPLITS, or LEFT_OUT."""
    short: int
    """Held-out users left out because they have one item only."""


def select(part: Part, item_kept: np.ndarray, settings: DataSettings) -> Selection:
    """Apply the minimum counts and split the users.

    Args:
        part: histories before any minimum count on users.
        item_kept: bool [I] of the part's items.
        settings: `min_user_count` and `split` count.
    """
    keep = item_kept[part.codes]
    counts = _sums(keep, part.offsets)
    draw = fraction_of(hash_ids(part.users, settings.split.seed + SPLIT_SALT))
    held_out = settings.split.test + settings.split.valid
    split = np.where(draw < settings.split.test, 2, np.where(draw < held_out, 1, 0)).astype(np.int8)
    split[counts < settings.min_user_count] = LEFT_OUT
    short = (split > 0) & (counts < 2)
    split[short] = LEFT_OUT
    split[counts == 0] = LEFT_OUT
    keep &= part.of_entries(split >= 0)
    return Selection(keep, split, int((short & (counts == 1)).sum()))


def trains(selection: Selection, settings: DataSettings) -> np.ndarray:
    """Which users train: bool [U]; those that are held out as well where the split is within users."""
    return selection.split >= 0 if settings.split.kind == "within_users" else selection.split == 0


def training_entries(part: Part, selection: Selection, settings: DataSettings) -> np.ndarray:
    """Which entries train: bool [L]; of held-out users, where they train, all but the targets."""
    entries: np.ndarray = selection.keep & part.of_entries(trains(selection, settings))
    if settings.split.kind == "within_users":
        entries[hidden_entries(part, selection, settings)] = False
    return entries


def hidden_entries(part: Part, selection: Selection, settings: DataSettings) -> np.ndarray:
    """Places of the entries that are targets of held-out users, rising; int64."""
    held_out = np.flatnonzero(selection.keep & part.of_entries(selection.split > 0))
    users = np.flatnonzero(selection.split > 0)
    owner = part.of_entries(np.arange(len(part.users)))[held_out]
    order = _target_order(part, owner, part.codes[held_out], settings.split)
    lengths = _sums(selection.keep, part.offsets)[users]
    return held_out[targets(lengths, order, settings.split.target)]


def _sums(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Number of true entries of each history, int64 [U]; every user has entries."""
    return np.add.reduceat(mask, offsets[:-1], dtype=np.int64) if len(mask) else np.zeros(len(offsets) - 1, np.int64)


def target_sizes(lengths: np.ndarray, share: float) -> np.ndarray:
    """Items of each history that are the target: the share, rounded to nearest, at least one and not all; int64 [U]."""
    return np.clip(np.floor(lengths * share + 0.5).astype(np.int64), 1, lengths - 1)


def targets(lengths: np.ndarray, order: np.ndarray | None, share: float) -> np.ndarray:
    """Which entries are the target.

    Args:
        lengths: int64 [U] of histories with at least two entries.
        order: uint64 [L], the entries with the smallest numbers of a history are the target; None: its last entries.
        share: of the history that is the target.

    Returns:
        bool [L].
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    sizes = target_sizes(lengths, share)
    place = np.arange(len(owner)) - first
    if order is None:
        return place >= (lengths - sizes)[owner]
    chosen = np.empty(len(owner), bool)
    chosen[np.lexsort((order, owner))] = place < sizes[owner]
    return chosen


def split_tables(
    part: Part,
    selection: Selection,
    rows: np.ndarray,
    settings: DataSettings,
    beside: Mapping[str, pa.Array] | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """(split, table of its histories), one after the other: columns user, rows and, of held-out users, target; then
    those `beside`.

    Args:
        part: the histories.
        selection: of the same part.
        rows: int32 [I], the row of each of the part's items; those kept have one.
        settings: `split`, and whether there are timestamps.
        beside: further columns, of all users [U] of the part.
    """
    for index, name in enumerate(SPLITS):
        of_split = selection.split == index if index else trains(selection, settings)
        if of_split.any():
            table, chosen = _table(part, selection, rows, settings, index), pa.array(np.flatnonzero(of_split))
            for column, values in (beside or {}).items():
                table = table.append_column(column, values.take(chosen))
            yield name, table


def _table(part: Part, selection: Selection, rows: np.ndarray, settings: DataSettings, index: int) -> pa.Table:
    of_split = selection.split == index if index else trains(selection, settings)
    chosen = np.flatnonzero(of_split)
    entries = selection.keep & part.of_entries(of_split) if index else training_entries(part, selection, settings)
    codes = part.codes[entries]
    lengths = _sums(entries, part.offsets)[chosen]
    del entries
    if settings.columns.timestamp is None:
        key = np.repeat(np.arange(len(chosen)) * (int(rows.max()) + 1), lengths)
        key += rows[codes]
        codes = codes[np.argsort(key)]
        del key
    columns: dict[str, Any] = {"user": plain_ids(part.users.take(pa.array(chosen)))}
    if index == 0:
        columns["rows"] = _lists(rows[codes], lengths)
        return pa.table(columns)
    target_order = _target_order(part, np.repeat(chosen, lengths), codes, settings.split)
    target = targets(lengths, target_order, settings.split.target)
    sizes = target_sizes(lengths, settings.split.target)
    columns["rows"] = _lists(rows[codes[~target]], lengths - sizes)
    columns["target"] = _lists(rows[codes[target]], sizes)
    return pa.table(columns)


def _target_order(part: Part, owner: np.ndarray, codes: np.ndarray, split: SplitSettings) -> np.ndarray | None:
    if split.target_order == "last":
        return None
    seed = split.seed + TARGET_SALT
    return mix(hash_ids(part.users, seed)[owner] ^ mix(hash_ids(part.items, seed))[codes])


def _lists(rows: np.ndarray, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.astype(np.uint32)))


class HistoryWriter:
    """One Parquet file of histories, written in row groups of exactly `users_per_row_group` users (the last may be
    less).

    The file appears with the first user. Row groups do not show in how many pieces the users came.
    """

    def __init__(self, folder: Path, split: str, bucket: int, users_per_row_group: int, counted: Sequence[str]) -> None:
        self.path = f"histories/split={split}/bucket={bucket:03d}/part.parquet"
        self.row_groups: list[int] = []
        self.interactions = 0
        self._file, self._size = folder / self.path, users_per_row_group
        self._counted = set(counted)
        self._writer: pq.ParquetWriter | None = None
        self._pending: pa.Table | None = None

    def write(self, table: pa.Table) -> None:
        """Append users."""
        for name in self._counted & set(table.column_names):
            self.interactions += sum(len(chunk.values) for chunk in table.column(name).chunks)
        if self._pending is not None:
            table = pa.concat_tables([self._pending, table])
        full = table.num_rows // self._size * self._size
        for first in range(0, full, self._size):
            self._write(table.slice(first, self._size))
        # a copy: a view would hold the whole table while the next part is worked on
        rest = pa.array(np.arange(full, table.num_rows))
        self._pending = table.take(rest).combine_chunks() if len(rest) else None

    def _write(self, group: pa.Table) -> None:
        if self._writer is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # rows hardly repeat within a group of users, so a dictionary would only cost time
            self._writer = pq.ParquetWriter(
                self._file, group.schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
        # one chunk a column: chunk borders would show in the pages
        self._writer.write_table(group.combine_chunks(), row_group_size=self._size)
        self.row_groups.append(group.num_rows)

    def close(self) -> dict[str, Any] | None:
        """Finish the file. Returns its entry in the manifest, None if there is no file."""
        if self._pending is not None:
            self._write(self._pending)
        if self._writer is None:
            return None
        self._writer.close()
        with self._file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "path": self.path,
            "users": sum(self.row_groups),
            "interactions": self.interactions,
            "row_groups": self.row_groups,
            "sha256": digest,
        }

"""A prepared folder, opened for reading.

In: a folder that `prepare` wrote. Out: its vocabulary, and its histories as `HistoryBlock`s — offsets and rows, the
shape that a KeyedJaggedTensor or a CSR matrix wants — streamed in file order, or as a scipy matrix where a closed form
needs it. No Python object a user is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from hse_dist.data.generations import Generations
from hse_dist.data.lists import from_arrow, joined_lists, no_lists, slice_lists, take_lists
from hse_dist.data.manifest import SPLITS, File, PreparedFeature, read_manifest
from hse_dist.errors import DataError
from hse_dist.files import refuse_devices

FEATURE = "feature_"
"""Begins the column of a feature of users, in files of histories."""


@dataclass(frozen=True)
class HistoryBlock:
    """Histories of B users, back to back."""

    offsets: np.ndarray
    """int64 [B + 1]: history of user b is rows[offsets[b]:offsets[b + 1]]."""
    rows: np.ndarray
    """int64 [L], in time order (rising without timestamps)."""
    target_offsets: np.ndarray | None = None
    """int64 [B + 1], of held-out users where asked for."""
    target_rows: np.ndarray | None = None
    """int64 [T]."""
    features: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Of each feature of users that was asked for: offsets int64 [B + 1], and rows of its values int64 [n]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, users: np.ndarray) -> HistoryBlock:
        """The histories of these users (int64 [n]) in this order, without targets."""
        features = {name: take_lists(*lists, users) for name, lists in self.features.items()}
        return HistoryBlock(*take_lists(self.offsets, self.rows, users), features=features)

    def slice(self, first: int, last: int) -> HistoryBlock:
        """Users first … last − 1, without targets; rows are a view."""
        features = {name: slice_lists(*lists, first, last) for name, lists in self.features.items()}
        return HistoryBlock(*slice_lists(self.offsets, self.rows, first, last), features=features)

    def targets(self) -> HistoryBlock:
        """The targets as histories of their own; none without targets."""
        if self.target_offsets is None or self.target_rows is None:
            return HistoryBlock(np.zeros(len(self) + 1, np.int64), np.zeros(0, np.int64))
        return HistoryBlock(self.target_offsets, self.target_rows)

    @staticmethod
    def concatenate(blocks: Sequence[HistoryBlock]) -> HistoryBlock:
        """The users of all blocks, one block after the other, without targets; those of a block that lacks a feature
        of another one have no values of it."""
        features = {
            name: joined_lists([block.features.get(name, no_lists(len(block))) for block in blocks])
            for name in dict.fromkeys(name for block in blocks for name in block.features)
        }
        return HistoryBlock(*joined_lists([(block.offsets, block.rows) for block in blocks]), features=features)


def no_histories(users: int, features: Sequence[str] = ()) -> HistoryBlock:
    """Users without history, nor values of these features."""
    return HistoryBlock(*no_lists(users), features={name: no_lists(users) for name in features})


class Prepared:
    """A prepared folder. Reads files on demand and keeps none in memory; pickles as its path.

    Raises:
        DataError: no prepared folder there, or a file of it is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.manifest, self.items, self._files, self.features = read_manifest(self.folder)
        self._vocabulary: pa.Table | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.folder,)

    @property
    def fingerprint(self) -> str:
        """sha256 of the content: of the vocabulary, and of the manifest, which has that of every file of histories."""
        digest = hashlib.sha256()
        for name in ("manifest.json", "vocabulary.parquet"):
            path = self.folder / name
            with reading(path):
                refuse_devices(path)
            with reading(path), path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def counts(self) -> np.ndarray:
        """Interactions by training users of each row, int64 [items]; falling, but for rows that an extension added."""
        return self._read_vocabulary().column("count").to_numpy().astype(np.int64)

    def generations(self) -> Generations:
        """Since which version each row is what it is, and which have no item any more."""
        path = self.folder / "vocabulary.parquet"
        with reading(path):
            refuse_devices(path)
            file = pq.ParquetFile(path)
            if "since" not in file.schema_arrow.names:  # it extends nothing
                return Generations.first(self.items)
            table = file.read(columns=["since", "evicted"])
            table.validate(full=True)
            kinds = [field.type for field in table.schema]
            if (
                kinds != [pa.uint32(), pa.bool_()]
                or table.num_rows != self.items
                or any(c.null_count for c in table.columns)
            ):
                raise ValueError(
                    f"its generations are {table.num_rows} of {', '.join(map(str, kinds))}, or some are missing"
                )
            since, evicted = (table.column(name).to_numpy() for name in ("since", "evicted"))
            version = len(self.manifest.get("lineage", []))
            if since.max() > version:
                raise ValueError(f"its generations are of version {since.max()}, and the folder is version {version}")
            return Generations(since.astype(np.int64), evicted)

    def item_ids(self) -> pa.Array:
        """Raw id of each row, int64 or string [items]."""
        return self._read_vocabulary().column("item").combine_chunks()

    def users(self, split: str) -> int:
        """Users of a split."""
        return sum(file.users for file in self._of(split))

    def row_groups(self, split: str) -> list[tuple[str, int, int]]:
        """(path in the folder, row group, users) of a split in file order."""
        return [(file.path, i, users) for file in self._of(split) for i, users in enumerate(file.row_groups)]

    def checksums(self, split: str) -> dict[str, str]:
        """SHA-256 of the files of a split, by path."""
        return {file.path: file.sha256 for file in self._of(split)}

    def feature(self, name: str) -> PreparedFeature:
        """A feature. Raises DataError: there is none of this name."""
        if name not in self.features:
            known = ", ".join(self.features) or "none"
            raise DataError(
                f"The prepared folder {self.folder} has no feature {name!r}.", cause=f"It has {known}: prepare it anew."
            )
        return self.features[name]

    def feature_counts(self, name: str) -> np.ndarray:
        """How many training users, or items, have each value, int64 [rows]; of users' own ids the training
        interactions of each."""
        feature = self.feature(name)
        if feature.vocabulary is None:
            return np.concatenate([np.diff(block.offsets) for block in self.scan("train")])
        return self._read_values(feature).column("count").to_numpy().astype(np.int64)

    def feature_values(self, name: str) -> pa.Array:
        """The value of each row as it was read, int64 or string [rows]; of users' own ids these."""
        feature = self.feature(name)
        if feature.vocabulary is None:
            with reading(self.folder / "histories"):
                return pa.concat_arrays([self._read_users(file) for file in self._of("train") if file.users])
        return self._read_values(feature).column("value").combine_chunks()

    def item_features(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the values of each item, in the order of the item rows: offsets int64 [items + 1], rows int64."""
        feature = self.feature(name)
        if feature.lists is None:
            raise DataError(f"The feature {name} is of users.")
        path = self.folder / feature.lists.path
        with self.open(feature.lists.path) as parquet, reading(path):
            if parquet.metadata.num_rows != self.items:
                raise ValueError(f"it has {parquet.metadata.num_rows} items, not {self.items}")
            limits = {"rows": feature.rows}
            batches = parquet.iter_batches(columns=["rows"], use_threads=False)
            blocks = [to_block(check_lists(batch, limits, path)) for batch in batches]
            _compare(path, feature.lists.sha256)
        whole = HistoryBlock.concatenate(blocks)
        return whole.offsets, whole.rows

    def limits(self, columns: Sequence[str], features: Sequence[str] = ()) -> dict[str, int]:
        """How many rows there are for each column of files of histories; those of features of users behind the others.

        Raises:
            DataError: there is no such feature of users.
        """
        if wrong := [name for name in features if self.feature(name).of != "user"]:
            raise DataError(f"The feature {wrong[0]} is of items: it is not beside histories.")
        return dict.fromkeys(columns, self.items) | {FEATURE + name: self.features[name].rows for name in features}

    def scan(
        self,
        split: str,
        columns: Sequence[str] = ("rows",),
        batch_users: int = 8192,
        features: Sequence[str] = (),
    ) -> Iterator[HistoryBlock]:
        """Histories of a split in file order, `batch_users` at a time, whatever the files; the last may be fewer.

        Args:
            split: train, valid or test.
            columns: `rows`, and `target` for the held-out splits.
            features: those of users that are read, too.
        """
        limits = self.limits(columns, features)
        held: list[pa.RecordBatch] = []
        for file in self._of(split):
            path = self.folder / file.path
            with self.open(file.path) as parquet, reading(path):
                if parquet.metadata.num_rows != file.users:
                    raise DataError(
                        f"{path} has {parquet.metadata.num_rows} users, the manifest says {file.users}.",
                        cause="Prepare it again.",
                    )
                for batch in parquet.iter_batches(batch_users, columns=list(limits), use_threads=False):
                    held.append(check_lists(batch, limits, path))
                    if sum(part.num_rows for part in held) >= batch_users:
                        joined = pa.concat_batches(held)
                        yield to_block(joined.slice(0, batch_users))
                        held = [joined.slice(batch_users)]
        if sum(part.num_rows for part in held):
            with reading(path):
                joined = pa.concat_batches(held)
            yield to_block(joined)

    def open(self, path: str) -> pq.ParquetFile:
        """A Parquet file of the folder."""
        with reading(self.folder / path):
            refuse_devices(self.folder / path)
            return pq.ParquetFile(self.folder / path)

    def matrix(self, split: str) -> sp.csr_matrix:
        """Histories (of held-out users: their input) as a float32 binary matrix [users, items]."""
        return self._matrix(split, "rows")

    def targets(self, split: str) -> sp.csr_matrix:
        """Targets of held-out users as a float32 binary matrix [users, items], users as in `matrix`."""
        return self._matrix(split, "target")

    def _matrix(self, split: str, column: str) -> sp.csr_matrix:
        blocks = list(self.scan(split, (column,)))
        if column == "target":
            blocks = [block.targets() for block in blocks]
        whole = HistoryBlock.concatenate(blocks)
        values = np.ones(len(whole.rows), np.float32)
        matrix = sp.csr_matrix((values, whole.rows, whole.offsets), shape=(len(whole), self.items))
        matrix.sort_indices()
        return matrix

    def _of(self, split: str) -> list[File]:
        if split not in self._files:
            raise DataError(f"There is no split {split!r}.", cause=f"There are {', '.join(SPLITS)}.")
        return self._files[split]

    def _read_values(self, feature: PreparedFeature) -> pa.Table:
        assert feature.vocabulary is not None
        path = self.folder / feature.vocabulary.path
        with self.open(feature.vocabulary.path) as file, reading(path):
            values = _checked_vocabulary(file, feature.rows, "value")
            _compare(path, feature.vocabulary.sha256)
            return values

    def _read_users(self, file: File) -> pa.Array:
        with self.open(file.path) as parquet, reading(self.folder / file.path):
            found, names = parquet.metadata.num_rows, parquet.schema_arrow.names
            if found != file.users or names.count("user") != 1:
                raise ValueError(f"it has {found} users, not {file.users}, and the columns {', '.join(names)}")
            users = parquet.read(columns=["user"], use_threads=False).column("user").combine_chunks()
            users.validate(full=True)
            if users.null_count or users.type not in (pa.int64(), pa.string()):
                raise ValueError(f"its users are {users.type}, or some are missing")
            return users

    def _read_vocabulary(self) -> pa.Table:
        if self._vocabulary is None:
            path = self.folder / "vocabulary.parquet"
            with reading(path):
                refuse_devices(path)
                self._vocabulary = _checked_vocabulary(pq.ParquetFile(path), self.items)
        return self._vocabulary


def _compare(path: Path, wanted: str) -> None:
    """Raises ValueError: the file is not the one that was prepared, though it could be one."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
            raise ValueError("its checksum is not the one in the manifest")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises about a file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} of the prepared folder cannot be read: {error}.", cause="Prepare it again.") from None


def _checked_vocabulary(file: pq.ParquetFile, items: int, what: str = "item") -> pa.Table:
    """The columns item, or value of a feature, and count.

    Raises:
        ValueError: they are not those of a vocabulary of so many items.
    """
    names = file.schema_arrow.names
    if file.metadata.num_rows != items or any(names.count(name) != 1 for name in (what, "count")):
        found = f"{file.metadata.num_rows} rows and the columns {', '.join(names)}"
        raise ValueError(f"it has {found}, not {items} rows with {what} and count")
    table = file.read(columns=[what, "count"])
    table.validate(full=True)
    kinds = [table.schema.field(name).type for name in (what, "count")]
    if kinds[0] not in (pa.int64(), pa.string()) or kinds[1] != pa.uint32() or any(c.null_count for c in table.columns):
        raise ValueError(f"its ids are {kinds[0]}, its counts {kinds[1]}, or some are missing")
    return table


def check_lists(batch: pa.RecordBatch, limits: Mapping[str, int], path: Path) -> pa.RecordBatch:
    """The batch, if these columns are lists of rows below a limit each: what is made of them indexes memory.

    Raises:
        DataError: they are not.
    """
    for name, limit in limits.items():
        kind = batch.schema.field(name).type if batch.schema.names.count(name) == 1 else None
        if kind is None or not pa.types.is_list(kind) or kind.value_type != pa.uint32():
            what = f"has the column {name} as {kind}, not as lists of uint32" if kind else f"has not one column {name}"
            raise DataError(f"{path} of the prepared folder {what}.", cause="Prepare it again.")
        rows = batch.column(name).flatten()
        if batch.column(name).null_count or rows.null_count:
            raise DataError(f"{path} of the prepared folder has missing {name}.", cause="Prepare it again.")
        most = rows.to_numpy().max(initial=0)
        if most >= limit:
            of = f"{limit} values" if name.startswith(FEATURE) else f"{limit} items"
            raise DataError(f"{path} of the prepared folder has row {most} of {of}.", cause="Prepare it again.")
    return batch


def to_block(batch: pa.RecordBatch) -> HistoryBlock:
    """A block of a record batch with columns `rows`, `target` and of features (list<uint32>), some of them."""
    names = batch.schema.names
    offsets, rows = from_arrow(batch.column("rows")) if "rows" in names else no_lists(batch.num_rows)
    features = {
        name.removeprefix(FEATURE): from_arrow(batch.column(name)) for name in names if name.startswith(FEATURE)
    }
    target, held = from_arrow(batch.column("target")) if "target" in names else (None, None)
    return HistoryBlock(offsets, rows, target, held, features)

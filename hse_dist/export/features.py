"""The rows of users' features as files of an export.

In: checked blocks of a feature's rows, weighted as they add up to a user's vector. Out: a file a feature,
`feature-NAME.parquet` — value (the raw value), columns and values (lists, as in `items.parquet`), a row a value — and
back, all of them in one matrix. Items' features have no files: their rows are in those of the items.

    u = Σ over the history of A_i + Σ over the values that the user has of their rows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from hse_dist.export.checks import MOST_ITEMS, check_ids, check_matrix
from hse_dist.export.content import Content
from hse_dist.export.rows import RowBlock, Rows
from hse_dist.export.tables import list_fields, lists_of, read_lists
from hse_dist.files import refuse_devices

MOST_FEATURES, LONGEST_NAME = 1024, 64
Source = tuple[pa.Array, Iterable[RowBlock]]
"""The raw values of a feature, and the rows of these values in order; gains mean nothing."""


@dataclass(frozen=True)
class UserFeatures:
    """Features of users, in order of their names.

    Attributes:
        values: raw values of each feature, distinct: those of its rows.
        matrix: float32 CSR [rows of all of them, D], one feature after the other.
    """

    names: tuple[str, ...]
    values: tuple[pa.Array, ...]
    matrix: sp.csr_matrix

    def digests(self) -> dict[str, str]:
        """The content of each."""
        found, first = {}, 0
        for name, values in zip(self.names, self.values, strict=True):
            part = self.matrix[first : first + len(values)]
            content = Content(part.shape[1], values.type, None)
            content.add(values, _ones(len(values)), np.diff(part.indptr), part.indices, part.data)
            found[name] = content.digest
            first += len(values)
        return found


@dataclass(frozen=True)
class Written:
    """What the manifest says of a feature, and its content."""

    rows: int
    live_entries: int
    digest: str

    @property
    def described(self) -> dict[str, int]:
        return {"rows": self.rows, "live_entries": self.live_entries}


def feature_files(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the files."""
    return tuple(f"feature-{name}.parquet" for name in names)


def write_features(folder: Path, features: Mapping[str, Source], dims: int, value_type: str) -> dict[str, Written]:
    """Write the file of each feature, one block in memory at a time, in the order of `features`.

    Raises:
        ExportError: the rows do not fit the values or `dims`. NumericError: a value is not finite; names the row.
    """
    written = {}
    for (name, (values, blocks)), file in zip(features.items(), feature_files(features), strict=True):
        rows = Rows(
            _without_gains(blocks), values, dims, "free", value_type, Content(dims, values.type, None), f"{name} value"
        )
        schema = pa.schema([pa.field("value", values.type), *list_fields(dims, value_type)])
        packed = ["columns.list.element"]  # see `ItemsWriter`
        with pq.ParquetWriter(folder / file, schema, compression="zstd", use_dictionary=packed) as parquet:
            for part, _, lengths, columns, entries in rows:
                lists = lists_of(lengths, columns, entries, dims, value_type)
                parquet.write_table(pa.table([part, *lists], schema=schema))
        written[name] = Written(len(values), rows.live, rows.content.digest)
    return written


def _without_gains(blocks: Iterable[RowBlock]) -> Iterable[RowBlock]:
    return (RowBlock(one.offsets, one.columns, one.values, _ones(len(one.gains))) for one in blocks)


def _ones(count: int) -> np.ndarray:
    return np.ones(count, np.float32)


def described_features(manifest: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What a manifest says of features, by name; exports of a model without any say nothing.

    Raises:
        ValueError: it is something else.
    """
    described = manifest.get("features", {})
    if not isinstance(described, dict) or len(described) > MOST_FEATURES:
        raise ValueError("its features are not described")
    found = {}
    for name in sorted(described):
        facts = described[name]
        # names are parts of file names
        fits = name.isascii() and name.isidentifier() and name == name.lower() and len(name) <= LONGEST_NAME
        if not fits or not isinstance(facts, dict):
            raise ValueError("its features are not described")
        rows, live = facts.get("rows"), facts.get("live_entries")
        if type(rows) is not int or not 1 <= rows <= MOST_ITEMS or type(live) is not int or not 0 <= live < 2**62:
            raise ValueError(f"its feature {name} has {rows!r} rows and {live!r} live entries")
        found[name] = {"rows": rows, "live_entries": live}
    return found


def read_features(folder: Path, described: Mapping[str, Mapping[str, int]], dims: int) -> UserFeatures | None:
    """What the files hold; None: there are none.

    Args:
        described: what `described_features` gave.

    Raises:
        OSError, ValueError, LookupError, pa.ArrowException: a file cannot be read, or holds something else.
    """
    if not described:
        return None
    parts = [
        _read(folder / file, facts, dims)
        for file, facts in zip(feature_files(described), described.values(), strict=True)
    ]
    values, matrices = zip(*parts, strict=True)
    return UserFeatures(tuple(described), values, _stacked(matrices))


def _stacked(matrices: tuple[sp.csr_matrix, ...]) -> sp.csr_matrix:
    if len(matrices) == 1:
        return matrices[0]
    stacked = sp.vstack(matrices, "csr")
    stacked.has_canonical_format = True
    return stacked


def _read(path: Path, facts: Mapping[str, int], dims: int) -> tuple[pa.Array, sp.csr_matrix]:
    refuse_devices(path)
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != facts["rows"]:
            raise ValueError(f"{path.name} has {file.metadata.num_rows} values")
        table = file.read()
    if table.num_rows != facts["rows"]:
        raise ValueError(f"{path.name} has {table.num_rows} values")
    values = check_ids(table["value"].combine_chunks())
    csr = read_lists(table, dims)
    return values, check_matrix(*csr, {"items": facts["rows"], "dims": dims, "live_entries": facts["live_entries"]})

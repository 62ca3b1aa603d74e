"""What an export says, as one number that does not depend on how it is stored.

In: ids, rows and gains, in blocks of any size, and what else answers depend on. Out: a sha256. Exports of the same
content answer the same, whatever their format; a delta names the content that it changes. Rows of features are content
too; without any, the digest is that of the items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa


class Content:
    """Add all rows in order, then ask for `digest`."""

    def __init__(self, dims: int, ids: pa.DataType, user_entries: int | None) -> None:
        self._head = f"{dims} {ids} {user_entries}"
        self._parts = {name: hashlib.sha256() for name in ("sizes", "ids", "gains", "lengths", "columns", "values")}

    def add(
        self, ids: pa.Array, gains: np.ndarray, lengths: np.ndarray, columns: np.ndarray, values: np.ndarray
    ) -> None:
        """The next rows, columns rising within each, as a reader will see them."""
        if pa.types.is_integer(ids.type):
            self._parts["ids"].update(ids.to_numpy(zero_copy_only=False).astype("<i8", casting="unsafe").tobytes())
        else:
            ends, texts = _texts(ids)
            self._parts["sizes"].update(np.diff(ends).astype("<i8").tobytes())
            self._parts["ids"].update(texts)
        for name, numbers, kind in (
            ("gains", gains, "<f4"),
            ("lengths", lengths, "<i8"),
            ("columns", columns, "<i4"),
            ("values", values, "<f4"),
        ):
            self._parts[name].update(np.ascontiguousarray(numbers, kind).data)

    @property
    def digest(self) -> str:
        parts = [self._head, *(part.hexdigest() for part in self._parts.values())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def with_features(digest: str, features: Mapping[str, str]) -> str:
    """The digest of an export whose items have the digest `digest`, with those of its features of users, by name."""
    if not features:
        return digest
    parts = [digest, *(f"{name} {features[name]}" for name in sorted(features))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _texts(ids: pa.Array) -> tuple[np.ndarray, pa.Buffer]:
    """Ends of the strings within their bytes, and these bytes."""
    wide = ids.cast(pa.large_binary())
    _, offsets, texts = wide.buffers()
    ends = np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    return ends - ends[0], (texts or pa.py_buffer(b""))[int(ends[0]) : int(ends[-1])]

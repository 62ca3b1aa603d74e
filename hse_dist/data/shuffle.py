"""Brings all interactions of a user into one part, with memory bounded by a setting.

In: the fragments of a log. Out: spill files, each one Arrow IPC file with one record batch a part; `Spills` reads a
column of one part back from all of them. A task holds a share of its memory before it spills, and a part is a range of
the user hash small enough for one task.

One file a spill, rather than one a part and fragment: a log of 1 000 fragments and 1 000 parts stays 1 000 files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from hse_dist.config import DataSettings
from hse_dist.data.hashing import BUCKET_SEED, bucket_of, hash_ids
from hse_dist.data.reader import read
from hse_dist.data.schema import Fragment, LogSchema
from hse_dist.data.sketch import Admitted
from hse_dist.data.task_memory import give_back, memory_bytes

ROW_BYTES = {True: 288, False: 192}
"""Memory that one interaction needs while its part is grouped: integer ids, string ids. Measured where every id is a
new one and hash tables have just grown; where ids repeat twenty times it is 54."""
TEXT_FACTOR = 5
"""The same for each byte of the longer of its two ids where they are strings, Arrow's offsets included."""
SAMPLED = 4
"""Fragments whose first rows tell how long ids are."""
SPILL_SHARE = 6
"""A spill holds this part of the memory: sorting it takes as much again and more, and the reader has its own."""
MAX_PARTS = 1024
"""Most parts of a bucket: beyond that a spill's batches become too small to be worth reading."""
TAKE_ROWS = 1 << 16
"""Rows of a spill that are put in order at a time."""


@dataclass(frozen=True)
class SpillTask:
    """What one task of the shuffle needs to know; pickles."""

    index: int
    fragment: Fragment
    schema: LogSchema
    settings: DataSettings
    parts: int
    folder: str
    meter: str = ""
    """Where the task notes how far it is."""
    admitted: str = ""
    """File of the items whose interactions are spilt (`sketch.Admitted`); those of all where there is none."""


@dataclass(frozen=True)
class Spilt:
    """What a task of the shuffle wrote; pickles."""

    files: list[str]
    """Paths in order."""
    rows: np.ndarray
    """int64 [parts], interactions of each part."""


def count_parts(fragments: Sequence[Fragment], schema: LogSchema, settings: DataSettings) -> int:
    """Ranges of the user hash that the log is shuffled into: a multiple of `buckets`, each small for a task."""
    needed = sum(fragment.rows for fragment in fragments) * row_bytes(fragments, schema, settings)
    per_bucket = -(-needed // (memory_bytes(settings) * settings.buckets))
    return settings.buckets * min(MAX_PARTS, max(1, per_bucket))


def row_bytes(fragments: Sequence[Fragment], schema: LogSchema, settings: DataSettings) -> int:
    """Memory that one interaction needs while its part is grouped; where ids are strings, by the first rows of a few
    fragments."""
    texts = [name for name in ("user", "item") if not pa.types.is_integer(getattr(schema, name))]
    if not texts:
        return ROW_BYTES[True]
    longest = 0.0
    for fragment in fragments[:: -(-len(fragments) // SAMPLED)]:
        first = read(fragment, schema, settings.columns, settings.min_rating, memory=memory_bytes(settings))
        for batch in islice(first, 1):
            longest = max(longest, *(batch.column(name).nbytes / batch.num_rows for name in texts))
    return ROW_BYTES[False] + int(TEXT_FACTOR * longest)


def spill(task: SpillTask, seen: Callable[[float, int], None]) -> Spilt:
    """Write a fragment's spill files; `seen` is told the share of the fragment read so far, and the interactions."""
    held = _Held(task)
    files: list[str] = []
    rows = np.zeros(task.parts, np.int64)
    settings, memory = task.settings, memory_bytes(task.settings)
    admitted = Admitted(task.admitted) if task.admitted else None
    memory -= 0 if admitted is None else admitted.nbytes
    batches = read(
        task.fragment,
        task.schema,
        settings.columns,
        settings.min_rating,
        memory=memory,
        seen=lambda share: seen(share, held.total),
    )
    for batch in batches if admitted is None else map(admitted.of_batch, batches):
        held.add(batch)
        if held.size >= memory // SPILL_SHARE:
            files.append(held.write(len(files), rows))
    if held.rows:
        files.append(held.write(len(files), rows))
    return Spilt(files, rows)


class _Held:
    """Interactions that wait to be spilt, column by column."""

    def __init__(self, task: SpillTask) -> None:
        self._task, self._schema = task, task.schema.arrow()
        self._columns: dict[str, list[pa.Array]] = {name: [] for name in self._schema.names}
        self._parts: list[np.ndarray] = []
        self.size = self.rows = self.total = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Hold a batch, and the part of each of its rows."""
        if not batch.num_rows:
            return
        for name, chunks in self._columns.items():
            chunks.append(batch.column(name))
        parts = bucket_of(hash_ids(batch.column("user"), BUCKET_SEED), self._task.parts)
        self._parts.append(parts.astype(np.uint16 if self._task.parts <= 1 << 16 else np.int64))
        self.size, self.rows = self.size + batch.nbytes, self.rows + batch.num_rows
        self.total += batch.num_rows

    def write(self, number: int, rows: np.ndarray) -> str:
        """Write what is held as one file, forget it, and add the rows of each part to `rows`."""
        path = Path(self._task.folder) / f"spill-{self._task.index:05d}-{number:05d}.arrow"
        parts = np.concatenate(self._parts)
        counts = np.bincount(parts, minlength=self._task.parts)
        # a stable sort of 16-bit numbers is a radix sort
        order = np.argsort(parts, kind="stable")
        # one column after the other, so that no more than one is held twice
        columns = [_joined(self._columns[name]) for name in self._schema.names]
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            for batch in _ordered(columns, order, counts, self._schema):
                writer.write_batch(batch)
        self._parts.clear()
        self.size = self.rows = 0
        rows += counts
        del parts, order, columns
        give_back()  # of what is freed in pieces, the C library would keep half as much again as is held
        return str(path)


def _joined(chunks: list[pa.Array]) -> pa.Array:
    """The chunks as one array; empties the list."""
    whole = pa.concat_arrays(chunks)
    chunks.clear()
    return whole


def _ordered(
    columns: list[pa.Array], order: np.ndarray, counts: np.ndarray, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """One batch a part; several small parts are put in order together, and no more than a part is copied at a time."""
    ends = np.cumsum(counts)
    starts = ends - counts
    part = 0
    while part < len(ends):
        first = int(starts[part])
        last = max(part + 1, int(np.searchsorted(ends, first + TAKE_ROWS, side="right")))
        chosen = pa.array(order[first : int(ends[last - 1])])
        taken = pa.RecordBatch.from_arrays([column.take(chosen) for column in columns], schema=schema)
        for start, length in zip(starts[part:last].tolist(), counts[part:last].tolist(), strict=True):
            yield taken.slice(start - first, length)
        part = last


class Spills:
    """The interactions of one part in all spill files, read a column at a time.

    Columns are copied out file by file, so that no more than one file's pages are mapped.
    """

    def __init__(self, files: Sequence[str], part: int, schema: LogSchema) -> None:
        self._files, self._part, self._schema = files, part, schema.arrow()
        self.timed = schema.timestamp is not None

    def read(self, name: str) -> pa.Array:
        """A column in the order of the spill files; the copy in memory is the caller's."""
        kind = self._schema.field(name).type
        if pa.types.is_large_string(kind):
            return self._strings(name)
        whole, first = np.empty(self.rows, kind.to_pandas_dtype()), 0
        for chunk in self._chunks(name):
            whole[first : first + len(chunk)] = chunk.to_numpy()
            first += len(chunk)
        return pa.array(whole)

    @cached_property
    def rows(self) -> int:
        """Interactions of the part."""
        return sum(len(chunk) for chunk in self._chunks("user"))

    def _strings(self, name: str) -> pa.Array:
        sizes = [(len(offsets) - 1, int(offsets[-1] - offsets[0])) for offsets, _ in self._texts(name)]
        offsets = np.zeros(sum(rows for rows, _ in sizes) + 1, np.int64)
        text, first, filled = np.empty(sum(size for _, size in sizes), np.uint8), 0, 0
        for (own, buffer), (rows, size) in zip(self._texts(name), sizes, strict=True):
            offsets[first + 1 : first + rows + 1] = own[1:] - own[0] + filled
            text[filled : filled + size] = buffer[own[0] : own[-1]]
            first, filled = first + rows, filled + size
        return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(text))

    def _texts(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(offsets, the bytes that they point into) of each file."""
        for chunk in self._chunks(name):
            _, offsets, text = chunk.buffers()
            if len(chunk):
                own = np.frombuffer(offsets, np.int64, len(chunk) + 1, chunk.offset * 8)
                yield own, np.frombuffer(text, np.uint8) if text is not None and text.size else np.zeros(0, np.uint8)

    def _chunks(self, name: str) -> Iterator[pa.Array]:
        for path in self._files:
            with pa.memory_map(path) as source:
                yield pa.ipc.open_file(source).get_batch(self._part).column(name)

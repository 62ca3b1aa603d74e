"""Brings all interactions of a user into one bucket, with memory bounded by a setting.

In: the fragments of a log. Out: spill files, each one Arrow IPC file with one record batch a bucket; `gather` reads one
bucket back from all of them. A task holds at most its share of `memory_mb` before it spills, and a bucket is a range of
the user hash small enough for one task.

One file a spill, rather than one a bucket and fragment: a log of 1 000 fragments and 1 000 buckets stays 1 000 files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hse_dist.config import DataSettings
from hse_dist.data.hashing import BUCKET_SEED, bucket_of, hash_ids
from hse_dist.data.reader import read
from hse_dist.data.schema import Fragment, LogSchema

ROW_BYTES = {True: 160, False: 320}
"""Memory that one interaction needs while its bucket is sorted: integer ids, string ids (measured, rounded up)."""
MAX_PARTS = 1024
"""Most parts of a bucket: beyond that a spill's batches become too small to be worth reading."""


@dataclass(frozen=True)
class SpillTask:
    """What one task of the shuffle needs to know; pickles."""

    index: int
    fragment: Fragment
    schema: LogSchema
    settings: DataSettings
    parts: int
    folder: str


def memory_bytes(settings: DataSettings) -> int:
    """Bytes that one task may use for buffers."""
    return settings.memory_mb << 20


def count_parts(fragments: Sequence[Fragment], schema: LogSchema, settings: DataSettings) -> int:
    """Ranges of the user hash that the log is shuffled into: a multiple of `buckets`, each small for a task."""
    integers = pa.types.is_integer(schema.user) and pa.types.is_integer(schema.item)
    needed = sum(fragment.rows for fragment in fragments) * ROW_BYTES[integers]
    per_bucket = -(-needed // (memory_bytes(settings) * settings.buckets))
    return settings.buckets * min(MAX_PARTS, max(1, per_bucket))


def spill(task: SpillTask) -> tuple[list[str], int]:
    """Write a fragment's spill files. Returns (their paths in order, interactions kept)."""
    held: list[pa.RecordBatch] = []
    files: list[str] = []
    size = total = 0
    limit = memory_bytes(task.settings) // 4
    for batch in read(task.fragment, task.schema, task.settings.columns, task.settings.min_rating):
        held.append(batch)
        size, total = size + batch.nbytes, total + batch.num_rows
        # sorting by bucket makes a second copy, and the reader holds a batch
        if size >= limit:
            files.append(_write(task, held, len(files)))
            held, size = [], 0
    if held:
        files.append(_write(task, held, len(files)))
    return files, total


def _write(task: SpillTask, held: list[pa.RecordBatch], number: int) -> str:
    path = Path(task.folder) / f"spill-{task.index:05d}-{number:05d}.arrow"
    table = pa.Table.from_batches(held)
    hashes = np.concatenate([hash_ids(batch.column("user"), BUCKET_SEED) for batch in held])
    parts = bucket_of(hashes, task.parts)
    ends = np.cumsum(np.bincount(parts, minlength=task.parts))
    # a stable sort of 16-bit numbers is a radix sort
    order = np.argsort(parts.astype(np.uint16) if task.parts <= 1 << 16 else parts, kind="stable")
    ordered = table.take(order).combine_chunks()
    empty = pa.RecordBatch.from_pylist([], schema=table.schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for first, last in zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), strict=True):
            batches = ordered.slice(first, last - first).to_batches()
            writer.write_batch(batches[0] if batches else empty)
    return str(path)


def gather(files: Sequence[str], part: int, schema: LogSchema) -> pa.Table:
    """All interactions of a part, in the order of the spill files; the copy in memory is the caller's."""
    batches = []
    for path in files:
        with pa.memory_map(path) as source:
            batches.append(pa.ipc.open_file(source).get_batch(part))
    return pa.Table.from_batches(batches, schema.arrow())

"""The tasks of `prepare`: what each of its four rounds does to one piece.

In: picklable descriptions of a piece. Out: files in the work folder, and small numbers to the driver. A task reads what
the round before wrote and shares nothing with its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hse_dist.config import DataSettings
from hse_dist.data.grouping import Part, group
from hse_dist.data.histories import SPLITS, HistoryWriter, select, split_tables
from hse_dist.data.schema import LogSchema
from hse_dist.data.shuffle import SpillTask, gather, spill
from hse_dist.data.vocabulary import positions
from hse_dist.errors import DataError


@contextmanager
def writable(settings: DataSettings) -> Iterator[None]:
    """Turns the operating system's words about a folder that cannot be written, or is full, into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The prepared folder cannot be written: {error}.", setting="data.folder", value=settings.folder
        ) from None


@dataclass(frozen=True)
class PartTask:
    """What a task of rounds 2 to 4 needs; pickles."""

    settings: DataSettings
    schema: LogSchema
    parts: tuple[int, ...]
    spills: tuple[str, ...]
    work: str
    folder: str

    def part(self, index: int) -> str:
        return f"{self.work}/part-{index:05d}"


def save_ids(ids: pa.Array, path: Path) -> None:
    """Write ids as one Arrow record batch."""
    batch = pa.RecordBatch.from_arrays([ids], ["id"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def item_counts(folder: str) -> pa.Table:
    """Columns item and count (distinct users) of a part."""
    part = Part.load(folder)
    counts = np.bincount(part.codes, minlength=len(part.items)).astype(np.int64)
    return pa.table({"item": part.items, "count": counts})


def spill_fragment(task: SpillTask) -> tuple[list[str], int]:
    """Round 1: spill files of a fragment, and the interactions in them."""
    with writable(task.settings):
        return spill(task)


def group_part(task: PartTask) -> None:
    """Round 2: the histories of one part."""
    with writable(task.settings):
        group(gather(task.spills, task.parts[0], task.schema)).save(task.part(task.parts[0]))


def count_part(task: PartTask) -> list[int]:
    """Round 3: users by split, then those left out; writes where the part's items are among all, and their counts."""
    with writable(task.settings):
        part = Part.load(task.part(task.parts[0]))
        with pa.memory_map(f"{task.work}/items.arrow") as source:
            places = positions(part.items, pa.ipc.open_file(source).get_batch(0).column("id"))
        chosen = select(part, places >= 0, task.settings)
        train = chosen.keep & (chosen.split[part.owners()] == 0)
        size = len(part.items)
        np.savez(
            f"{task.part(task.parts[0])}/counts.npz",
            places=places,
            train=np.bincount(part.codes[train], minlength=size),
            used=np.bincount(part.codes[chosen.keep], minlength=size) > 0,
        )
        return [int((chosen.split == index).sum()) for index in range(len(SPLITS))] + [chosen.short]


def write_bucket(task: PartTask) -> dict[str, Any]:
    """Round 4: entries of the manifest by split, of the bucket whose parts the task names."""
    settings = task.settings
    with writable(settings):
        bucket = task.parts[0] // len(task.parts)
        group_size = settings.users_per_row_group
        writers = {split: HistoryWriter(Path(task.folder), split, bucket, group_size) for split in SPLITS}
        all_rows = np.load(f"{task.work}/rows.npy", mmap_mode="r")
        for index in task.parts:
            part = Part.load(task.part(index))
            with np.load(f"{task.part(index)}/counts.npz") as counts:
                places = counts["places"]
            rows = np.where(places >= 0, all_rows[places], -1)
            for split, table in split_tables(part, select(part, places >= 0, settings), rows, settings).items():
                writers[split].write(table)
        entries = {split: writer.close() for split, writer in writers.items()}
        return {split: entry for split, entry in entries.items() if entry is not None}

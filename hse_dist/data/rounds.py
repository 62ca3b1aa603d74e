"""The tasks of `prepare`: what each of its four rounds does to one piece.

In: picklable descriptions of a piece. Out: files in the work folder, and small numbers to the driver. A task reads what
the round before wrote and shares nothing with its neighbours. Each gives its cost beside its result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hse_dist.config import DataSettings
from hse_dist.data.extend import LATEST, KeptPart
from hse_dist.data.feature_rounds import user_lists
from hse_dist.data.grouping import Part, group
from hse_dist.data.histories import HistoryWriter, select, split_tables, training_entries, trains
from hse_dist.data.manifest import SPLITS
from hse_dist.data.prepared import FEATURE
from hse_dist.data.schema import LogSchema
from hse_dist.data.shuffle import Spills, SpillTask, Spilt, spill
from hse_dist.data.sketch import Admitted
from hse_dist.data.task_memory import measured
from hse_dist.data.vocabulary import positions, take_rows
from hse_dist.errors import DataError
from hse_dist.progress import Meter

BEFORE = {"user": 0.0, "item": 0.15, "timestamp": 0.35}
"""Share of a grouping's time that is over when a column is asked for (measured)."""
ADMITTED = "admitted.npy"
"""In the work folder: which items may have enough users, where `data.admission_mb` asks for it."""


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
    meter: str

    def part(self, index: int) -> str:
        return f"{self.work}/part-{index:05d}"


@measured
def spill_fragment(task: SpillTask) -> Spilt:
    """Round 1: spill files of a fragment."""
    with writable(task.settings):
        meter = Meter(task.meter)
        spilt = spill(task, meter)
        meter(1.0, int(spilt.rows.sum()))
        return spilt


@measured
def group_part(task: PartTask) -> None:
    """Round 2: the histories of one part, and how many users have each of its items."""
    with writable(task.settings):
        folder, meter = task.part(task.parts[0]), Meter(task.meter)
        spills = Spills(task.spills, task.parts[0], task.schema)

        def read(name: str) -> pa.Array:
            meter(BEFORE[name], int(BEFORE[name] * spills.rows))
            return spills.read(name)

        kept = KeptPart(Path(task.folder), task.parts[0], task.schema) if task.settings.extendable else None
        part, latest = group(read, timed=spills.timed, keep=kept), None if kept is None else kept.latest
        if latest is not None and task.settings.admission_mb is not None:
            # only now: what is kept for an extension is of all items, since a rare one may become frequent
            part, mask = Admitted(Path(task.work) / ADMITTED).of_part(part)
            latest = latest[mask]
        part.save(folder)
        np.save(f"{folder}/users-of-items.npy", part.count())
        if latest is not None:
            np.save(f"{folder}/{LATEST}", latest)
        meter(1.0, spills.rows)


@measured
def count_part(task: PartTask) -> list[int]:
    """Round 3: users by split, then those left out; writes where the part's items are among all, and their counts."""
    with writable(task.settings):
        folder = task.part(task.parts[0])
        part = Part.load(folder)
        places = positions(part.items, Path(task.work) / "items.arrow")
        chosen = select(part, places >= 0, task.settings)
        train = part.count(training_entries(part, chosen, task.settings))
        np.savez(f"{folder}/counts.npz", places=places, train=train, used=part.count(chosen.keep) > 0)
        Meter(task.meter)(1.0, len(part.codes))
        users = [trains(chosen, task.settings), *(chosen.split == index for index in range(1, len(SPLITS)))]
        return [int(of_split.sum()) for of_split in users] + [chosen.short]


@measured
def write_bucket(task: PartTask) -> dict[str, Any]:
    """Round 4: entries of the manifest by split, of the bucket whose parts the task names; and how many of its training
    users have a value of each feature, as `having`."""
    settings, meter = task.settings, Meter(task.meter)
    with writable(settings):
        bucket, written = task.parts[0] // len(task.parts), 0
        group_size = settings.users_per_row_group
        # what also trains is counted there
        held_out = ("target",) if settings.split.kind == "within_users" else ("rows", "target")
        writers = {
            split: HistoryWriter(
                Path(task.folder), split, bucket, group_size, ("rows",) if split == "train" else held_out
            )
            for split in SPLITS
        }
        having: Counter[str] = Counter()
        for done, index in enumerate(task.parts, 1):
            written += _write_part(task, index, writers, having)
            meter(done / len(task.parts), written)
        entries = {split: writer.close() for split, writer in writers.items()}
        return {split: entry for split, entry in entries.items() if entry is not None} | {"having": having}


def _write_part(task: PartTask, index: int, writers: dict[str, HistoryWriter], having: Counter[str]) -> int:
    """Append the users of a part, and count those that train and have a value of each feature; how many interactions
    the part has."""
    part = Part.load(task.part(index))
    with np.load(f"{task.part(index)}/counts.npz") as counts:
        places = counts["places"]
    rows = take_rows(Path(task.work) / "rows.npy", places)
    chosen = select(part, places >= 0, task.settings)
    beside = user_lists(Path(task.work), index, part, chosen, task.settings)
    for column, lists in beside.items():
        lengths = lists.value_lengths().to_numpy()
        having[column.removeprefix(FEATURE)] += int((lengths[trains(chosen, task.settings)] > 0).sum())
    for split, table in split_tables(part, chosen, rows, task.settings, beside):
        writers[split].write(table)
    return len(part.codes)

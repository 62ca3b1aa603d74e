"""Which items may have enough users, before any of them is counted by itself: the round before the others.

In: the fragments of a log, `data.min_item_count` and `data.admission_mb`. Out: `admitted.npy` in the work folder, and
how many interactions there are. Of a huge stream most ids of items come once or twice, and exact counts, which tasks
and driver hold, are of all ids that were ever seen. So each task of this round reads the item column of its share of
the fragments into a count-min sketch (`sketch.py`), the driver adds them up, and the rounds after it pass over items
whose estimate is below the minimum.

An estimate is never too small, and an item has at least as many interactions as distinct users. So no item with enough
users is passed over, the exact counts of the others go on to decide, and the prepared folder is the same to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from hse_dist.config import DataSettings
from hse_dist.data.reader import read
from hse_dist.data.rounds import writable
from hse_dist.data.schema import Fragment, LogSchema
from hse_dist.data.sketch import Sketch, merge
from hse_dist.data.task_memory import Cost, measured, memory_bytes
from hse_dist.progress import Meter, Progress
from hse_dist.tasks import map_tasks

SECONDS = 3600.0
"""Longest wait for a fragment, as in the other rounds."""


@dataclass(frozen=True)
class AdmissionTask:
    """What a task of this round needs; pickles."""

    fragments: tuple[Fragment, ...]
    schema: LogSchema
    settings: DataSettings
    path: str
    """Where its sketch goes."""
    meter: str


class _ItemColumn(LogSchema):
    """The item column alone."""

    def arrow(self) -> pa.Schema:
        return pa.schema([("item", self.item)])


def admit(
    fragments: Sequence[Fragment],
    schema: LogSchema,
    settings: DataSettings,
    path: Path,
    progress: Progress,
) -> tuple[int, list[Cost]]:
    """Write what `sketch.Admitted` reads to `path`; sketches lie beside it meanwhile.

    Returns:
        Interactions read, and what each task took.

    Raises:
        DataError: see `reader`.
    """
    # a sketch a task that runs at a time, not one a fragment: a log of a thousand would be a thousand on disk
    shares = [tuple(fragments[first :: settings.tasks]) for first in range(min(settings.tasks, len(fragments)))]
    with progress.stage("admission", [float(_rows(share)) for share in shares]) as meter:
        tasks = [
            AdmissionTask(share, schema, settings, str(path.with_name(f"sketch-{index:05d}.npy")), meter(index))
            for index, share in enumerate(shares)
        ]
        results = map_tasks(
            count_share,
            tasks,
            at_a_time=settings.tasks,
            label="prepare admission",
            timeout_seconds=SECONDS * len(shares[0]),
        )
    merge([task.path for task in tasks], settings.min_item_count, path)
    for task in tasks:
        Path(task.path).unlink()
    return sum(read for read, _ in results), [cost for _, cost in results]


def _rows(share: Sequence[Fragment]) -> int:
    return sum(fragment.rows for fragment in share)


@measured
def count_share(task: AdmissionTask) -> int:
    """The sketch of a task's fragments; how many interactions they have."""
    meter, whole, before, done = Meter(task.meter), _rows(task.fragments), 0, 0
    sketch = Sketch(_size(task.settings), task.settings.min_item_count)
    with writable(task.settings):
        for fragment in task.fragments:
            for ids, share in _items(fragment, task):
                sketch.add(ids)
                done += len(ids)
                meter((before + share * fragment.rows) / whole, done)
            before += fragment.rows
        sketch.save(task.path)
    meter(1.0, done)
    return done


def _size(settings: DataSettings) -> int:
    """Bytes of a sketch; a piece of a MiB is for tests."""
    return int((settings.admission_mb or 0) * 2**20)


def _items(fragment: Fragment, task: AdmissionTask) -> Iterator[tuple[pa.Array, float]]:
    """Item ids of the interactions of a fragment, batch by batch, and the share of it that has been read."""
    schema, share = task.schema, [0.0]
    if "item" in fragment.names:  # else the path gives the item, and another column must tell how many rows there are
        schema = _ItemColumn(schema.user, schema.item, schema.timestamp)
        names = {role: name for role, name in fragment.names.items() if role in ("item", "rating")}
        fragment = replace(fragment, names=names)  # a text file's other columns would be parsed
    settings = task.settings
    batches = read(
        fragment,
        schema,
        settings.columns,
        settings.min_rating,
        memory=memory_bytes(settings) - _size(settings),
        seen=lambda now: share.__setitem__(0, now),
    )
    for batch in batches:
        yield batch.column("item"), share[0]

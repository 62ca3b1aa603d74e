"""The local inverse by Ray tasks: what each task reads and writes.

In: the histories; for a refit the start folder of the first cut. Out: the co-occurrence on disk, as far as the patterns
of every regularization need it, and parts of triples by the range of their row (`triples.py`), for the cut. A task
opens the co-occurrence by itself and solves a range of items; which ranges there are changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hse_dist.config import LocalInverseSettings
from hse_dist.data.prepared import HistoryBlock
from hse_dist.sparsity.start.folder import row_ranges
from hse_dist.sparsity.start.gram import CoOccurrence, Counting, Keep, open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.history_files import SCAN_USERS, Sampling
from hse_dist.sparsity.start.local_inverse import Guard, Patterns, Regularization, join_patterns, solve
from hse_dist.sparsity.start.patterns import candidates, first_patterns, grow, pool_size
from hse_dist.sparsity.start.triples import exchange, read_parts, write_parts
from hse_dist.sparsity.start.weights import UNIT, count_lengths, weights_by_length
from hse_dist.tasks import map_tasks

Ints = npt.NDArray[np.int64]

PAIR_BYTES, ENTRY_BYTES = 48, 80
"""Memory that a task that solves takes for each pair of its items, and for each entry of their patterns."""


class Scanned(Protocol):
    """Histories that can be read block by block, as often as needed."""

    items: int

    def scan(self, split: str, *, batch_users: int) -> Iterator[HistoryBlock]:
        """The histories of a split, so many users at a time."""


@dataclass(frozen=True)
class Job:
    """What the tasks of one factor share.

    Attributes:
        gram: folder of the co-occurrence. items: of the catalogue. constant: λ, the one that is used of `settings`.
    """

    gram: Path
    items: int
    settings: LocalInverseSettings
    constant: float

    @property
    def regularization(self) -> Regularization:
        return _regularization(self.settings, self.constant)


def _regularization(settings: LocalInverseSettings, constant: float) -> Regularization:
    return Regularization(constant, settings.dropout, UNIT if settings.history_power else 1)


def count_pairs(histories: Scanned, settings: LocalInverseSettings, folder: Path, *, every: bool = False) -> int:
    """Write the co-occurrence that the settings ask for, once for all of their regularizations.

    Args:
        every: keep every pair, and not only those of the first patterns: whole blocks of columns are solved again with
            items that were in none.

    Returns:
        histories of which a sample was counted.

    Raises:
        ResourceError: the users of an item weigh more than an int32 holds.
    """
    constants, weights = settings.regularization, None
    if settings.history_power:
        lengths = count_lengths(histories.scan("train", batch_users=SCAN_USERS))
        weights = weights_by_length(lengths, settings.history_power)
    counting = Counting(settings.memory_mb << 20, settings.tasks, Sampling(settings.max_history, settings.sample_seed))
    listed = (constants,) if isinstance(constants, float) else constants
    keep = Keep([_regularization(settings, constant).diagonal for constant in listed], pool_size(settings))
    blocks = histories.scan("train", batch_users=SCAN_USERS)
    write_co_occurrence(blocks, histories.items, folder, counting, None if every else keep, weights)
    return open_co_occurrence(folder).sampled


def solve_all(job: Job, parts: Path) -> int:
    """Find the patterns of all items and solve for their values; parts of triples under `parts`.

    Returns:
        patterns whose diagonal was raised.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite.
    """
    settings, offsets = job.settings, open_co_occurrence(job.gram).offsets
    bounds = solve_bounds(offsets, pool_size(settings), settings.memory_mb << 20, settings.tasks)
    tasks = [(job, parts, index, *bounds) for index, bounds in enumerate(pairwise(bounds))]
    return sum(map_tasks(_solve, tasks, at_a_time=settings.tasks, label="start solve"))


def solve_bounds(offsets: Ints, entries: int, memory: int, tasks: int) -> list[int]:
    """Bounds of ranges of items that a task may solve at a time: at least `tasks` ranges, of equal cost about.

    Args:
        offsets: int64 [items + 1], where the pairs of each item begin. memory: bytes of a task.
    """
    items = len(offsets) - 1
    cost = (offsets[1:] - offsets[0]) * PAIR_BYTES + np.arange(1, items + 1) * entries * ENTRY_BYTES
    count = min(max(tasks, -(-int(cost[-1]) // memory)), items)
    inside = np.searchsorted(cost, cost[-1] * np.arange(1, count) / count)
    return sorted({0, items, *inside.tolist()})


def _solve(task: tuple[Job, Path, int, int, int]) -> int:
    job, parts, index, first, last = task
    pairs = open_co_occurrence(job.gram)
    patterns = first_patterns(pairs, first, last, job.regularization, job.settings)
    return _solve_patterns(job, pairs, patterns, parts, index)


def _solve_patterns(job: Job, pairs: CoOccurrence, patterns: Patterns, parts: Path, index: int) -> int:
    guard = Guard() if pairs.sampled else None
    write_parts(solve(pairs, patterns, job.regularization, guard), parts, index)
    return 0 if guard is None else guard.shifted


def refit_all(job: Job, start: Path, work: Path, *, wider: bool = False) -> int:
    """Solve again on the entries of a start folder; parts of triples under `work/parts`.

    Args:
        wider: let each pattern grow by as many members as the start has left of it first.

    Returns:
        patterns whose diagonal was raised.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite.
    """
    ranges = list(enumerate(row_ranges(job.items)))
    map_tasks(
        _exchange, [(start, work, index) for index, _ in ranges], at_a_time=job.settings.tasks, label="start exchange"
    )
    tasks = [(job, work, index, *bounds, wider) for index, bounds in ranges]
    label = "start refine" if wider else "start refit"
    return sum(map_tasks(_refit, tasks, at_a_time=job.settings.tasks, label=label))


def _exchange(task: tuple[Path, Path, int]) -> None:
    start, work, index = task
    exchange(start, work / "left", index)


def _refit(task: tuple[Job, Path, int, int, int, bool]) -> int:
    job, work, index, first, last, wider = task
    left = read_parts(work / "left", index)
    # whole blocks of columns have entries that a lower factor has not, and perhaps columns of no item
    left = left.take((left.columns <= left.rows) & (left.rows < job.items))
    pairs = open_co_occurrence(job.gram)
    patterns = join_patterns(left.rows, left.columns, first, last)
    if wider and last > first:
        patterns = _grown(job, pairs, patterns)
    return _solve_patterns(job, pairs, patterns, work / "parts", index)


def _grown(job: Job, pairs: CoOccurrence, left: Patterns) -> Patterns:
    """The patterns with what they grow by, made in pieces that the task's memory holds."""
    settings, guard = job.settings, Guard() if pairs.sampled else None
    offsets = pairs.offsets[left.first : left.first + len(left.offsets)]
    grown = []
    for begin, end in pairwise(solve_bounds(offsets, pool_size(settings), settings.memory_mb << 20, tasks=1)):
        first, last = left.first + begin, left.first + end
        piece = left.part(begin, end)
        pool = candidates(pairs, first, last, job.regularization, settings)
        grown.append(grow(pairs, piece, pool, job.regularization, guard))
    lengths = np.concatenate([np.diff(piece.offsets) for piece in grown])
    columns = np.concatenate([piece.columns for piece in grown])
    return Patterns(left.first, np.concatenate([[0], np.cumsum(lengths)]), columns)

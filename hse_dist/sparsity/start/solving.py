"""The local inverse by Ray tasks: what each task reads and writes.

In: the co-occurrence of a catalogue on disk, and for a refit the start folder of the first cut. Out: parts of triples
by the range of their row (`triples.py`), for the cut. A task opens the co-occurrence by itself and solves a range of
items; which ranges there are changes no bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as ss

from hse_dist.config import LocalInverseSettings
from hse_dist.sparsity.start.folder import row_ranges
from hse_dist.sparsity.start.gram import open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.local_inverse import Regularization, find_patterns, join_patterns, solve
from hse_dist.sparsity.start.triples import exchange, read_parts, write_parts
from hse_dist.sparsity.start.weights import UNIT, user_weights, write_weighted
from hse_dist.tasks import map_tasks


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
        return Regularization(self.constant, self.settings.dropout, UNIT if self.settings.history_power else 1)


def count_pairs(histories: ss.csr_matrix, power: float, folder: Path) -> None:
    """Write the co-occurrence of X [users, items], a history of n items counting as n^-power."""
    if power == 0:
        write_co_occurrence(histories, folder)
    else:
        write_weighted(histories, user_weights(np.diff(histories.indptr), power), folder)


def solve_all(job: Job, parts: Path) -> None:
    """Find the patterns of all items and solve for their values; parts of triples under `parts`.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite.
    """
    bounds = np.linspace(0, job.items, min(job.settings.tasks, job.items) + 1).astype(int).tolist()
    tasks = [(job, parts, index, *bounds) for index, bounds in enumerate(pairwise(bounds))]
    map_tasks(_solve, tasks, at_a_time=job.settings.tasks, label="start solve")


def _solve(task: tuple[Job, Path, int, int, int]) -> None:
    job, parts, index, first, last = task
    pairs = open_co_occurrence(job.gram)
    diagonal = job.regularization.diagonal(pairs.counts)
    patterns = find_patterns(pairs, first, last, diagonal=diagonal, size=job.settings.entries)
    write_parts(solve(pairs, patterns, job.regularization), parts, index)


def refit_all(job: Job, start: Path, work: Path) -> None:
    """Solve again on the entries of a start folder; parts of triples under `work/parts`.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite.
    """
    ranges = list(enumerate(row_ranges(job.items)))
    map_tasks(
        _exchange, [(start, work, index) for index, _ in ranges], at_a_time=job.settings.tasks, label="start exchange"
    )
    tasks = [(job, work, index, *bounds) for index, bounds in ranges]
    map_tasks(_refit, tasks, at_a_time=job.settings.tasks, label="start refit")


def _exchange(task: tuple[Path, Path, int]) -> None:
    start, work, index = task
    exchange(start, work / "left", index)


def _refit(task: tuple[Job, Path, int, int, int]) -> None:
    job, work, index, first, last = task
    left = read_parts(work / "left", index)
    patterns = join_patterns(left.rows, left.columns, first, last)
    write_parts(solve(open_co_occurrence(job.gram), patterns, job.regularization), work / "parts", index)

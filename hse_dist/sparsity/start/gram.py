"""How many users two items share: the lower triangle of the co-occurrence matrix XᵀX (XᵀWX), of any size.

In: the binary histories X, users × items, items by falling count, block by block. Out: for every item the more
popular ones (lower rows) that it shares users with. Popular rows are short in this triangle (few rows lie before them),
and rare rows are short because they are rare, so that it is read far faster than the symmetric matrix, and is half its
size.

A row of the triangle is added up from the histories of the item's users, an array as long as the catalogue at a time,
so rows are counted by tasks and nothing is sorted, sent or merged but what is kept. The whole triangle may have a
thousand entries an item. Where `Keep` names patterns, tasks go over the rows twice: first each item keeps its strongest
neighbours only; then exactly those pairs are kept that lie in the pattern of some item, which is all that the solves
read. Both passes write flat files, which every task maps. Counts are whole numbers: they are the same to the bit
whatever the number of tasks or their memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as ss

from hse_dist.data.prepared import HistoryBlock
from hse_dist.native.library import call, library
from hse_dist.sparsity.start.history_files import (
    HistoryFiles,
    Lists,
    Sampling,
    mapped,
    open_histories,
    open_lists,
    write_histories,
    write_transposed,
)
from hse_dist.tasks import map_tasks

Ints = npt.NDArray[np.int64]
Shared = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]

PRODUCTS = 2**24
"""Pairs (user, item, item) multiplied at a time where SciPy multiplies: some 300 MB."""
PARTS_A_TASK = 4
"""Ranges of rows for each task that runs at a time, so that all end together."""


EXACT = Sampling()
"""No history of today's data sets is as long as its limit."""


@dataclass(frozen=True)
class Keep:
    """Which pairs are kept: those in the patterns of `size` items, by shared / diagonal, for each of the diagonals.

    diagonals: functions of the counts, int64 [items] → float64 [items]; picklable.
    """

    diagonals: Sequence[Callable[[Ints], Doubles]]
    size: int


@dataclass(frozen=True)
class Counting:
    """How the pairs are counted: bytes of a task, tasks at a time, and what becomes of long histories."""

    memory: int = 1 << 30
    at_a_time: int = 1
    sampling: Sampling = EXACT


@dataclass(frozen=True)
class CoOccurrence:
    """The strict lower triangle of XᵀX in CSR, and its diagonal; perhaps without pairs that no pattern has.

    counts: int64 [items], users of each item. offsets: int64 [items + 1]. columns, shared: int32 [pairs]. sampled:
    histories of which only a sample was counted; without any the matrix is positive semidefinite.
    """

    counts: Ints
    offsets: Ints
    columns: Shared
    shared: Shared
    sampled: int = 0


@dataclass(frozen=True)
class _Part:
    """A range of rows; what it leaves is under `folder`."""

    folder: Path
    index: int
    first: int
    last: int
    memory: int

    def file(self, kind: str) -> Path:
        return self.folder / f"{kind}-{self.index:05d}.bin"


def write_co_occurrence(
    blocks: Iterable[HistoryBlock],
    items: int,
    folder: str | Path,
    counting: Counting = Counting(),
    keep: Keep | None = None,
    weights_by_length: Ints | None = None,
) -> None:
    """Count the pairs of items, for `open_co_occurrence`.

    Args:
        blocks: the histories. keep: which pairs are kept, None: all.
        weights_by_length: int64 [longest + 1], what a history of each length counts for, None: 1.

    Raises:
        ResourceError: the users of an item weigh more than an int32 holds.
    """
    folder = Path(folder)
    write_histories(blocks, items, folder, counting.sampling, weights_by_length)
    if keep is not None:
        _write_patterns(folder, keep, counting)
    parts = _parts(folder, counting, pairs_an_item=0)
    lengths = map_tasks(_count_pairs, parts, at_a_time=counting.at_a_time, label="start count")
    for kind in ("columns", "shared"):
        _join([part.file(kind) for part in parts], folder / f"{kind}.bin")
    np.save(folder / "offsets.npy", np.concatenate([[0], *lengths]).cumsum())
    for name in ("rows", "users", "patterns", "holders", "weights"):
        (folder / f"{name}.bin").unlink(missing_ok=True)


def open_co_occurrence(folder: str | Path) -> CoOccurrence:
    """What `write_co_occurrence` wrote, mapped into memory."""
    folder = Path(folder)
    counts, offsets, sampled = (np.load(folder / f"{name}.npy") for name in ("counts", "offsets", "sampled"))
    return CoOccurrence(counts, offsets, mapped(folder / "columns.bin"), mapped(folder / "shared.bin"), int(sampled))


def _write_patterns(folder: Path, keep: Keep, counting: Counting) -> None:
    """The patterns of all items for each diagonal, one after the other, and by item those that hold it."""
    files = open_histories(folder)
    parts: list[_Part] = []
    lengths: list[Ints] = []
    for diagonal in keep.diagonals:
        own = _parts(folder, counting, pairs_an_item=keep.size, first_index=len(parts))
        tasks = [(part, diagonal, keep.size) for part in own]
        lengths += map_tasks(_find_neighbours, tasks, at_a_time=counting.at_a_time, label="start neighbours")
        parts += own
    _join([part.file("patterns") for part in parts], folder / "patterns.bin")
    np.save(folder / "patterns_offsets.npy", np.concatenate([[0], *lengths]).cumsum())
    write_transposed(open_lists(folder, "patterns_offsets", "patterns"), len(files.counts), folder, "holders")


def _parts(folder: Path, counting: Counting, *, pairs_an_item: int, first_index: int = 0) -> list[_Part]:
    """Ranges of rows of about equal cost, whose neighbours take half of a task's memory at most."""
    costs = open_histories(folder).costs
    rows = len(costs)
    count = min(max(PARTS_A_TASK * counting.at_a_time, 1), rows)
    total = np.cumsum(costs + 1)
    wanted = np.searchsorted(total, total[-1] * np.arange(1, count) / count) if rows else []
    most = max(counting.memory // (8 * max(pairs_an_item, 1)), 1)
    bounds = sorted({0, rows, *np.asarray(wanted, int).tolist(), *range(0, rows, most)})
    return [
        _Part(folder, first_index + index, first, last, counting.memory)
        for index, (first, last) in enumerate(pairwise(bounds))
    ]


def _join(paths: list[Path], target: Path) -> None:
    """One file of several, which are removed."""
    with open(target, "wb") as whole:
        for path in paths:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)
            path.unlink()


def _find_neighbours(task: tuple[_Part, Callable[[Ints], Doubles], int]) -> Ints:
    """Write the patterns of a range of items; their lengths."""
    part, diagonal, size = task
    files = open_histories(part.folder)
    weights = diagonal(files.counts)
    if library() is not None:
        found, lengths = _neighbours(files, part, weights, size)
    else:
        found, lengths = _plain_neighbours(files, part, weights, size)
    found.tofile(part.file("patterns"))
    return lengths


def _neighbours(files: HistoryFiles, part: _Part, diagonal: Doubles, size: int) -> tuple[Shared, Ints]:
    count = part.last - part.first
    found, lengths = np.empty(count * size, np.int32), np.empty(count, np.int64)
    shared, touched = np.zeros(len(files.counts), np.int32), np.empty(len(files.counts), np.int32)
    bounds = (part.first, part.last)
    filled = call("hse_neighbours", *bounds, *_native(files), diagonal, size - 1, shared, touched, found, lengths)
    return found[:filled], lengths


def _plain_neighbours(files: HistoryFiles, part: _Part, diagonal: Doubles, size: int) -> tuple[Shared, Ints]:
    patterns = []
    for first, block in lower_blocks(_matrix(files), weights=files.weights, rows=(part.first, part.last)):
        for row, (begin, end) in enumerate(pairwise(block.indptr.tolist())):
            columns = block.indices[begin:end]
            order = np.argsort(-(block.data[begin:end] / diagonal[columns]), kind="stable")
            patterns.append(np.append(np.sort(columns[order[: size - 1]]), first + row).astype(np.int32))
    return np.concatenate(patterns), np.array([len(pattern) for pattern in patterns])


def _count_pairs(part: _Part) -> Ints:
    """Write the rows of a range of items; their lengths."""
    files = open_histories(part.folder)
    known = (part.folder / "patterns.bin").exists()
    patterns = open_lists(part.folder, "patterns_offsets", "patterns") if known else None
    holders = open_lists(part.folder, "holders_offsets", "holders") if known else None
    count = _pairs if library() is not None else _plain_pairs
    lengths = []
    with open(part.file("columns"), "wb") as columns_file, open(part.file("shared"), "wb") as shared_file:
        for columns, shared, own in count(files, part, patterns, holders):
            columns.astype(np.int32, copy=False).tofile(columns_file)
            shared.astype(np.int32, copy=False).tofile(shared_file)
            lengths.append(own)
    return np.concatenate(lengths)


Rows = tuple[Shared, Shared, Ints]
"""Columns, counts, and the length of each of several rows."""


def _pairs(files: HistoryFiles, part: _Part, patterns: Lists | None, holders: Lists | None) -> Iterator[Rows]:
    """As many rows at a time as the memory of the task holds, at least one."""
    items = len(files.counts)
    capacity = max(part.memory // 8, items)
    columns, found = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    shared, touched, seen = np.zeros(items, np.int32), np.empty(items, np.int32), np.zeros(items, np.uint8)
    lists = [array for one in (patterns, holders) for array in ((one.offsets, one.members) if one else (None, None))]
    first = part.first
    while first < part.last:
        lengths = np.zeros(part.last - first, np.int64)
        scratch = (shared, touched, seen, capacity, columns, found, lengths)
        done = call("hse_pairs", first, part.last, *_native(files), *lists, *scratch)
        filled = int(lengths[:done].sum())
        yield columns[:filled], found[:filled], lengths[:done]
        first += done


def _plain_pairs(files: HistoryFiles, part: _Part, patterns: Lists | None, holders: Lists | None) -> Iterator[Rows]:
    within = None if patterns is None else _by_rows(patterns, len(files.counts))
    of_item = None if holders is None or patterns is None else _by_rows(holders, len(patterns.offsets) - 1)
    for first, block in lower_blocks(_matrix(files), weights=files.weights, rows=(part.first, part.last)):
        if within is not None and of_item is not None:
            wanted = of_item[first : first + block.shape[0]] @ within
            wanted.data[:] = 1
            block = block.multiply(wanted).tocsr()
            block.sort_indices()
        yield block.indices, block.data, np.diff(block.indptr).astype(np.int64)


def _native(files: HistoryFiles) -> tuple[npt.NDArray[np.generic] | None, ...]:
    by_user, by_item = files.by_user, files.by_item
    return by_user.offsets, by_user.members, files.weights, by_item.offsets, by_item.members


def _matrix(files: HistoryFiles) -> ss.csr_array:
    return _by_rows(files.by_user, len(files.counts))


def _by_rows(lists: Lists, columns: int) -> ss.csr_array:
    ones = np.ones(len(lists.members), np.int32)
    return ss.csr_array((ones, lists.members, lists.offsets), shape=(len(lists.offsets) - 1, columns))


def lower_blocks(
    histories: ss.csr_matrix | ss.csr_array,
    products: int = PRODUCTS,
    *,
    weights: Shared | None = None,
    rows: tuple[int, int] | None = None,
) -> Iterator[tuple[int, ss.csr_array]]:
    """Blocks of rows of the strict lower triangle of XᵀX, in order, by SciPy.

    Args:
        histories: X [users, items]; every stored entry counts as 1.
        products: multiplications a block; at least one row is in each.
        weights: int32 [users], what users count for. rows: first and last of the rows that are wanted; None: all.

    Yields:
        the first row of the block, and the block: int32 [block rows, items], columns ascending.
    """
    x = ss.csr_array(
        (np.ones(histories.nnz, np.int32), histories.indices, histories.indptr), shape=histories.shape, copy=False
    )
    transposed = x.T.tocsr()
    cost = np.cumsum(transposed @ np.diff(x.indptr).astype(np.int64))
    if weights is not None:
        transposed.data = np.asarray(weights)[transposed.indices]
    first, end = (0, x.shape[1]) if rows is None else rows
    while first < end:
        limit = (cost[first - 1] if first else 0) + products
        last = min(max(int(np.searchsorted(cost, limit, side="right")), first + 1), end)
        yield first, _strictly_lower((transposed[first:last] @ x).tocsr(), first)
        first = last


def _strictly_lower(block: ss.csr_array, first: int) -> ss.csr_array:
    """The entries of a block of rows that lie left of the diagonal."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    keep = block.indices < rows + first
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[keep], minlength=block.shape[0]))])
    lower = ss.csr_array((block.data[keep], block.indices[keep], offsets), shape=block.shape)
    lower.sort_indices()
    return lower

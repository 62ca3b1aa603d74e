"""The global cut of a start: which entries fit into the budget, over all ranges of rows.

In: the parts of a start (`triples.py`), and gains if the start knows them. Out: the files of a start folder.

Every row keeps its `floor` strongest entries; its next ones up to `ceiling` compete with those of all rows for the rest
of the budget, by |value| · √|gain|. Blocks of adjacent columns are kept or cut as a whole, by the length of this over
their entries (so by the sum of squares · |gain|), and what is missing of one is 0; of groups of columns each row keeps
its strongest few before anything competes. The decision is made from histograms by whoever `new_selection` names (the
SparsityServer in a training run), so no process ever sees all entries. Ties go by row, then column. With `power` rows
do not compete: each has a number by its count, and keeps as many, its strongest; what a row of the start lacks, others
get.

The gain of a negative form is -1 / ‖row‖² of the row before the cut. Measured at 32 entries a row: with the norm after
the cut nDCG@100 is the same to .0004 (MovieLens-100K, citeulike-a, Gowalla).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hse_dist.errors import NumericError
from hse_dist.sparsity.budget import Ints, ranks_in_row, row_lengths
from hse_dist.sparsity.selection import Counts, Query, Selection, chosen, histogram, order_keys
from hse_dist.sparsity.start.folder import row_ranges, write_entries, write_rows
from hse_dist.sparsity.start.triples import Triples, read_parts
from hse_dist.tasks import map_tasks

Doubles = npt.NDArray[np.float64]


class Decider(Protocol):
    """A selection that is fed histograms: `RadixSelection`, or a stand-in that asks the SparsityServer."""

    query: Query

    def feed(self, histograms: Counts) -> Query | Selection:
        """The next query, or the answer."""


NewSelection = Callable[[int, bool], Decider]
"""(count, largest) → a new selection."""


@dataclass(frozen=True)
class Budget:
    """Who may keep how much; of blocks of columns, blocks.

    Attributes:
        live: entries in all. floor: entries that a row keeps in any case. ceiling: most entries of a row.
        unit: rows are scaled to length 1 and lose their gain; else only their mean length becomes 1.
        power: rows have numbers in proportion to count^power; None: they compete.
        block: adjacent columns that are kept together.
        group: (n, m): of every m columns a row keeps at most n entries; None: any number.
    """

    live: int
    floor: int
    ceiling: int
    unit: bool
    power: float | None = None
    block: int = 1
    group: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Range:
    """One range of rows and the files it works on."""

    work: Path
    index: int
    first: int
    last: int

    def file(self, stage: str) -> Path:
        return self.work / f"{stage}-{self.index:05d}.npz"


def cut(
    work: Path,
    target: Path,
    counts: Ints,
    budget: Budget,
    *,
    gains: Doubles | None,
    new_selection: NewSelection,
    at_a_time: int,
    gain_power: float = 0.0,
) -> dict[str, Any]:
    """Cut the parts under `work/parts` to the budget and write the files of a start under `target`.

    Args:
        counts: int64 [rows], training interactions.
        gains: float64 [rows], or None for -1 / ‖row‖².
        gain_power: of rows that are not scaled to length 1, gains are divided by (1 + count)^this after the cut.

    Returns:
        what the manifest says of the cut: live_entries, value_scale, gain_scale.

    Raises:
        NumericError: a row has no entries, or values that are no numbers.
    """
    ranges = [_Range(work, index, *bounds) for index, bounds in enumerate(row_ranges(len(counts)))]
    run = partial(map_tasks, at_a_time=at_a_time)
    own = [None if gains is None else gains[mine.first : mine.last] for mine in ranges]
    found = run(_gather, [(mine, budget, part) for mine, part in zip(ranges, own, strict=True)], label="start gather")
    if budget.power is None:
        kept = sum(int(np.minimum(part, budget.floor).sum()) for part in found)
        selection = _decide(new_selection(budget.live - kept, True), ranges, run)
        choices: list[Selection | Ints] = [selection] * len(ranges)
    else:
        lengths = _lengths(counts, np.concatenate(found), budget, budget.power)
        choices = [lengths[mine.first : mine.last] for mine in ranges]
    shares = [np.power(1.0 + counts[mine.first : mine.last], -gain_power, dtype=np.float64) for mine in ranges]
    parts = [(*each, budget) for each in zip(ranges, choices, shares, strict=True)]
    sums = run(_cut_range, parts, label="start cut")
    live, norms, magnitudes = (sum(part) for part in zip(*sums, strict=True))
    scales = {"value_scale": len(counts) / norms, "gain_scale": len(counts) / magnitudes}
    run(_write_range, [(mine, target, *scales.values()) for mine in ranges], label="start write")
    return {"live_entries": live, **scales}


def _decide(decider: Decider, ranges: Sequence[_Range], run: Callable[..., list[Any]]) -> Selection:
    answer: Query | Selection = decider.query
    while isinstance(answer, Query):
        counts = run(_count, [(mine, answer) for mine in ranges], label="start histogram")
        answer = decider.feed(np.stack(counts))
    return answer


def _lengths(counts: Ints, most: Ints, budget: Budget, power: float) -> Ints:
    """The number of each row by its count, int64 [rows]; no more than it has, `most`."""
    total = min(budget.live, int(most.sum()))
    return row_lengths(counts, total=total, power=power, floor=budget.floor, ceiling=most)


def _gather(task: tuple[_Range, Budget, Doubles | None]) -> Ints:
    """Sort a range's entries and tell who competes; entries (blocks) of each row, at most the ceiling, int64 [rows]."""
    mine, budget, gains = task
    triples = whole_blocks(read_parts(mine.work / "parts", mine.index), budget.block)
    norms = _squared_norms(triples, mine)
    if not (np.isfinite(norms) & (norms > 0)).all():
        row = mine.first + int(np.argmin(np.isfinite(norms) & (norms > 0)))
        raise NumericError(
            f"Row {row} of table item starts with a squared length of {norms[row - mine.first]}.",
            cause="The regularization of the start is too small or too large for the counts.",
        )
    gain = -1.0 / norms if gains is None else gains
    scores = np.abs(triples.values.astype(np.float64)) * np.sqrt(np.abs(gain))[triples.rows - mine.first]
    if budget.block > 1:
        scores = np.sqrt((scores.reshape(-1, budget.block) ** 2).sum(1))
    keys = order_keys(scores.astype(np.float32))
    if budget.group is not None:
        fits = _fit_groups(triples, keys, *budget.group)
        triples, keys = triples.take(fits), keys[fits]
    rows = triples.rows[:: budget.block]
    places = ranks_in_row(rows, keys, largest=True)
    within, kept = places < budget.ceiling, places < budget.floor
    left = triples.take(_of_entries(within, budget.block))
    if budget.power is None:
        _save(mine.file("gathered"), left, gain, kept=kept[within], keys=keys[within & ~kept])
    else:
        _save(mine.file("gathered"), left, gain, places=places[within])
    return np.bincount(rows[within] - mine.first, minlength=mine.last - mine.first)


def whole_blocks(triples: Triples, block: int) -> Triples:
    """The triples, by row, then column, with a value of 0 for what is missing of blocks of columns."""
    if block == 1 or not len(triples.rows):
        return triples
    numbers = triples.columns // block
    first = np.concatenate([[True], (np.diff(triples.rows) != 0) | (np.diff(numbers) != 0)])
    values = np.zeros((int(first.sum()), block), np.float32)
    values[np.cumsum(first) - 1, triples.columns - numbers * block] = triples.values
    columns = numbers[first][:, None] * block + np.arange(block)
    return Triples(np.repeat(triples.rows[first], block), columns.ravel(), values.ravel())


def _of_entries(mask: npt.NDArray[np.bool_], block: int) -> npt.NDArray[np.bool_]:
    return mask if block == 1 else np.repeat(mask, block)


def _fit_groups(triples: Triples, keys: npt.NDArray[np.uint32], most: int, columns: int) -> npt.NDArray[np.bool_]:
    """Which entries are among the `most` strongest of their row and group of columns."""
    numbers = triples.columns // columns
    return ranks_in_row(triples.rows * (int(numbers.max(initial=0)) + 1) + numbers, keys, largest=True) < most


def _count(task: tuple[_Range, Query]) -> Counts:
    mine, query = task
    with np.load(mine.file("gathered")) as stored:
        return histogram(stored["keys"], query)


def _cut_range(task: tuple[_Range, Selection | Ints, Doubles, Budget]) -> tuple[int, float, float]:
    """Apply the decision (of all rows, or the range's numbers) to a range, and the shares to its gains: its live
    entries, the sum of its rows' lengths, and of their |gain|."""
    mine, choice, shares, budget = task
    with np.load(mine.file("gathered")) as stored:
        triples, gains = _triples(stored), stored["gains"] * shares
        if isinstance(choice, Selection):
            mask = stored["kept"].copy()
            mask[~mask] = chosen(stored["keys"], choice, mine.index, True)
        else:
            mask = stored["places"] < choice[triples.rows[:: budget.block] - mine.first]
    triples = triples.take(_of_entries(mask, budget.block))
    norms = np.sqrt(_squared_norms(triples, mine))
    if budget.unit:
        values = (triples.values / norms[triples.rows - mine.first]).astype(np.float32)
        triples = Triples(triples.rows, triples.columns, values)
        norms, gains = np.ones_like(norms), np.ones_like(gains)
    _save(mine.file("cut"), triples, gains)
    return len(triples.rows), float(norms.sum()), float(np.abs(gains).sum())


def _write_range(task: tuple[_Range, Path, float, float]) -> None:
    mine, target, value_scale, gain_scale = task
    with np.load(mine.file("cut")) as stored:
        triples, gains = _triples(stored), stored["gains"]
    values = (triples.values * value_scale).astype(np.float32)
    write_entries(target, mine.index, triples.rows, triples.columns, values)
    live = np.bincount(triples.rows - mine.first, minlength=mine.last - mine.first)
    write_rows(target, mine.index, live, (gains * gain_scale).astype(np.float32))


def _squared_norms(triples: Triples, mine: _Range) -> Doubles:
    """‖row‖² of a range, float64 [rows]."""
    weights = triples.values.astype(np.float64) ** 2
    return np.bincount(triples.rows - mine.first, weights, minlength=mine.last - mine.first).astype(np.float64)


def _save(path: Path, triples: Triples, gains: Doubles, **more: npt.NDArray[Any]) -> None:
    arrays = {"rows": triples.rows, "columns": triples.columns, "values": triples.values, "gains": gains, **more}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy declares `allow_pickle` among the names


def _triples(stored: Any) -> Triples:
    return Triples(stored["rows"], stored["columns"], stored["values"])

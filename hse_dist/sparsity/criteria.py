"""What a live entry is worth: the scores by which entries are dropped, the smallest first.

In: a block of rows, their gains, and what the kind of score needs beside them (`Evidence`). Out: a key a slot, in
the order of the scores. A score depends on its entry and on sums that have one value on any number of ranks.

    magnitude, soft_threshold   |w| · √|gain|                     Han et al., NeurIPS 2015; Kusupati et al., ICML 2020
    sensitivity                 |Σ w·g|                           Molchanov et al., ICLR 2017 and CVPR 2019
    movement                    −Σ w·g                            Sanh et al., NeurIPS 2020
    fisher                      ½ · w² · Σ g²                     LeCun et al., NeurIPS 1989; Theis et al., 2018
    activity                    |w| · √|gain| · ‖column‖          Sun et al. (Wanda), ICLR 2024
    random                      a hash of seed, version, position
    own                         what a function of the user's says (`own.py`)

Sums go over the steps of the window, by visits of the row. An entry of which no step saw a gradient has no score and is
not dropped, unless the number of live entries could not fall without (`Evidence.reserve`). All are multiplied by
(count / largest count)^popularity_power. A block of columns has one score: Σ w·g and ½ · Σ w² · Σ g² go over its
entries, too; of the others it is the length of its entries' scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hse_dist.config import DropSettings
from hse_dist.data.hashing import mix
from hse_dist.ranks import Ranks
from hse_dist.sparsity.budget import row_blocks
from hse_dist.sparsity.growth import Floats, Ints
from hse_dist.sparsity.own import Entries, own_score
from hse_dist.sparsity.selection import Keys, Mask, reserve_keys
from hse_dist.sparsity.sightings import Sightings
from hse_dist.sparsity.slots import drop_keys, keys_of
from hse_dist.tables.block import DenseRows, SparseRows
from hse_dist.tables.sharded import OwnedRows

ScoreKeys = Callable[[OwnedRows, Floats], tuple[Keys, Ints]]
"""(a block of rows, what their gains are) → keys uint32 [slots], live entries int64 [rows]."""

DROP_SALT = np.uint64(0x64726F70)
EXACT_BITS = 52
"""Whole numbers below 2^52 add up in float64 without rounding, in any order."""


@dataclass(frozen=True)
class Evidence:
    """What scores need beside values and gains.

    Attributes:
        positions: row · dims + column of live entries of owned rows that were seen, int64 [n], ascending.
        sums: the mean over visits of w·g, or of g², float64 [n].
        lengths: float32 [D], of the columns over all rows.
        popularity: (count / largest count)^popularity_power of the owned rows, float32 [rows]; None: 1.
        first: the first owned row.
        reserve: whether entries without a score may be dropped, after all others and by magnitude: where the number
            of live entries falls, it falls to what the schedule says, whatever was seen.
    """

    positions: Ints | None = None
    sums: npt.NDArray[np.float64] | None = None
    lengths: Floats | None = None
    popularity: Floats | None = None
    first: int = 0
    reserve: bool = False


class LiveSightings(Sightings):
    """Gradients of live entries: of those of all candidates, at every step of the window."""

    def __init__(self, settings: DropSettings) -> None:
        super().__init__("live_")
        self.settings = settings

    def watch(self, rows: SparseRows | DenseRows) -> None:
        """Before the backward pass: keep the gradient of the values."""
        if self.settings.by_gradient:
            assert isinstance(rows, SparseRows)
            rows.values.retain_grad()

    def collect(self, rows: SparseRows | DenseRows, candidates: Tensor) -> None:
        """After the backward pass; values are those that the gradient belongs to. candidates int64 [C]."""
        if not self.settings.by_gradient:
            return
        assert isinstance(rows, SparseRows)
        gradients = rows.values.grad
        assert gradients is not None
        seen = gradients.square() if self.settings.kind == "fisher" else gradients * rows.values.detach()
        entries = torch.repeat_interleave(candidates, rows.offsets.diff(), output_size=len(rows.columns))
        self.add(entries, rows.columns, seen, candidates)


def column_lengths(owned: OwnedRows, gains: Floats, rows: int, ranks: Ranks) -> Floats:
    """√Σ value² · |gain| of each column over all rows, float32 [D], bit-equal on any number of ranks; collective.

    Args:
        gains: float32 [owned rows]. rows: of the whole table.
    """
    largest = max(ranks.gather(max((float(part.max(initial=0.0)) for _, part in _energies(owned, gains)), default=0.0)))
    dims = owned.dims * owned.block
    if not 0.0 < largest < math.inf:
        return np.ones(dims, np.float32)  # nothing to tell columns apart; a NaN is named where scores are made
    # of whole numbers: a float sum depends on its order
    scale = 2.0 ** (EXACT_BITS - math.ceil(math.log2(rows + 1)) - math.ceil(math.log2(largest)))
    sums = np.zeros(dims, np.int64)
    for columns, energy in _energies(owned, gains):
        sums += np.bincount(columns, np.rint(energy * scale), minlength=dims).astype(np.int64)
    whole = ranks.sum(torch.from_numpy(sums).to(ranks.device)).cpu().numpy()
    return np.sqrt(whole / scale).astype(np.float32)


def _energies(owned: OwnedRows, gains: Floats) -> Iterator[tuple[Ints, npt.NDArray[np.float64]]]:
    """Columns and value² · |gain| of live entries, a block of rows at a time."""
    for first, last in row_blocks(owned.offsets):
        here = slice(owned.offsets[first], owned.offsets[last])
        live = owned.columns[here] < owned.dims
        of_places = np.repeat(np.abs(gains[first:last]), np.diff(owned.offsets[first : last + 1]))
        energy = owned.by_place[here][live].astype(np.float64) ** 2 * of_places[live, None]
        yield _spread(owned.columns[here][live], owned.block).ravel(), energy.ravel()


def _spread(numbers: Ints, block: int) -> Ints:
    """What numbers of blocks stand for, [n, b]: columns of block numbers, positions of blocks' positions."""
    return numbers[:, None] * block + np.arange(block)


def _lengths(scores_nb: Floats) -> Floats:
    """One score a block, of its entries'."""
    return np.abs(scores_nb[:, 0]) if scores_nb.shape[1] == 1 else np.sqrt((scores_nb**2).sum(1))


def popularity_of(counts: Ints | None, power: float) -> Floats | None:
    """(count / largest count)^power of every row, float32 [rows]; None where it is 1. Counts of 0 weigh as 1."""
    if counts is None or power == 0.0:
        return None
    # of all rows on every rank: a power may be rounded by a number's place in the array
    return ((np.maximum(counts, 1) / max(int(counts.max()), 1)) ** power).astype(np.float32)


def weigh(gains: Floats, evidence: Evidence) -> Floats:
    """Gains for which |value| · √|gain| has the popularity in it, float32 [rows]."""
    return gains if evidence.popularity is None else gains * evidence.popularity**2


def score_keys(settings: DropSettings, evidence: Evidence, seed: int, version: int) -> ScoreKeys:
    """The keys of a kind of score; the gains that they are given come from `weigh`."""
    if settings.kind in ("magnitude", "soft_threshold"):
        return drop_keys
    own = own_score(settings.function) if settings.function is not None else None

    def keys_of_block(rows: OwnedRows, gains: Floats) -> tuple[Keys, Ints]:
        here = np.flatnonzero(rows.columns < rows.dims)
        local = np.searchsorted(rows.offsets, here, side="right") - 1
        row, columns, values = local + rows.first, rows.columns[here], rows.by_place[here]
        scored: Mask = np.ones(len(here), np.bool_)
        if settings.by_gradient:
            positions = _spread(row * rows.dims + columns, rows.block)
            scores, scored = _by_gradient(settings.kind, positions, values, evidence)
        elif settings.kind == "activity":
            assert evidence.lengths is not None
            weights = np.sqrt(np.abs(gains))[local, None]
            scores = _lengths(np.abs(values) * weights * evidence.lengths[_spread(columns, rows.block)])
        elif own is not None:
            popularity = np.float32(1) if evidence.popularity is None else evidence.popularity[row - evidence.first]
            scores = own(Entries(row, columns, values, gains[local] / popularity**2))  # as `weigh` has not seen them
        else:
            scores = _random(row * rows.dims + columns, seed, version)
        if evidence.popularity is not None and settings.kind != "activity":  # whose gains have it
            scores = scores * evidence.popularity[row - evidence.first]
        keys = np.zeros(len(rows.columns), np.uint32)
        keys[here[scored]] = keys_of(scores[scored].astype(np.float32), row[scored], "drop")
        if evidence.reserve and not scored.all():
            sizes = _lengths(values[~scored]) * np.sqrt(np.abs(gains))[local[~scored]]
            keys_of(sizes, row[~scored], "drop")  # names one that is no number
            keys[here[~scored]] = reserve_keys(sizes)
        return keys, np.bincount(local, minlength=len(rows.offsets) - 1)

    return keys_of_block


def _by_gradient(kind: str, positions: Ints, values: Floats, evidence: Evidence) -> tuple[Floats, Mask]:
    """Scores of live entries (blocks), and which have one.

    Args:
        positions: int64 [n, b]. values: float32 [n, b].
    """
    assert evidence.positions is not None and evidence.sums is not None
    place = np.searchsorted(evidence.positions, positions)
    found = place < len(evidence.positions)
    found[found] = evidence.positions[place[found]] == positions[found]
    sums = np.zeros(positions.shape)
    sums[found] = evidence.sums[place[found]]
    scored: Mask = np.any(found, axis=1)
    if kind == "fisher":
        return (0.5 * values.astype(np.float64) ** 2 * sums).sum(1).astype(np.float32), scored
    whole = sums.sum(1)
    return (np.abs(whole) if kind == "sensitivity" else -whole).astype(np.float32), scored


def _random(positions: Ints, seed: int, version: int) -> Floats:
    key = mix(np.array([seed + (version << 32)], dtype=np.uint64) ^ DROP_SALT)
    return ((mix(positions.astype(np.uint64) ^ key) >> np.uint64(40)).astype(np.float32) + 1.0) / np.float32(2**24)

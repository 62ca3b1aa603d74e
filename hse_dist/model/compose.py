"""The rows of candidates with features, from the rows that were looked up.

In: the looked-up rows of items, of users' features and of items' features. Out: one CSR block with a row an item,
Σ of its own row and those of its features, and a row a feature of users, all of them weighted. It looks like any block
of rows, so that all that follows (pooling, scoring, an item's own contribution, the compiled sweep, growth) is the same
with and without features.

    c_j = A_j + Σ over features f of w_f · A_v, v the values that item j has
    u = Σ over i in the history of c_i + Σ over f of w_f · A_v, v the values that the user has

With unit rows each row is at length 1 before it is weighted, and c_j is again.

Shapes: C items, X rows of users' features, R rows in all, E live entries, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hse_dist.data.batch import BatchFeatures
from hse_dist.model.kernels import expand_rows, owners
from hse_dist.model.operators import SMALLEST
from hse_dist.tables.block import SparseRows


@dataclass(frozen=True)
class Spread:
    """How positions of composed rows are positions of the rows that they are made of.

    Attributes:
        factors: float32 [C + X], the derivative of a composed row by its own row.
        side_offsets, sides: as in `BatchFeatures`. side_weights: float32 [S].
    """

    factors: Tensor
    side_offsets: Tensor
    sides: Tensor
    side_weights: Tensor

    def __call__(self, candidate: Tensor, column: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions int64 [n] of composed rows, and gradients [n], as those of looked-up rows; some more than once."""
        gradient = gradient * self.factors[candidate]
        if not len(self.sides):
            return candidate, column, gradient
        items = candidate < len(self.side_offsets) - 1
        entries, counts = expand_rows(self.side_offsets, candidate[items])
        own = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        through = gradient[items][own] * self.side_weights[entries]
        parts = ((candidate, self.sides[entries]), (column, column[items][own]), (gradient, through))
        together = [torch.cat(part) for part in parts]
        return together[0], together[1], together[2]


def compose(rows: SparseRows, features: BatchFeatures, weights: Tensor, *, unit: bool) -> tuple[SparseRows, Spread]:
    """The rows of candidates, float32 values with gradients to the looked-up values and to the weights.

    Args:
        rows: of the batch's candidates.
        weights: float32 [features].
        unit: whether rows are used at length 1.

    Returns:
        the composed block of C + X rows, and where growth scores go.
    """
    kept = features.items + features.context_rows
    values = _at_length_one(rows.values, owners(rows.offsets), len(rows.offsets) - 1) if unit else rows.values
    of_rows = torch.cat([weights.new_ones(features.items), weights[features.feature]])
    values = values * of_rows.index_select(0, owners(rows.offsets))
    factors = of_rows[:kept].detach()
    gains = None if rows.gains is None else rows.gains[:kept]
    end = int(rows.offsets[kept])
    block = SparseRows(rows.offsets[: kept + 1], rows.columns[:end], values[:end], gains, rows.dims)
    if len(features.sides):
        block, shrink = _with_sides(block, rows, values, features, unit=unit)
        factors = factors * shrink
    return block, Spread(factors, features.side_offsets, features.sides, of_rows.detach()[features.sides])


def _with_sides(
    block: SparseRows, rows: SparseRows, values: Tensor, features: BatchFeatures, *, unit: bool
) -> tuple[SparseRows, Tensor]:
    """The block with the rows of items' features added to those of the items, and what that made them shorter by."""
    entries, counts = expand_rows(rows.offsets, features.sides)
    owner = torch.repeat_interleave(owners(features.side_offsets), counts)
    keys = torch.cat([owners(block.offsets) * rows.dims + block.columns, owner * rows.dims + rows.columns[entries]])
    positions, place = torch.unique(keys, return_inverse=True)
    total = values.new_zeros(len(positions)).index_add(0, place, torch.cat([block.values, values[entries]]))
    row, columns = positions.div(rows.dims, rounding_mode="floor"), positions % rows.dims
    count = len(block.offsets) - 1
    ends = torch.bincount(row, minlength=count).cumsum(0)
    shrink = values.new_ones(count)
    if unit:
        items = row < features.items  # the rows of users' features keep their weight
        norms = _norms(total, row, count)
        shrink = torch.where(torch.arange(count, device=norms.device) < features.items, 1.0 / norms.detach(), shrink)
        total = torch.where(items, total / norms.index_select(0, row), total)
    return SparseRows(torch.cat([ends.new_zeros(1), ends]), columns, total, block.gains, rows.dims), shrink


def _norms(values: Tensor, row: Tensor, count: int) -> Tensor:
    """Lengths of the rows, [count]; at least `SMALLEST`."""
    return values.new_zeros(count).index_add(0, row, values.square()).clamp_min(SMALLEST**2).sqrt()


def _at_length_one(values: Tensor, row: Tensor, count: int) -> Tensor:
    return values / _norms(values, row, count).index_select(0, row)

"""What the model asks of a block of rows, for sparse and dense rows alike.

In: `SparseRows` or `DenseRows`. Out: `Operators` with `pool`, `score` and `own`; the model does not know which.

Shapes: B users, C candidates, D columns, E live entries, L history positions, K columns in use (K = D unless compacted).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hse_dist.model.kernels import Pool, Score, expand_rows
from hse_dist.tables.block import DenseRows, SparseRows


class Operators(Protocol):
    """Pooling and scoring with the rows of one batch's candidates."""

    def pool(self, positions: Tensor, user: Tensor, users: int) -> Tensor:
        """uᵀ float32 [K, B], the sum of the rows at `positions` [L] for each `user` [L]."""

    def score(self, u_kb: Tensor) -> Tensor:
        """gain · row · u for all candidates and users, float32 [C, B]."""

    def own(self, positions: Tensor) -> Tensor:
        """gain · ‖row‖² of the rows at `positions`, float32 [L]: an item's contribution to its own score."""


def columns_in_use(rows: SparseRows, positions: Tensor | None) -> Tensor:
    """The distinct columns of the rows at `positions` (None: of all), ascending, int64 [K]."""
    columns = rows.columns
    if positions is not None:
        entries, _ = expand_rows(rows.offsets, positions.unique())
        columns = columns[entries]
    return columns.unique()


class SparseOperators:
    """On live entries only.

    Args:
        rows: the candidates' rows.
        unit: whether rows are used at length 1.
        kept_columns: int64 [K − 1], ascending; columns are renumbered to their place in it. Entries in other columns
            meet a user vector that is zero there, and go to one spare column, the last. None: columns stay.
    """

    def __init__(self, rows: SparseRows, *, unit: bool, kept_columns: Tensor | None) -> None:
        self.rows, self.values, self.norms = rows, rows.values, None
        self.lengths = rows.offsets.diff()
        if unit:
            self.norms = self._row_sums(rows.values.square()).clamp_min(1e-24).sqrt()
            self.values = rows.values / torch.repeat_interleave(self.norms, self.lengths)
        self.columns, self.dims, self.kept_columns = rows.columns, rows.dims, kept_columns
        if kept_columns is not None:
            spare = len(kept_columns)
            place = torch.searchsorted(kept_columns, rows.columns)
            padded = torch.cat([kept_columns, kept_columns.new_full((1,), -1)])
            self.columns = torch.where(padded[place] == rows.columns, place, spare)
            self.dims = spare + 1

    def _row_sums(self, per_entry: Tensor) -> Tensor:
        row = torch.repeat_interleave(torch.arange(len(self.lengths), device=per_entry.device), self.lengths)
        return per_entry.new_zeros(len(self.lengths)).index_add(0, row, per_entry)

    def pool(self, positions: Tensor, user: Tensor, users: int) -> Tensor:
        entries, counts = expand_rows(self.rows.offsets, positions)
        target = self.columns[entries] * users + torch.repeat_interleave(user, counts)
        return Pool.apply(self.values, entries, target, self.dims, users)

    def score(self, u_kb: Tensor) -> Tensor:
        values = self.values
        if self.rows.gains is not None:
            values = values * torch.repeat_interleave(self.rows.gains, self.lengths)
        return Score.apply(values, self.columns, self.rows.offsets, u_kb)

    def own(self, positions: Tensor) -> Tensor:
        squared = self._row_sums(self.values.square())
        if self.rows.gains is not None:
            squared = squared * self.rows.gains
        return squared[positions]


class DenseOperators:
    """The same on dense rows at length 1, for the baseline."""

    def __init__(self, rows: DenseRows) -> None:
        self.values_cd = torch.nn.functional.normalize(rows.values, dim=1)

    def pool(self, positions: Tensor, user: Tensor, users: int) -> Tensor:
        history = torch.sparse_coo_tensor(
            torch.stack([user, positions]),
            self.values_cd.new_ones(len(user)),
            (users, len(self.values_cd)),
            check_invariants=False,
        )
        return torch.sparse.mm(history, self.values_cd).t()

    def score(self, u_kb: Tensor) -> Tensor:
        return self.values_cd @ u_kb

    def own(self, positions: Tensor) -> Tensor:
        return self.values_cd.square().sum(1)[positions]

"""What the model asks of a block of rows, for sparse and dense rows alike.

In: `SparseRows` or `DenseRows`. Out: `Operators` with `pool`, `score` and `own`; the model does not know which.

Shapes: B users, C candidates, D columns, E live entries, L history positions, K columns in use (K = D, unless they are
renumbered).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hse_dist.model.fused import UnitRows, available
from hse_dist.model.kernels import Pattern, Pool, Score, expand_rows
from hse_dist.tables.block import DenseRows, SparseRows

SMALLEST = 1e-12
"""A row that is shorter is not scaled to length 1."""


class Operators(Protocol):
    """Pooling and scoring with the rows of one batch's candidates.

    Attributes:
        user_block: users that are best handled at a time.
    """

    user_block: int

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


CORE_USERS = 128
"""A user vector block of 4096 × 128 floats stays in a core's cache; both products then take half the time."""
GPU_BYTES = 2**30
"""Of a block's user vectors and scores with their gradients on a GPU, which waits for launches: few large blocks."""
VECTOR_BYTES = 14
"""Of a place of these, a user; fitted to what a GPU took with blocks of 128 users."""


def users_on_gpu(places: int) -> int:
    """How many users a GPU handles at a time, with so many columns and candidates together."""
    return max(CORE_USERS, GPU_BYTES // (VECTOR_BYTES * max(places, 1)) // CORE_USERS * CORE_USERS)


class SparseOperators:
    """On live entries only.

    Args:
        rows: the candidates' rows.
        unit: whether rows are used at length 1.
        kept_columns: int64 [K − 1], ascending; columns are renumbered to their place in it. Entries in other columns
            meet a user vector that is zero there, and go to one spare column, the last. None: columns stay.
    """

    user_block = CORE_USERS

    def __init__(self, rows: SparseRows, *, unit: bool, kept_columns: Tensor | None) -> None:
        self.kept_columns, self.gains = kept_columns, rows.gains
        columns, dims = rows.columns, rows.dims
        if kept_columns is not None:
            spare = len(kept_columns)
            place = torch.searchsorted(kept_columns, columns)
            padded = torch.cat([kept_columns, kept_columns.new_full((1,), -1)])
            columns, dims = torch.where(padded[place] == columns, place, spare), spare + 1
        self.pattern = Pattern(rows.offsets, columns, dims)
        if columns.device.type == "cuda":
            self.user_block = users_on_gpu(dims + len(rows.offsets) - 1)
        if unit and available(rows.values):
            self.values, norms = UnitRows.apply(rows.values, rows.offsets, SMALLEST)
            self.squares = (norms > SMALLEST).to(self.values.dtype)  # length 1, but for a row of zeros
        elif unit:
            norms = self.pattern.row_sums(rows.values.square()).clamp_min(SMALLEST**2).sqrt()
            self.values = rows.values / norms.index_select(0, self.pattern.rows)
            self.squares = (norms > SMALLEST).to(self.values.dtype)  # length 1, but for a row of zeros
        else:
            self.values = rows.values
            self.squares = self.pattern.row_sums(self.values.square())
        self.weights = self.values
        if rows.gains is not None:
            self.squares = self.squares * rows.gains
            self.weights = self.values * rows.gains.index_select(0, self.pattern.rows)

    def pool(self, positions: Tensor, user: Tensor, users: int) -> Tensor:
        entries, counts = expand_rows(self.pattern.offsets, positions)
        target = self.pattern.columns.index_select(0, entries).mul_(users)
        target += torch.repeat_interleave(user, counts, output_size=len(entries))
        return Pool.apply(self.values, entries, target, self.pattern.dims, users)

    def score(self, u_kb: Tensor) -> Tensor:
        return Score.apply(self.weights, self.pattern, u_kb)

    def own(self, positions: Tensor) -> Tensor:
        return self.squares.index_select(0, positions)


class DenseOperators:
    """The same on dense rows at length 1, for the baseline."""

    user_block = 2**30

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

"""The linear autoencoder with tied sparse factors (design: ELSA's, with a gain an item).

With x the binary history, A the rows and g the gains:

    u = Σ over i in x of A_i        score_j = g_j · (u·A_j) − [j in x] · g_j · ‖A_j‖²        loss = 2 − 2·cos(score, x)

The second term takes out an item's own contribution (EASE's zero diagonal). Rows at length 1 without gains are ELSA
(Vančura et al., RecSys 2022); free rows with g = ±1/diag(P) contain HSE (Van Balen & Goethals, WWW 2021) and EASE
(Steck, WWW 2019) exactly.

Shapes: B users, b of them at a time, C candidates, L history positions, K columns in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model.kernels import CosineLoss
from hse_dist.model.operators import DenseOperators, Operators, SparseOperators, columns_in_use
from hse_dist.tables.block import DenseRows, SparseRows


@dataclass(frozen=True)
class Activations:
    """What a step leaves for the growth scores; gradients are kept where `collect` asked for it.

    Attributes:
        operators: the block's operators, with the columns' renumbering.
        u_kb: transposed user vectors [K, b], one a block of users.
        scores_cb: scores [C, b], one a block of users.
        positions, user: the history as it was pooled, int64 [L] each (after dropout); users count from 0 to B − 1.
    """

    operators: Operators
    u_kb: list[Tensor]
    scores_cb: list[Tensor]
    positions: Tensor
    user: Tensor


class Autoencoder:
    """Settings of the model; it has no parameters of its own."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings

    def operators(self, rows: SparseRows | DenseRows, kept_columns: Tensor | None) -> Operators:
        """The operators of a block; `kept_columns` as in `SparseOperators`."""
        if isinstance(rows, DenseRows):
            return DenseOperators(rows)
        return SparseOperators(rows, unit=self.settings.row_norm == "unit", kept_columns=kept_columns)

    def encode(self, rows: SparseRows | DenseRows, offsets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """User vectors of histories.

        Args:
            rows: of the histories' items; offsets int64 [B + 1], positions int64 [L] into `rows`.

        Returns:
            uᵀ float32 [K, B], and the columns that its rows stand for (None: all).
        """
        kept = self._kept_columns(rows, None)
        users = len(offsets) - 1
        user = torch.repeat_interleave(torch.arange(users, device=offsets.device), offsets.diff())
        return self.operators(rows, kept).pool(positions, user, users), kept

    def _kept_columns(self, rows: SparseRows | DenseRows, positions: Tensor | None) -> Tensor | None:
        if isinstance(rows, DenseRows) or rows.dims <= self.settings.compact_above:
            return None
        return columns_in_use(rows, positions)

    def loss(
        self, rows: SparseRows | DenseRows, batch: Batch, generator: torch.Generator | None, *, collect: bool = False
    ) -> tuple[Tensor, Activations]:
        """The loss of a batch, a scalar; zero with a gradient of zero for a batch without users.

        Args:
            rows: the rows of `batch.candidates`, in that order.
            generator: of the input dropout; None: no dropout.
            collect: keep the gradients of `u_kb` and `scores_cb`, and columns that only candidates use.
        """
        lengths = batch.offsets.diff()
        users, trained = len(lengths), max(int((lengths > 0).sum()), 1)
        user = torch.repeat_interleave(torch.arange(users, device=lengths.device), lengths)
        seen = self._seen(batch.positions, generator)
        pooled, owner = (batch.positions, user) if seen is None else (batch.positions[seen], user[seen])
        operators = self.operators(rows, self._kept_columns(rows, None if collect else pooled))
        activations = Activations(operators, [], [], pooled, owner)
        losses = []
        for first in range(0, max(users, 1), operators.user_block):
            last = min(first + operators.user_block, users)
            part = slice(int(batch.offsets[first]), int(batch.offsets[last]))
            positions, owner = batch.positions[part], user[part] - first
            own = operators.own(positions)
            if seen is None:
                u_kb = operators.pool(positions, owner, last - first)
            else:
                u_kb = operators.pool(positions[seen[part]], owner[seen[part]], last - first)
                own = own * seen[part]  # a hidden item contributes nothing to its own score
            scores_cb = operators.score(u_kb)
            if collect:
                u_kb.retain_grad()
                scores_cb.retain_grad()
                activations.u_kb.append(u_kb)
                activations.scores_cb.append(scores_cb)
            losses.append(CosineLoss.apply(scores_cb, own, positions, owner, trained, self.settings.score_clip))
        return torch.stack(losses).sum(), activations

    def _seen(self, positions: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Which history positions the input shows, bool [L]; None: all of them."""
        if generator is None or self.settings.input_dropout == 0.0:
            return None
        drawn = torch.rand(len(positions), generator=generator).to(positions.device)
        return drawn >= self.settings.input_dropout

"""The linear autoencoder with tied sparse factors (design: ELSA's, with a gain an item).

With x the binary history, A the rows and g the gains:

    u = Σ over i in x of A_i        score_j = g_j · (u·A_j) − [j in x] · g_j · ‖A_j‖²        loss = 2 − 2·cos(score, x)

The second term takes out an item's own contribution (EASE's zero diagonal). Rows at length 1 without gains are ELSA
(Vančura et al., RecSys 2022); free rows with g = ±1/diag(P) contain HSE (Van Balen & Goethals, WWW 2021) and EASE
(Steck, WWW 2019) exactly.

`user_entries` keeps only the strongest entries of u before it is scored (HSE's bound on user vectors). The second term
stays as it is, though an item's own part in the entries that were left out is not in its score.

Shapes: B users, b of them at a time, the first N of them, C candidates, L history positions, K columns in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model.fused import FusedLoss, Histories, Kept, available
from hse_dist.model.kernels import CosineLoss, Strongest
from hse_dist.model.operators import DenseOperators, Operators, SparseOperators, columns_in_use
from hse_dist.tables.block import DenseRows, SparseRows

SMALLEST = 1e-300
"""Divides the shares of a batch that has no history."""


@dataclass(frozen=True)
class Activations:
    """What a step leaves for the growth scores: of its first N users only, as their cost is candidates × columns × N.

    Attributes:
        operators: the block's operators, with the columns' renumbering.
        positions, user: the N users' histories as they were pooled, int64 [L] each (after dropout).
        users: N.
        scale: what the batch's users count for, by what the N do: what makes a sum over the N an estimate of the
            loss's gradient, which is that of a mean.
        blocks: transposed user vectors [K, b] and scores [C, b] of blocks of users, N or more, of the plain path.
        kept: what the compiled sweep left; None: the plain path was taken.
    """

    operators: Operators
    positions: Tensor
    user: Tensor
    users: int
    scale: float
    blocks: list[tuple[Tensor, Tensor]]
    kept: Kept | None

    def matrices(self) -> Kept:
        """User vectors, their gradients and those of the scores, after the backward pass."""
        if self.kept is not None:
            return self.kept
        users, scores = zip(*self.blocks, strict=True)
        grad_users, grad_scores = ([part.grad for part in parts if part.grad is not None] for parts in (users, scores))
        assert len(grad_users) == len(users) and len(grad_scores) == len(scores)
        return Kept(*(self._first(parts) for parts in ([part.detach() for part in users], grad_users, grad_scores)))

    def _first(self, parts: list[Tensor]) -> Tensor:
        """The first users' columns of the parts, side by side; one part is not copied."""
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1))[:, : self.users].contiguous()


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
        return self._strongest(self.operators(rows, kept).pool(positions, user, users)), kept

    def _strongest(self, u_kb: Tensor) -> Tensor:
        count = self.settings.user_entries
        return u_kb if count is None else Strongest.apply(u_kb, count)

    def _kept_columns(self, rows: SparseRows | DenseRows, positions: Tensor | None) -> Tensor | None:
        if isinstance(rows, DenseRows) or rows.dims <= self.settings.compact_above:
            return None
        return columns_in_use(rows, positions)

    def loss(
        self, rows: SparseRows | DenseRows, batch: Batch, generator: torch.Generator | None, *, collect: int = 0
    ) -> tuple[Tensor, Activations]:
        """The loss of a batch, a scalar; zero with a gradient of zero for a batch without users.

        Args:
            rows: the rows of `batch.candidates`, in that order.
            generator: of the input dropout; None: no dropout.
            collect: of so many users keep what `Activations.matrices` gives; and columns that only candidates use.
        """
        shares = self._shares(batch.offsets.diff())
        histories = Histories(batch.offsets, batch.positions, self._seen(batch.positions, generator), shares)
        # the compiled sweep pools and scores in one go and has no search for the strongest entries in between
        whole = self.settings.user_entries is None
        if whole and isinstance(rows, SparseRows) and available(rows.values):
            return self.fused_loss(rows, histories, collect=collect)
        return self.plain_loss(rows, histories, collect=collect)

    def fused_loss(self, rows: SparseRows, histories: Histories, *, collect: int) -> tuple[Tensor, Activations]:
        """`loss` by the compiled sweep."""
        columns = self._kept_columns(rows, None if collect else histories.pooled()[0])
        operators = SparseOperators(rows, unit=self.settings.row_norm == "unit", kept_columns=columns)
        pattern, users = operators.pattern, min(collect, len(histories.offsets) - 1)
        kept = Kept.empty(pattern.candidates, pattern.dims, users, rows.values) if collect else None
        values, weights, own = operators.values, operators.weights, operators.squares
        loss = FusedLoss.apply(values, weights, own, pattern, histories, self.settings.score_clip, kept)
        return loss, _activations(operators, histories, users, [], kept)

    def plain_loss(
        self, rows: SparseRows | DenseRows, histories: Histories, *, collect: int
    ) -> tuple[Tensor, Activations]:
        """`loss` by the functions of `kernels.py`, or of dense rows."""
        users = len(histories.offsets) - 1
        operators = self.operators(rows, self._kept_columns(rows, None if collect else histories.pooled()[0]))
        user, shown = histories.user(), histories.shown
        losses, blocks = [], []
        for first in range(0, max(users, 1), operators.user_block):
            last = min(first + operators.user_block, users)
            part = slice(int(histories.offsets[first]), int(histories.offsets[last]))
            positions, owner = histories.positions[part], user[part] - first
            own = operators.own(positions)
            if shown is None:
                u_kb = operators.pool(positions, owner, last - first)
            else:
                u_kb = operators.pool(positions[shown[part]], owner[shown[part]], last - first)
                own = own * shown[part]  # a hidden item contributes nothing to its own score
            # what growth scores read is behind this: its values as they are scored, and with a gradient that passes
            # straight through that of all entries
            u_kb = self._strongest(u_kb)
            scores_cb = operators.score(u_kb)
            if first < collect:
                u_kb.retain_grad()
                scores_cb.retain_grad()
                blocks.append((u_kb, scores_cb))
            losses.append(
                CosineLoss.apply(
                    scores_cb, own, positions, owner, histories.shares[first:last], self.settings.score_clip
                )
            )
        return torch.stack(losses).sum(), _activations(operators, histories, min(collect, users), blocks, None)

    def _shares(self, lengths: Tensor) -> Tensor:
        """What each user of a batch, with a history of so many items, counts for; float64 [B]."""
        weights = lengths.double() ** (1.0 - self.settings.history_power) * (lengths > 0)
        return weights / weights.sum().clamp_min(SMALLEST)

    def _seen(self, positions: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Which history positions the input shows, bool [L]; None: all of them."""
        if generator is None or self.settings.input_dropout == 0.0:
            return None
        drawn = torch.rand(len(positions), generator=generator).to(positions.device)
        return drawn >= self.settings.input_dropout


def _activations(
    operators: Operators, histories: Histories, users: int, blocks: list[tuple[Tensor, Tensor]], kept: Kept | None
) -> Activations:
    """Those of the first `users`."""
    first = histories.first(users)
    positions, user = first.pooled()
    of_first = float(first.shares.sum())
    scale = float(histories.shares.sum()) / of_first if of_first else 1.0  # without a history there is no gradient
    return Activations(operators, positions, user, users, scale, blocks, kept)

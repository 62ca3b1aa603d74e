"""The linear autoencoder with tied sparse factors (design: ELSA's, with a gain an item), and the two towers that it
becomes where users or items have features: rows that are added to those of a history or of an item (`compose.py`).

With x the binary history, A the rows and g the gains:

    u = Σ over i in x of A_i        score_j = g_j · (u·A_j) − [j in x] · g_j · ‖A_j‖²        loss = 2 − 2·cos(score, x)

The second term takes out an item's own contribution (EASE's zero diagonal). Rows at length 1 without gains are ELSA
(Vančura et al., RecSys 2022); free rows with g = ±1/diag(P) contain HSE (Van Balen & Goethals, WWW 2021) and EASE
(Steck, WWW 2019) exactly.

`user_entries` keeps only the strongest entries of u before it is scored (HSE's bound on user vectors). The second term
stays as it is, though an item's own part in the entries that were left out is not in its score.

The loss is that cosine, with the history or with what another model makes of it (`teacher.py`), or one by ranking
(`losses.py`).

Shapes: B users, b of them at a time, the first N of them, C candidates, L history positions, M context positions (rows
of users' features), K columns in use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch, BatchFeatures
from hse_dist.model.block import Activations, Block, activations
from hse_dist.model.compose import compose
from hse_dist.model.fused import FusedLoss, Kept, available
from hse_dist.model.histories import Histories
from hse_dist.model.kernels import CosineLoss, Strongest
from hse_dist.model.losses import Ranked, bpr_loss, scale_of, softmax_loss
from hse_dist.model.operators import DenseOperators, Operators, SparseOperators, columns_in_use
from hse_dist.model.parameters import DenseParameters
from hse_dist.model.teacher import Teacher, TeacherLoss
from hse_dist.tables.block import DenseRows, SparseRows

SMALLEST = 1e-300
"""Divides the shares of a batch that has no history."""


class Autoencoder:
    """Settings of the model, and its dense parameters where it has any."""

    def __init__(self, settings: ModelSettings, parameters: DenseParameters | None = None) -> None:
        self.settings, self.parameters = settings, parameters or DenseParameters()

    def operators(self, block: Block, kept_columns: Tensor | None) -> Operators:
        """The operators of a block; `kept_columns` as in `SparseOperators`."""
        if isinstance(block.rows, DenseRows):
            return DenseOperators(block.rows)
        return SparseOperators(block.rows, unit=block.unit, kept_columns=kept_columns)

    def block(self, rows: SparseRows | DenseRows, features: BatchFeatures | None = None) -> Block:
        """What the rows of a batch's candidates, some of which may be those of features, are to the model."""
        unit = self.settings.row_norm == "unit"
        if features is None:
            return Block(rows, unit)
        assert isinstance(rows, SparseRows)
        composed, spread = compose(rows, features, self.parameters.weights, unit=unit)
        if not features.context_rows:
            return Block(composed, False, features.items, spread=spread)
        return Block(composed, False, features.items, features.context_offsets, features.context, spread)

    def encode(self, rows: SparseRows | DenseRows, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """User vectors of a batch.

        Args:
            rows: of the batch's candidates.

        Returns:
            uᵀ float32 [K, B], and the columns that its rows stand for (None: all).
        """
        block = self.block(rows, batch.features)
        histories = Histories(batch.offsets, batch.positions, None, self._shares(batch.offsets.diff()))
        positions, user = block.pooled(histories)
        kept = self._kept_columns(block.rows, positions)
        return self._strongest(self.operators(block, kept).pool(positions, user, len(batch.offsets) - 1)), kept

    def score_items(self, u_kb: Tensor, kept: Tensor | None, rows: SparseRows | DenseRows, batch: Batch) -> Tensor:
        """Scores of a batch's items for user vectors of `encode`, [C, B]."""
        block = self.block(rows, batch.features)
        return self.operators(block, kept).score(u_kb)[: block.items]

    def teacher(self, rows: SparseRows | DenseRows, positions: Tensor) -> Teacher:
        """This model as one that others learn from.

        Args:
            rows: of a batch's candidates. positions: int64 [L] into these, of all histories of the batch.
        """
        block = self.block(rows)
        return Teacher(self.operators(block, self._kept_columns(rows, positions)), self._strongest)

    def _strongest(self, u_kb: Tensor) -> Tensor:
        count = self.settings.user_entries
        return u_kb if count is None else Strongest.apply(u_kb, count)

    def _kept_columns(self, rows: SparseRows | DenseRows, positions: Tensor | None) -> Tensor | None:
        if isinstance(rows, DenseRows) or rows.dims <= self.settings.compact_above:
            return None
        return columns_in_use(rows, positions)

    def loss(
        self,
        rows: SparseRows | DenseRows,
        batch: Batch,
        generator: torch.Generator | None,
        *,
        collect: int = 0,
        teacher: Teacher | None = None,
    ) -> tuple[Tensor, Activations]:
        """The loss of a batch, a scalar; zero with a gradient of zero for a batch without users.

        Args:
            rows: the rows of `batch.candidates`, in that order.
            generator: of the input dropout, and of BPR's negatives; None: no dropout, and negatives by torch's own.
            collect: of so many users keep what `Activations.matrices` gives; and columns that only candidates use.
            teacher: whose scores take the place of the histories.
        """
        shares = self._shares(batch.offsets.diff())
        histories = Histories(batch.offsets, batch.positions, self._seen(batch.positions, generator), shares)
        block = self.block(rows, batch.features)
        # the compiled sweep pools and scores in one go: no search for the strongest entries, no context in between
        plain = self.settings.user_entries is not None or block.context is not None or teacher is not None
        whole = not plain and self.settings.loss == "cosine"
        if whole and isinstance(block.rows, SparseRows) and available(block.rows.values):
            return self.fused_loss(block, histories, collect=collect)
        chances = batch.log_chances
        return self.plain_loss(block, histories, collect=collect, chances=chances, generator=generator, teacher=teacher)

    def fused_loss(self, block: Block, histories: Histories, *, collect: int) -> tuple[Tensor, Activations]:
        """`loss` by the compiled sweep."""
        rows = block.rows
        assert isinstance(rows, SparseRows)
        columns = self._kept_columns(rows, None if collect else histories.pooled()[0])
        operators = SparseOperators(rows, unit=block.unit, kept_columns=columns)
        pattern, users = operators.pattern, min(collect, len(histories.offsets) - 1)
        kept = Kept.empty(pattern.candidates, pattern.dims, users, rows.values) if collect else None
        values, weights, own = operators.values, operators.weights, operators.squares
        loss = FusedLoss.apply(values, weights, own, pattern, histories, self.settings.score_clip, kept)
        return loss, activations(block, operators, histories, users, [], kept)

    def plain_loss(
        self,
        block: Block,
        histories: Histories,
        *,
        collect: int,
        chances: Tensor | None = None,
        generator: torch.Generator | None = None,
        teacher: Teacher | None = None,
    ) -> tuple[Tensor, Activations]:
        """`loss` by the functions of `kernels.py`, or of dense rows, or of `losses.py` and `teacher.py`."""
        users = len(histories.offsets) - 1
        pooled = histories.pooled()[0]
        in_use = None if collect else pooled if block.context is None else torch.cat([pooled, block.context])
        operators = self.operators(block, self._kept_columns(block.rows, in_use))
        at_a_time = operators.user_block
        if teacher is not None:  # whose user vectors may be the longer ones
            at_a_time = min(at_a_time, teacher.operators.user_block)
        losses, blocks = [], []
        for first in range(0, max(users, 1), at_a_time):
            last = min(first + at_a_time, users)
            some = histories.between(first, last)
            positions, owner = block.pooled(some, first)
            own = operators.own(some.positions)
            if some.shown is not None:
                own = own * some.shown  # a hidden item contributes nothing to its own score
            # what growth scores read is behind this: its values as they are scored, and with a gradient that passes
            # straight through that of all entries
            u_kb = self._strongest(operators.pool(positions, owner, last - first))
            scores_cb = operators.score(u_kb)
            if first < collect:
                u_kb.retain_grad()
                scores_cb.retain_grad()
                blocks.append((u_kb, scores_cb))
            if teacher is not None:
                losses.append(_taught(teacher, scores_cb, some))
                continue
            losses.append(self._judge(u_kb, scores_cb[: block.items], own, some, chances, generator))
        return torch.stack(losses).sum(), activations(block, operators, histories, min(collect, users), blocks, None)

    def _judge(
        self,
        u_kb: Tensor,
        scores_cb: Tensor,
        own: Tensor,
        users: Histories,
        chances: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The loss of a block of users."""
        positions, user, shares = users.positions, users.user(), users.shares
        if self.settings.loss == "cosine":
            return CosineLoss.apply(scores_cb, own, positions, user, shares, self.settings.score_clip)
        scale = scale_of(u_kb, self.parameters.temperature)
        ranked = Ranked(scores_cb, own, positions, user, shares.to(scores_cb.dtype), scale)
        if self.settings.loss == "softmax":
            return softmax_loss(ranked, chances)
        return bpr_loss(ranked, self.settings.bpr_negatives, generator)

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


def _taught(teacher: Teacher, scores_cb: Tensor, users: Histories) -> Tensor:
    """The loss of a block of users who learn from a teacher."""
    positions, user = users.pooled()
    return TeacherLoss.apply(scores_cb, teacher.scores(users), positions * scores_cb.shape[1] + user, users.shares)

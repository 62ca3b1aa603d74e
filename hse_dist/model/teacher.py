"""A loss by what another model recommends, in place of the history: distillation (Hinton et al., arXiv 1503.02531).

In: scores of a block of users by the model that learns, and by its teacher for the same input. Out: a scalar. What the
input shows is no matter of either: neither model would recommend it, so its scores count as zero. Nor does it matter
how far down the teacher puts what it does not recommend: its scores below zero count as zero.

Why: a table of few entries that learns from histories has what they say in noise, and where data are poor there is
nothing left to learn once its start is there. What a table of many entries makes of a history says more about every
item of the catalogue, and of any part of the history.

Shapes: b users, C candidates, L history positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hse_dist.model.histories import Histories
from hse_dist.model.kernels import SMALLEST_SQUARE, column_products, column_squares
from hse_dist.model.operators import Operators


class Teacher:
    """Another model's rows of a batch's candidates.

    Args:
        operators: of these rows.
        strongest: what is left of a user vector [K, b] before it is scored.
    """

    def __init__(self, operators: Operators, strongest: Callable[[Tensor], Tensor]) -> None:
        self.operators, self.strongest = operators, strongest

    def scores(self, users: Histories) -> Tensor:
        """Of all candidates, by what the input shows: float32 [C, b], without a gradient."""
        positions, user = users.pooled()
        with torch.no_grad():
            return self.operators.score(self.strongest(self.operators.pool(positions, user, len(users.offsets) - 1)))


class TeacherLoss(Function):
    """Weighted mean over users of 2 − 2·cos(score, teacher's score), over candidates that the input does not show.

    The gradient is made at once, in the memory of the teacher's scores: of a block of users this is all that stays.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor, shown: Tensor, shares: Tensor) -> Tensor:
        """scores [C, b]; target [C, b], which is overwritten; shown int64, flat places of what the input shows;
        shares float64 [b] of the users."""
        target.clamp_min_(0.0).view(-1)[shown] = 0.0
        users = scores.shape[1]
        squares = column_squares(scores).index_add(0, shown % users, -scores.reshape(-1)[shown].square())
        wanted = column_squares(target)
        # scores that are all zero have no direction: such a user counts in the loss and has no gradient
        still = (squares <= SMALLEST_SQUARE) | (wanted <= SMALLEST_SQUARE)
        norm, length = (part.masked_fill(still, 1.0).sqrt() for part in (squares, wanted))
        cosine = column_products(scores, target).masked_fill(still, 0.0) / (norm * length)
        shares = shares.to(scores.dtype)
        weight = -2.0 * shares * ~still
        target.mul_(weight / (norm * length)).addcmul_(scores, (-weight * cosine / norm.square()).expand_as(scores))
        target.view(-1)[shown] = 0.0
        ctx.save_for_backward(target)
        return ((2.0 - 2.0 * cosine) * shares).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (grad_scores,) = ctx.saved_tensors
        return grad * grad_scores, None, None, None

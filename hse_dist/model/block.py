"""What a step computes with, and what it leaves.

In: rows of a batch's candidates, as the model sees them. Out: `Block` for the model, `Activations` for growth scores.

Shapes: B users, b of them at a time, the first N of them, C candidates, L history positions, M context positions (rows
of users' features), K columns in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hse_dist.model.compose import Spread
from hse_dist.model.fused import Kept
from hse_dist.model.histories import Histories
from hse_dist.model.kernels import owners
from hse_dist.model.operators import Operators
from hse_dist.tables.block import DenseRows, SparseRows


@dataclass(frozen=True)
class Block:
    """The rows of a batch as the model sees them.

    Attributes:
        rows: of the candidates. unit: whether they are yet to be brought to length 1.
        items: candidates that can be recommended, the first ones; None: all.
        context_offsets, context: int64 [B + 1], [M], the rows of each user's features; None where there are none.
        spread: see `Activations`.
    """

    rows: SparseRows | DenseRows
    unit: bool
    items: int | None = None
    context_offsets: Tensor | None = None
    context: Tensor | None = None
    spread: Spread | None = None

    def pooled(self, histories: Histories, first: int = 0) -> tuple[Tensor, Tensor]:
        """Positions that add up to the user vectors, and the user of each, int64 each: what the input shows, and the
        context.

        Args:
            histories: of users from `first` on.
        """
        positions, user = histories.pooled()
        if self.context_offsets is None or self.context is None:
            return positions, user
        ends = self.context_offsets[first : first + len(histories.offsets)]
        return torch.cat([positions, self.context[int(ends[0]) : int(ends[-1])]]), torch.cat([user, owners(ends)])


@dataclass(frozen=True)
class Activations:
    """What a step leaves for the growth scores: of its first N users only, as their cost is candidates × columns × N.

    Attributes:
        operators: the block's operators, with the columns' renumbering.
        positions, user: the N users' histories as they were pooled, int64 [L + M] each (after dropout), and their
            context.
        users: N.
        scale: what the batch's users count for, by what the N do: what makes a sum over the N an estimate of the
            loss's gradient, which is that of a mean.
        blocks: transposed user vectors [K, b] and scores [C, b] of blocks of users, N or more, of the plain path.
        kept: what the compiled sweep left; None: the plain path was taken.
        spread: to which rows a position of the block belongs; None: to those that were looked up, as they are.
    """

    operators: Operators
    positions: Tensor
    user: Tensor
    users: int
    scale: float
    blocks: list[tuple[Tensor, Tensor]]
    kept: Kept | None
    spread: Spread | None = None

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


def activations(
    block: Block,
    operators: Operators,
    histories: Histories,
    users: int,
    blocks: list[tuple[Tensor, Tensor]],
    kept: Kept | None,
) -> Activations:
    """Those of the first `users`."""
    first = histories.first(users)
    positions, user = block.pooled(first)
    of_first = float(first.shares.sum())
    scale = float(histories.shares.sum()) / of_first if of_first else 1.0  # without a history there is no gradient
    return Activations(operators, positions, user, users, scale, blocks, kept, block.spread)

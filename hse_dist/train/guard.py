"""Looks at a step's numbers before any rank moves its tables.

In: a step's loss, and the gradients of dense parameters and of the rows that it looked up, on their way back. Out:
nothing where all ranks have numbers; else `NotFiniteError` on every rank, before anything is sent to an owner: so
either all ranks update, or none does. The ranks agree by one number each, in the backward pass, where they wait for one
another anyway; with it travels whether one of them was asked to stop (`preemption.py`), so that all stop after the same
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hse_dist import preemption
from hse_dist.ranks import Ranks
from hse_dist.tables.block import DenseRows, SparseRows

NAMED = 10
"""Rows that a message names; of more it gives the number."""
Rows = TypeVar("Rows", bound=SparseRows | DenseRows)


class NotFiniteError(Exception):
    """A step has NaN or infinity; says on which rank, in what, and in which rows."""


class Guard:
    """One a trainer.

    Args:
        dense: dense parameters, whose gradients are looked at, too.

    Attributes:
        stop: whether a rank was asked to stop, as of the last step; the same on all ranks.
    """

    def __init__(self, ranks: Ranks, dense: Sequence[Tensor] = ()) -> None:
        self.ranks, self.dense, self.stop = ranks, dense, False
        self._rows: SparseRows | DenseRows | None = None
        self._candidates: Tensor | None = None

    def watch(self, rows: Rows, candidates: Tensor) -> Rows:
        """The same rows, whose gradients come by here.

        Args:
            candidates: int64 [C], the number of each row in the table.
        """
        self._rows, self._candidates = rows, candidates
        gains = rows.gains if isinstance(rows, SparseRows) else None
        values, gains = _Watched.apply(self, rows.values, gains)
        return replace(rows, values=values, **({} if gains is None else {"gains": gains}))

    def backward(self, loss: Tensor) -> None:
        """Check the loss, and go back from it; the tables have moved after that, by the fused optimizer.

        Raises:
            NotFiniteError: a rank's loss, rows or gradients are no numbers, and no table has moved.
        """
        if torch.isfinite(loss):
            loss.backward()
        else:
            self._agree(f"the loss of rank {self.ranks.rank} is {loss.item()}{self._bad_rows()}")

    def check(self, values: Tensor | None, gains: Tensor | None) -> None:
        """Check the gradients of the watched values and gains; a collective call."""
        problem = ""
        for gradient, what in ((values, "values"), (gains, "gains")):
            # a sum is finite where all parts are, or else too large for any use; one pass, and no array of marks
            if gradient is not None and not torch.isfinite(gradient.sum()) and not torch.isfinite(gradient).all():
                problem = f"the gradient of rank {self.ranks.rank} is no number in {self._named(gradient, what)}"
        # theirs are made by now: the way back is that of the forward pass, which began with the watched rows
        if not problem and any(part.grad is not None and not torch.isfinite(part.grad).all() for part in self.dense):
            problem = f"the gradient of rank {self.ranks.rank} is no number in the dense parameters"
        self._agree(problem)

    def _agree(self, problem: str) -> None:
        flags = torch.tensor([bool(problem), preemption.asked()], dtype=torch.int32)
        if self.ranks.size > 1:
            self.ranks.maximum(flags)
        bad, stop = flags.tolist()
        self.stop = bool(stop)
        self._rows = None if not bad else self._rows
        if bad:
            raise NotFiniteError("; ".join(filter(None, self.ranks.gather(problem))))

    def _bad_rows(self) -> str:
        rows = self._rows
        parts = {"values": rows.values, "gains": getattr(rows, "gains", None)} if rows is not None else {}
        found = [
            self._named(part.detach(), what)
            for what, part in parts.items()
            if part is not None and not torch.isfinite(part).all()
        ]
        return f" by {' and '.join(found)}" if found else ""

    def _named(self, part: Tensor, what: str) -> str:
        """The rows of the table that have NaN or infinity in `part`: of an entry (sparse values), a row or a gain."""
        rows, candidates = self._rows, self._candidates
        assert rows is not None and candidates is not None
        bad = (~torch.isfinite(part)).nonzero()[:, 0]
        if isinstance(rows, SparseRows) and what == "values":
            bad = torch.searchsorted(rows.offsets, bad, right=True) - 1
        numbers = candidates[bad.unique()].tolist()
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        return f"the {what} of row {', '.join(map(str, numbers[:NAMED]))}{more}"


class _Watched(Function):
    """The identity of values and gains; on the way back `Guard.check`, before either goes on."""

    @staticmethod
    def forward(ctx: Any, guard: Guard, values: Tensor, gains: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.guard = guard
        ctx.set_materialize_grads(False)
        return values.view_as(values), None if gains is None else gains.view_as(gains)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, values: Tensor | None, gains: Tensor | None) -> tuple[None, Tensor | None, Tensor | None]:
        ctx.guard.check(values, gains)
        return None, values, gains

"""The loss of a batch and all its gradients in one compiled sweep over blocks of users.

In: rows as values and weights, histories. Out: the loss, with its gradients already made: the loss is a scalar, and its
backward pass only has to scale them. A block's user vectors and scores never leave a core's cache, and neither the
`[D, B]` nor the `[C, B]` matrix exists. The arithmetic is that of `kernels.py`, the plain path, which takes over where
the kernels were not built, on other devices and for other types; a test holds the two together.

Shapes: B users, C candidates, D columns, E live entries, L history positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hse_dist.model.histories import Histories
from hse_dist.model.kernels import Pattern
from hse_dist.native.library import call, library

CACHED_COLUMNS = 16_384
"""Up to so many columns a block of 64 users is fastest; beyond, a block of 16 and no columns but those of its users."""


@dataclass(frozen=True)
class Kept:
    """What a step leaves of the first N users, for the growth scores: their vectors and the gradients of these,
    float32 [D, N], and the gradients of the scores, float32 [C, N]."""

    users: Tensor
    grad_users: Tensor
    grad_scores: Tensor

    @classmethod
    def empty(cls, candidates: int, dims: int, users: int, like: Tensor) -> Kept:
        """To be filled by `FusedLoss`."""
        shapes = ((dims, users), (dims, users), (candidates, users))
        return cls(*(like.new_empty(shape) for shape in shapes))


def available(values: Tensor) -> bool:
    """Whether the compiled sweep can take these values."""
    return values.device.type == "cpu" and values.dtype == torch.float32 and library() is not None


class UnitRows(Function):
    """Rows at length 1; one that is shorter than `smallest` is divided by that instead."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, offsets: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
        """values [E], offsets [C + 1]; gives the scaled values [E] and the divisors [C]."""
        values = values.contiguous()
        norms, unit = values.new_empty(len(offsets) - 1), torch.empty_like(values)
        call("hse_unit_rows", len(norms), smallest, offsets, values, norms, unit)
        ctx.save_for_backward(offsets, unit, norms)
        ctx.smallest = smallest
        ctx.mark_non_differentiable(norms)
        return unit, norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        offsets, unit, norms = ctx.saved_tensors
        out = torch.empty_like(unit)
        call("hse_unit_rows_backward", len(norms), ctx.smallest, offsets, unit, norms, grad.contiguous(), out)
        return out, None, None


class FusedLoss(Function):
    """Weighted mean over users of 2 − 2·cos(score, history); see `autoencoder.py` for the formula."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weights: Tensor,
        own: Tensor,
        pattern: Pattern,
        histories: Histories,
        clip: float | None,
        kept: Kept | None,
    ) -> Tensor:
        """values, weights [E], float32; own [C].

        Args:
            kept: is filled for the first users; None: nothing is kept.
        """
        grads, loss = _sweep(values, weights, own, pattern, histories, clip, kept)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = float(grad)
        values, weights, own = (saved if scale == 1.0 else saved * scale for saved in ctx.saved_tensors)
        return values, weights, own, None, None, None, None


def _sweep(
    values: Tensor,
    weights: Tensor,
    own: Tensor,
    pattern: Pattern,
    histories: Histories,
    clip: float | None,
    kept: Kept | None,
) -> tuple[list[Tensor], Tensor]:
    users, candidates, dims, entries = len(histories.offsets) - 1, pattern.candidates, pattern.dims, len(values)
    width = 64 if dims <= CACHED_COLUMNS else 16
    threads = max(1, min(torch.get_num_threads(), math.ceil(users / width)))
    columns = pattern.columns.to(torch.int32)
    values, weights, own = values.contiguous(), weights.contiguous(), own.contiguous()
    ends = torch.empty(dims + 1, dtype=torch.int64)
    cells = torch.empty(entries, dtype=torch.int64)  # a row and a weight each
    call("hse_by_column", candidates, dims, pattern.offsets, columns, weights, ends, cells)
    grad_values, grad_weights = values.new_zeros(threads, entries), values.new_zeros(threads, entries)
    grad_own, loss = values.new_zeros(threads, candidates), torch.zeros(1, dtype=torch.float64)
    space = values.new_empty(threads * (2 * dims + candidates) * width)
    wanted = [None] * 3 if kept is None else [kept.users, kept.grad_users, kept.grad_scores]
    call(
        "hse_step", candidates, dims, users, histories.shares, math.inf if clip is None else clip, width, threads,
        pattern.offsets, columns, values, weights, own, ends, cells,
        histories.offsets, histories.positions, histories.shown, space,
        grad_values, grad_weights, grad_own, loss, 0 if kept is None else kept.users.shape[1], *wanted,
    )  # fmt: skip
    return [grad_values[0], grad_weights[0], grad_own[0]], loss[0].to(torch.float32)

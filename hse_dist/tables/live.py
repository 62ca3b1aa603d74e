"""Live entries out of the chunks of a lookup.

In: values and columns by slot. Out: values and columns of live entries alone, in the order of their slots, and where
each chunk's begin. Free slots get no gradient, so that they stay 0. On a CPU both directions are one compiled pass.

Shapes: N chunks, w slots a chunk, E live entries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hse_dist.native.library import call
from hse_dist.tables.codecs import compiled


def live_entries(values_nw: Tensor, columns_nw: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values float32 [E], with a gradient; columns int64 [E]; ends int64 [N + 1].

    Args:
        values_nw: float32 [N, w]. columns_nw: float32 [N, w], `dims` and more where a slot is free.
    """
    if compiled(values_nw):
        return CompiledEntries.apply(values_nw, columns_nw.contiguous(), dims)
    live_nw = columns_nw < dims
    entries = live_nw.flatten().nonzero().squeeze(1)
    ends = torch.nn.functional.pad(live_nw.sum(1).cumsum(0), (1, 0))
    columns = columns_nw.flatten().index_select(0, entries).long()
    return values_nw.flatten().index_select(0, entries), columns, ends


class CompiledEntries(Function):
    """`live_entries` by the compiled kernels."""

    @staticmethod
    def forward(ctx: Any, values_nw: Tensor, columns_nw: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
        chunks, width = values_nw.shape
        values = values_nw.new_empty(chunks * width)
        columns, ends = torch.empty(len(values), dtype=torch.int64), torch.empty(chunks + 1, dtype=torch.int64)
        found = call("hse_live_entries", chunks, width, dims, columns_nw, values_nw.contiguous(), values, columns, ends)
        ctx.save_for_backward(columns_nw)
        ctx.dims = dims
        values, columns = values[:found], columns[:found]
        ctx.mark_non_differentiable(columns, ends)
        return values, columns, ends

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (columns_nw,) = ctx.saved_tensors
        out = torch.empty_like(columns_nw)
        call("hse_live_entries_backward", *columns_nw.shape, ctx.dims, columns_nw, grad.contiguous(), out)
        return out, None, None

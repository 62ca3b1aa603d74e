"""Error feedback: what a rank leaves behind of a gradient, it adds to the next one that it sends for the same entry.

In: gradients of the chunks of a lookup, on their way back to the owners. Out: the strongest r of w slots of each,
rounded as they will arrive; the rest stays here until the rank looks the chunk up again. It is an autograd function
around the lookup, because a codec hears no ids. Sources: Seide et al. (Interspeech 2014) and Stich et al., *Sparsified
SGD with Memory* (NeurIPS 2018), here by the slots of a chunk.

A residual belongs to a (row, column), not to a slot: it is stored with its columns and counts for nothing where the
columns that are read now differ. Chunks are numbered by falling popularity, so where memory does not suffice for all,
the first ones, which send most often, have residuals and the others lose what they leave behind.

Shapes: N chunks of a lookup, w slots a chunk, K chunks with residuals.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hse_dist.native.library import call
from hse_dist.tables.codecs import KINDS, StrongestGradients, compiled, rounded, strongest

NO_COLUMN = -1.0
log = logging.getLogger(__name__)


class Residuals:
    """This rank's residuals, on the device of the gradients.

    Args:
        codec: of the gradients.
        chunks: of the whole table. memory_mb: most memory for residuals and their columns, in MiB.
        ranks: how many ranks share the table: owners divide gradients by it.
    """

    def __init__(
        self, codec: StrongestGradients, chunks: int, memory_mb: int, ranks: int, device: torch.device
    ) -> None:
        self.codec, self.ranks = codec, ranks
        self.kept = min(chunks, memory_mb * 2**20 // (8 * codec.width))
        if self.kept < chunks:
            log.info("Error feedback for the first %d of %d chunks: tables.item.wire.feedback_mb", self.kept, chunks)
        self.values = torch.zeros(self.kept, codec.width, device=device)
        self.columns = torch.full_like(self.values, NO_COLUMN)

    def send(self, grad_nw: Tensor, ids_n: Tensor, columns_nw: Tensor) -> Tensor:
        """What goes out now, float32 [N, w]; the rest is stored.

        Args:
            grad_nw: float32. ids_n: int64, distinct. columns_nw: float32, of these chunks at present.
        """
        codec = self.codec
        grad_nw, columns_nw = grad_nw.contiguous(), columns_nw.contiguous()
        if not compiled(grad_nw):
            return self._plain_send(grad_nw, ids_n, columns_nw)
        sent = torch.empty_like(grad_nw)
        call(
            "hse_feed_back", len(grad_nw), codec.width, codec.sent, KINDS[codec.dtype],
            ids_n.contiguous(), columns_nw, grad_nw, self.kept, self.values, self.columns, sent,
        )  # fmt: skip
        return sent

    def _plain_send(self, grad_nw: Tensor, ids_n: Tensor, columns_nw: Tensor) -> Tensor:
        stored = ids_n < self.kept
        ids, columns = ids_n[stored], columns_nw[stored]
        total = grad_nw.clone()
        total[stored] += self.values[ids].masked_fill(self.columns[ids] != columns, 0.0)
        sent = rounded(total, self.codec.dtype).masked_fill(~strongest(total, self.codec.sent), 0.0)
        self.values[ids], self.columns[ids] = (total - sent)[stored], columns
        return sent

    def state_dict(self) -> dict[str, np.ndarray]:
        """Residuals that are not zero; arrays of equal length, and the number of ranks."""
        ids = self.values.any(1).nonzero().squeeze(1)
        return {
            "residual_ids": ids.cpu().numpy(),
            "residual_values": self.values[ids].cpu().numpy(),
            "residual_columns": self.columns[ids].cpu().numpy(),
            "residual_ranks": np.array(self.ranks),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Add what `state_dict()` of a rank gave: where a rank takes over from several, their sum is what they owe.

        Residuals of another number of ranks are scaled, because owners divide what arrives by the number of ranks.
        """
        ids = torch.from_numpy(state["residual_ids"]).to(self.values.device)
        stored = ids < self.kept  # the memory setting may have become smaller
        ids = ids[stored]
        values, columns = (
            torch.from_numpy(state[name]).to(self.values.device)[stored]
            for name in ("residual_values", "residual_columns")
        )
        known = self.columns[ids] == columns
        scale = self.ranks / int(state["residual_ranks"])
        self.values[ids] = self.values[ids].masked_fill(~known, 0.0) + scale * values
        self.columns[ids] = columns


class FeedBack(Function):
    """The identity; on the way back `Residuals.send`."""

    @staticmethod
    def forward(ctx: Any, values_nw: Tensor, ids_n: Tensor, columns_nw: Tensor, residuals: Residuals) -> Tensor:
        """values_nw float32 [N, w], with a gradient."""
        ctx.residuals = residuals
        ctx.save_for_backward(ids_n, columns_nw)
        return values_nw.view_as(values_nw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nw: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.residuals.send(grad_nw, *ctx.saved_tensors), None, None, None

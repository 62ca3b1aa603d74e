"""The exact top k items of each user, found while the catalogue passes by in blocks.

In: blocks of scores, float32 `[B, n]` (B users, n consecutive items), in any order and of any size; the items a user
has seen, as offsets and rows. Out: item rows, int64 `[B, k]`, best first.

Why keys: equal scores must rank the same way whatever the size of the blocks or the device, and `torch.topk` breaks
ties as it pleases. So a score and its row become one int64 — the score's bits in an order-preserving form above, the
inverted row below — and no two keys of a user are equal: the lower row wins a tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hse_dist.errors import NumericError

KEYS_AT_A_TIME = 2**18
"""Keys made at a time (2 MiB of them stay in a core's cache: twice as fast as a whole block of 512 × 8192)."""

_NO_ITEM = -(2**63)
_ROWS = 2**32
_LOWEST = (-(2**23)) ^ 0x7FFFFFFF
"""The ordered form of -inf: what is not above it is no item."""


class TopK:
    """Running top k of `users` users; a score of -inf is no item.

    Args:
        users: B.
        k: length of the lists.
        device: where the scores will live.
    """

    def __init__(self, users: int, k: int, device: torch.device | str = "cpu") -> None:
        if k < 1:
            raise ValueError(f"k = {k} must be at least 1")
        self.k = k
        self._best = torch.full((users, k), _NO_ITEM, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, first_item: int) -> None:
        """Take in the scores, float32 `[B, n]`, of the items `first_item … first_item + n - 1`.

        Raises:
            NumericError: a score is NaN; names the item's row.
        """
        users, items = scores.shape
        if users != len(self._best):
            raise ValueError(f"scores of {users} users for a top list of {len(self._best)}")
        if users == 0 or items == 0:
            return
        _refuse_nan(scores, first_item)
        rows = (_ROWS - 1 - first_item) - torch.arange(items, device=scores.device)
        step = max(1, KEYS_AT_A_TIME // items)
        for first in range(0, users, step):
            part = slice(first, first + step)
            keys = _ordered(scores[part]).to(torch.int64).mul_(_ROWS).add_(rows)
            best = self._best[part]
            # the few best of this block first: the list is not copied beside the whole block
            strongest = keys.topk(min(self.k, items), dim=1).values
            torch.topk(torch.cat([best, strongest], dim=1), self.k, dim=1, out=(best, torch.empty_like(best)))

    def result(self) -> Tensor:
        """Item rows, int64 `[B, k]`, best first; -1 where a user has fewer items."""
        rows = (_ROWS - 1) - (self._best & (_ROWS - 1))
        return torch.where((self._best >> 32) > _LOWEST, rows, -1)


def mask(scores: Tensor, first_item: int, offsets: Tensor, rows: Tensor) -> None:
    """Set the scores of seen items to -inf, in place.

    Args:
        scores: float32 `[B, n]` of the items `first_item … first_item + n - 1`.
        offsets, rows: int64 `[B + 1]` and `[L]`, the items each user has seen, of the whole catalogue.
    """
    every = torch.arange(len(scores), device=rows.device)
    users = torch.repeat_interleave(every, offsets.diff(), output_size=len(rows))
    columns = rows - first_item
    inside = (columns >= 0) & (columns < scores.shape[1])
    scores[users[inside], columns[inside]] = -torch.inf


def _ordered(scores: Tensor) -> Tensor:
    """int32 of the same order as the floats; adding 0 makes -0 equal to +0."""
    bits = scores.float().add(0.0).contiguous().view(torch.int32)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


def _refuse_nan(scores: Tensor, first_item: int) -> None:
    bad = torch.isnan(scores).any(dim=0)
    if bool(bad.any()):
        row = first_item + int(bad.nonzero()[0])
        raise NumericError(f"The score of item row {row} is NaN.", cause="Its embedding or a user's is not finite.")

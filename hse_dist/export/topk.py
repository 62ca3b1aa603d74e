"""The top k items of users, exact; NumPy only, so that serving needs no torch.

In: float32 scores `[B, items]`. Out: item rows int64 and scores float32 `[B, k]`, best first.

The rule is that of `evaluate/topk.py`: score and inverted row form one integer, the lower row wins a tie.
"""

from __future__ import annotations

import numpy as np

_ROWS = np.int64(2**32)


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` of each line, k at most the number of items; a score of -inf is no item, NaN is not allowed.

    Returns:
        Rows int64 and scores float32, `[B, k]`; -1 and -inf where a user has fewer items.
    """
    items = scores.shape[1]
    # adding 0 makes -0 equal to +0
    keys = _flip((scores + np.float32(0)).view(np.int32)).astype(np.int64)
    keys *= _ROWS
    keys += _ROWS - 1 - np.arange(items, dtype=np.int64)
    keys.partition(items - k, axis=1)
    best = np.sort(keys[:, items - k :], axis=1)[:, ::-1]
    found = _flip((best // _ROWS).astype(np.int32)).view(np.float32)
    return np.where(found > -np.inf, _ROWS - 1 - best % _ROWS, -1), found


def _flip(bits: np.ndarray) -> np.ndarray:
    """The bits of float32 to int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))

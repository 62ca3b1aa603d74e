"""Small blocks of rows in float64, for tests."""

from __future__ import annotations

import numpy as np
import torch

from hse_dist.tables.block import SparseRows


def make_rows(rng: np.random.Generator, candidates: int, dims: int, *, gains: bool, empty: bool = True) -> SparseRows:
    """Rows of different lengths, float64; one of them empty."""
    lengths = rng.integers(1, min(dims, 6) + 1, candidates)
    if empty and candidates > 2:
        lengths[1] = 0
    columns = [rng.permutation(dims)[:n] for n in lengths]
    return SparseRows(
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        columns=torch.from_numpy(np.concatenate(columns).astype(np.int64)),
        values=torch.from_numpy(rng.normal(size=lengths.sum())).requires_grad_(),
        gains=torch.from_numpy(rng.normal(size=candidates)).requires_grad_() if gains else None,
        dims=dims,
    )

"""Full EASE: the closed-form linear autoencoder that sparse models are measured against.

In: prepared data. Out: the same metrics as `evaluate`, of an items × items matrix (4 × items bytes an item).

Steck, Embarrassingly Shallow Autoencoders for Sparse Data (WWW 2019), eq. 8: with P = (XᵀX + λI)⁻¹, the weights are
B_ij = -P_ij / P_jj off the diagonal and 0 on it, the scores x·B. Seen items are not ranked, so the diagonal never
matters and B needs no matrix of its own: one matrix is filled with the Gram matrix, factored, inverted and mirrored in
place (LAPACK potrf, potri), and scores are x·P scaled by column.

λ is chosen on validation where it is not given, by climbing a grid: nDCG over log λ has one peak, and a fit of 41 000
items takes minutes. The split asked for is scored in the same pass, so the chosen λ is never fitted twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch

from hse_dist.data.popularity import thirds
from hse_dist.errors import ConfigError, DataError, NumericError, ResourceError
from hse_dist.evaluate.metrics import DEPTH, Metrics
from hse_dist.evaluate.topk import TopK, mask
from hse_dist.memory import available_memory

if TYPE_CHECKING:
    from hse_dist.data.prepared import Prepared

GRID = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""The λ that validation chooses from; the climb begins at 200."""

CHOICE = "ndcg@100"
"""The validation metric that chooses λ."""

DOUBLE_ITEMS = 10_000
"""Up to so many items the arithmetic is float64; beyond, float32 halves memory and time."""

_SIDE = 1024
"""Side of the blocks in which matrices are filled and mirrored."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ease:
    """`inverse` P `[items, items]`, C-contiguous; `scale` -1 / diag(P) `[items]`."""

    inverse: np.ndarray
    scale: np.ndarray

    def scores(self, inputs: sp.csr_matrix) -> np.ndarray:
        """float32 `[B, items]` of binary histories `[B, items]`; wrong, by its own term, for an item of the history."""
        pooled = inputs.astype(self.inverse.dtype, copy=False) @ self.inverse
        pooled *= self.scale
        return pooled.astype(np.float32, copy=False)


def fit_ease(x: sp.csr_matrix, regularization: float, dtype: np.dtype | type) -> Ease:
    """EASE of the binary matrix `x` `[users, items]`; takes one matrix `[items, items]` of `dtype`.

    Raises:
        ConfigError: the regularization is not positive.
        NumericError: the Gram matrix is not positive definite in this arithmetic.
    """
    if not regularization > 0:
        raise ConfigError(f"EASE needs a regularization above 0, not {regularization}.")
    # the lower triangle of a Fortran matrix, which LAPACK overwrites instead of copying it
    matrix = _gram(x, np.dtype(dtype))
    matrix[np.diag_indices_from(matrix)] += regularization
    potrf, potri = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (matrix,))
    matrix, failed = potrf(matrix, lower=1, clean=0, overwrite_a=1)
    if not failed:
        matrix, failed = potri(matrix, lower=1, overwrite_c=1)
    if failed:
        raise NumericError(
            f"XᵀX + λI is not positive definite in {matrix.dtype} (LAPACK info {failed}).",
            cause=f"The regularization {regularization} is too small for these counts.",
        )
    _mirror(matrix)
    # P is symmetric, so its transpose is the same matrix laid out as the sparse product wants it
    return Ease(matrix.T, -1.0 / matrix.diagonal())


def _gram(x: sp.csr_matrix, dtype: np.dtype) -> np.ndarray:
    """XᵀX, Fortran order, filled by blocks of columns: its sparse form would be larger than the dense one."""
    items = x.shape[1]
    columns = x.astype(dtype).tocsc()
    matrix = np.empty((items, items), dtype, order="F")
    transposed = columns.T.tocsr()
    for first in range(0, items, _SIDE):
        part = slice(first, min(first + _SIDE, items))
        matrix[:, part] = (transposed @ columns[:, part]).toarray()
    return matrix


def _mirror(matrix: np.ndarray) -> None:
    """Copy the lower triangle to the upper one, in place and by blocks."""
    size = len(matrix)
    for i in range(0, size, _SIDE):
        a = slice(i, min(i + _SIDE, size))
        corner = matrix[a, a]
        matrix[a, a] = np.tril(corner) + np.tril(corner, -1).T
        for j in range(i + _SIDE, size, _SIDE):
            b = slice(j, min(j + _SIDE, size))
            matrix[a, b] = matrix[b, a].T


def evaluate_ease(
    prepared: Prepared, split: str, *, regularization: float | None = None, users: int = 512
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fit EASE on the training users and rank the whole catalogue for the users of `split`.

    Args:
        split: `valid` or `test`.
        regularization: λ; None: the best of `GRID` by validation nDCG@100.
        users: users ranked at a time (the block of scores is users × items).

    Returns:
        The keys of `Metrics.result()` with `bytes_per_item`, `live_entries`, `slots_per_live`, `regularization`,
        `seconds` and `validation` (λ as text → nDCG@100; empty where λ was given); and `Metrics.per_user()`.

    Raises:
        ResourceError: the matrix does not fit into memory.
        DataError: a split has no users.
    """
    started = time.perf_counter()
    for name in {split} | ({"valid"} if regularization is None else set()):
        if not prepared.users(name):
            raise DataError(f"The split {name!r} has no users for EASE.", cause=f"Raise data.split.{name}.")
    dtype = np.dtype(np.float64 if prepared.items <= DOUBLE_ITEMS else np.float32)
    _check_memory(prepared.items, dtype.itemsize, users, available_memory())
    x = prepared.matrix("train")
    tried: dict[float, float] = {}
    if regularization is not None:
        best = _measure(fit_ease(x, regularization, dtype), prepared, split, users)
    else:
        regularization, best, tried = _choose(x, dtype, prepared, split, users)
    result = {
        **best.result(),
        "bytes_per_item": 4 * prepared.items,
        "live_entries": prepared.items**2,
        "slots_per_live": 1.0,
        "regularization": regularization,
        "seconds": time.perf_counter() - started,
        "validation": {f"{value:g}": metric for value, metric in sorted(tried.items())},
    }
    return result, best.per_user()


def _choose(
    x: sp.csr_matrix, dtype: np.dtype, prepared: Prepared, split: str, users: int
) -> tuple[float, Metrics, dict[float, float]]:
    """The best λ of the grid by validation, its metrics on `split`, and every λ tried with its validation metric."""
    found: dict[int, Metrics] = {}
    tried: dict[float, float] = {}

    def value(index: int) -> float:
        model = fit_ease(x, GRID[index], dtype)
        valid = _measure(model, prepared, "valid", users)
        found[index] = valid if split == "valid" else _measure(model, prepared, split, users)
        tried[GRID[index]] = valid.result()[CHOICE]
        logger.info("EASE with regularization %g: validation %s %.4f", GRID[index], CHOICE, tried[GRID[index]])
        return tried[GRID[index]]

    best = climb(value, len(GRID), GRID.index(200.0))
    return GRID[best], found[best], tried


def climb(value: Callable[[int], float], size: int, start: int) -> int:
    """The index `0 … size - 1` of the largest value, of values that rise to one peak and fall; each asked once."""
    known: dict[int, float] = {start: value(start)}
    best = start
    for step in (-1, 1):
        while 0 <= best + step < size and best + step not in known:
            known[best + step] = value(best + step)
            if known[best + step] <= known[best]:
                break
            best += step
    return best


def _measure(model: Ease, prepared: Prepared, split: str, users: int) -> Metrics:
    """Rank the whole catalogue for every user of a split."""
    inputs, targets = prepared.matrix(split), prepared.targets(split)
    metrics = Metrics(thirds(prepared.counts()))
    for first in range(0, inputs.shape[0], users):
        order = np.arange(first, min(first + users, inputs.shape[0]), dtype=np.int64)
        block, wanted = inputs[first : first + users], targets[first : first + users]
        top = _top(model.scores(block), block)
        metrics.add(top, wanted.indptr.astype(np.int64), wanted.indices.astype(np.int64), order)
    return metrics


def _top(scores: np.ndarray, seen: sp.csr_matrix) -> np.ndarray:
    """int64 `[B, 100]`."""
    block = torch.from_numpy(scores)
    mask(block, 0, torch.from_numpy(seen.indptr.astype(np.int64)), torch.from_numpy(seen.indices.astype(np.int64)))
    top = TopK(len(scores), DEPTH)
    top.update(block, 0)
    return top.result().numpy()


def _check_memory(items: int, itemsize: int, users: int, available: int) -> None:
    # the matrix in place, the blocks that fill and mirror it, and a block of scores in both precisions
    needed = items * itemsize * (items + 3 * _SIDE) + users * items * (itemsize + 4)
    if needed > available:
        raise ResourceError(
            f"EASE of {items} items needs {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} are available.",
            cause="It is items × items: leave out rare items (data.min_item_count) or use a larger machine.",
        )

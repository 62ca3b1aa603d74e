"""The exact start of small catalogues: a sparse factor whose scores are those of EASE before the cut.

In: the binary histories. Out: triples (row, column, value) of the item embeddings, and their gains.

With P = (XᵀWX + Λ)⁻¹ and d = diag P, EASE scores item j by -Σ_{i in x, i ≠ j} P_ij / d_j (Steck, WWW 2019; there
Λ = λI and users have no weights W, see `weights.py` and `local_inverse.py` for those). With
E Eᵀ = c · diag(d) - P the rows of E give the same: off the diagonal E Eᵀ is -P, its diagonal is taken away by the
model's own-contribution term, and the gain is 1 / d_j. HSE (Van Balen & Goethals, WWW 2021) takes c = 2 and Cholesky.
c · diag(d) - P need not be positive definite for c = 2; a larger c changes no score, so c is doubled until it is.

Items are taken in falling count, so that a row's columns are the more popular items.
It is items × items in float64 on the driver, hence a start for small catalogues.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse as ss

from hse_dist.errors import NumericError
from hse_dist.sparsity.start.dense_inverse import factor_in_place, invert_in_place
from hse_dist.sparsity.start.gram import lower_blocks
from hse_dist.sparsity.start.local_inverse import Regularization
from hse_dist.sparsity.start.triples import Triples
from hse_dist.sparsity.start.weights import UNIT, weights_by_length

Doubles = npt.NDArray[np.float64]

DOUBLINGS = 10
"""Tries for the multiple c of the diagonal: 2, 4, 8 …"""


def factorize(
    histories: ss.csr_matrix, regularization: float, *, dropout: float = 0.0, history_power: float = 0.0
) -> tuple[Doubles, Doubles, int]:
    """E [items, items], lower triangular float64; gains 1 / d float64 [items]; and the multiple c of the diagonal.

    Args:
        histories: X [users, items]. dropout: p, for p / (1 − p) · counts on the diagonal. history_power: β, for
            histories of n items to count as n^−β.

    Raises:
        NumericError: XᵀWX + Λ is not positive definite in float64.
    """
    for doubling in range(1, DOUBLINGS + 1):
        multiple = 2**doubling
        factor = _inverse(histories, regularization, dropout, history_power)
        diagonal = factor.diagonal().copy()
        np.negative(factor, out=factor)
        np.fill_diagonal(factor, (multiple - 1) * diagonal)
        if factor_in_place(factor, clean=True):
            return factor, 1.0 / diagonal, multiple
    raise _not_positive(regularization)


def _inverse(histories: ss.csr_matrix, regularization: float, dropout: float, history_power: float) -> Doubles:
    """The lower triangle of P, in Fortran order; what lies above the diagonal is of no use."""
    items, lengths = histories.shape[1], np.diff(histories.indptr)
    weights = None
    if history_power:
        weights = weights_by_length(np.bincount(lengths), history_power)[lengths].astype(np.int32)
    gram = np.zeros((items, items), order="F")
    for first, block in lower_blocks(histories, weights=weights):
        gram[first : first + block.shape[0]] = block.toarray()
    of_entries = None if weights is None else np.repeat(weights, lengths)
    counts = np.bincount(histories.indices, of_entries, minlength=items)
    np.fill_diagonal(gram, Regularization(regularization, dropout, UNIT if history_power else 1).diagonal(counts))
    if not invert_in_place(gram):
        raise _not_positive(regularization)
    return gram


def _not_positive(regularization: float) -> NumericError:
    return NumericError(
        "The Gram matrix of the exact start is not positive definite.",
        cause="The regularization is too small for these counts.",
        setting="sparsity.hse.regularization",
        value=regularization,
    )


def strongest_entries(
    factor: Doubles, ceiling: int, block_rows: int = 1024, *, block: int = 1, group: tuple[int, int] | None = None
) -> Iterator[Triples]:
    """The entries that the cut may keep: by row the `ceiling` largest |value| (and those equal to the last).

    A row's gain is the same for all its entries, so that this is the order of the cut.

    Args:
        block: adjacent columns that are kept together; then the `ceiling` blocks of largest length.
        group: (n, m): of every m columns only the n largest |value| (and those equal to the last).
    """
    for first in range(0, len(factor), block_rows):
        values = factor[first : first + block_rows, : first + block_rows].astype(np.float32)
        strength = np.abs(values)
        if block > 1:
            values = np.pad(values, ((0, 0), (0, -values.shape[1] % block)))
            strength = np.sqrt((values.reshape(len(values), -1, block) ** 2).sum(2))
        if group is not None:
            strength = _strongest_of_groups(strength, *group)
        enough = max(strength.shape[1] - ceiling, 0)
        threshold = np.partition(strength, enough, axis=1)[:, enough, None]
        rows, numbers = np.nonzero((strength >= threshold) & (strength > 0))
        rows, columns = np.repeat(rows, block), (numbers[:, None] * block + np.arange(block)).ravel()
        yield Triples(rows + first, columns, values[rows, columns])


def _strongest_of_groups(strength: npt.NDArray[np.float32], most: int, columns: int) -> npt.NDArray[np.float32]:
    """0 but for the `most` largest of each row and group of columns."""
    count = strength.shape[1]
    grouped = np.pad(strength, ((0, 0), (0, -count % columns))).reshape(len(strength), -1, columns)
    threshold = np.partition(grouped, columns - most, axis=2)[:, :, columns - most, None]
    return np.where(grouped >= threshold, grouped, np.float32(0)).reshape(len(strength), -1)[:, :count]

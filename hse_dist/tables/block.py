"""What a lookup gives: the rows of a batch's candidates, sparse or dense.

Shapes: C candidates, E live entries of them, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """A CSR block of live entries; free slots never get here, so their gradient is zero by construction.

    Attributes:
        offsets: int64 [C + 1]; row c has the entries offsets[c] … offsets[c + 1] − 1.
        columns: int64 [E], distinct within a row, in no order.
        values: float32 [E], carries the gradient into the table.
        gains: float32 [C], or None where the model has none.
        dims: D.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor
    gains: Tensor | None
    dims: int


@dataclass(frozen=True)
class DenseRows:
    """The rows of the dense baseline: float32 [C, D]."""

    values: Tensor

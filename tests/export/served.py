"""A small export with features of users, and its slow answers.

Small whole numbers, so that every sum is exact and ties are many.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.export.features import Source
from hse_dist.export.format import RowBlock, write_export

ITEMS, DIMS = 40, 300
VALUES = {"tags": pa.array(["a", "b", "ü", "true", "e"]), "age": pa.array([18, 24, 2**60])}
"""Not in the order of the names."""


def block_of(dense: np.ndarray, gains: np.ndarray) -> RowBlock:
    matrix = sp.csr_matrix(dense)
    return RowBlock(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, gains)


@dataclass
class Made:
    """Dense rows of the items and of each feature's values, and gains."""

    items: np.ndarray
    gains: np.ndarray
    features: dict[str, np.ndarray]

    @classmethod
    def random(cls, seed: int) -> Made:
        generator = np.random.default_rng(seed)

        def rows(count: int) -> np.ndarray:
            # few columns in use: rows share them, so that scores are not all 0
            dense = np.zeros((count, DIMS), np.float32)
            dense[:, :40] = generator.integers(-2, 3, (count, 40)) * (generator.random((count, 40)) < 0.3)
            return dense

        gains = generator.choice(np.array([-1.0, 0.5, 1.0], np.float32), ITEMS)
        return cls(rows(ITEMS), gains, {name: rows(len(values)) for name, values in VALUES.items()})

    def sources(self) -> dict[str, Source]:
        """Features for `write_export`, in blocks of two rows."""
        ones = np.ones(2, np.float32)
        return {
            name: (
                VALUES[name],
                [block_of(rows[i : i + 2], ones[: len(rows[i : i + 2])]) for i in range(0, len(rows), 2)],
            )
            for name, rows in self.features.items()
        }

    def write(self, folder: Path, **settings: Any) -> Path:
        """An export; item j has the id 100 + j."""
        given = {"features": self.sources(), **settings}
        blocks = [block_of(self.items, self.gains)]
        write_export(folder, blocks, item_ids=pa.array(range(100, 100 + ITEMS)), dims=DIMS, row_norm="free", **given)
        return folder

    def slow(self, history: set[int], features: dict[str, set], k: int) -> list[tuple[int, float]]:
        """Raw ids and scores, best first."""
        known = [
            self.features[name][VALUES[name].to_pylist().index(value)] for name in features for value in features[name]
        ]
        if not history and not known:
            return []
        u = sum((row.astype(np.float64) for row in [*self.items[sorted(history)], *known]), np.zeros(DIMS))
        scores = {j: float(self.gains[j] * (u @ self.items[j])) for j in range(ITEMS) if j not in history}
        return [(100 + j, scores[j]) for j in sorted(scores, key=lambda j: (-scores[j], j))[:k]]

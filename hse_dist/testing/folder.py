"""Prepared data that are made up in memory, and slow references for the baselines that are fitted to them.

In: sizes. Out: what a baseline asks of prepared data; metrics of a full sort in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from hse_dist.evaluate.metrics import DEPTH, Metrics, thirds


@dataclass
class Folder:
    """What baselines ask of prepared data: users like items of one of a few kinds, popular ones more often."""

    items: int = 130
    sizes: dict[str, int] = field(default_factory=lambda: {"train": 400, "valid": 50, "test": 45})
    fingerprint: str = "made up"

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        kind = generator.integers(0, 5, self.items)
        weight = 1 / (np.arange(self.items) + 5.0)
        self.parts: dict[str, tuple[sp.csr_matrix, sp.csr_matrix]] = {}
        for split, users in self.sizes.items():
            likes = generator.integers(0, 5, users)[:, None] == kind
            chosen = generator.random((users, self.items)) < np.where(likes, 5.0, 0.6) * weight
            chosen[:, 0] = chosen[:, 1] = True
            target = chosen & (generator.random(chosen.shape) < 0.2)
            target[:, 0], target[:, 1] = split != "train", False
            self.parts[split] = tuple(sp.csr_matrix(m.astype(np.float32)) for m in (chosen & ~target, target))

    def users(self, split: str) -> int:
        return self.sizes[split]

    def matrix(self, split: str) -> sp.csr_matrix:
        return self.parts[split][0]

    def targets(self, split: str) -> sp.csr_matrix:
        return self.parts[split][1]

    def counts(self) -> np.ndarray:
        return np.sort(np.asarray(self.parts["train"][0].sum(0), np.int64).ravel())[::-1]


def slow_ranking(folder: Folder, split: str, scores: np.ndarray) -> Metrics:
    """The metrics of float64 scores `[users, items]`."""
    inputs, targets = folder.matrix(split), folder.targets(split)
    scores = np.where(inputs.toarray() > 0, -np.inf, scores)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    top = np.where(np.isneginf(np.take_along_axis(scores, top, 1)), -1, top)
    metrics = Metrics(thirds(folder.counts()))
    metrics.add(top, targets.indptr.astype(np.int64), targets.indices.astype(np.int64), np.arange(len(top)))
    return metrics


def slow_ease(x: sp.csr_matrix, regularization: float) -> np.ndarray:
    """The listing of the paper."""
    gram = (x.T @ x).toarray().astype(np.float64)
    gram[np.diag_indices(len(gram))] += regularization
    p = np.linalg.inv(gram)
    b = p / -np.diag(p)
    b[np.diag_indices(len(b))] = 0
    return b

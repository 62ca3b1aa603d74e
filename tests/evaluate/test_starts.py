"""What a start is worth, against dense scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.config import parse_config
from hse_dist.data.prepared import HistoryBlock
from hse_dist.evaluate import starts
from hse_dist.evaluate.starts import worth
from hse_dist.sparsity.start import make_start

ITEMS, USERS = 130, 40


class Held:
    """Stands in for `Prepared`."""

    items = ITEMS
    manifest = {"items": ITEMS}  # noqa: RUF012

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        chance = 0.5 / (1 + 0.05 * np.arange(ITEMS))
        train, seen, later = (rng.random((users, ITEMS)) < chance for users in (300, USERS, USERS))
        later[:, 0] |= ~later.any(1)
        seen &= ~later
        self.train, self.seen, self.later = (ss.csr_matrix(part.astype(np.float32)) for part in (train, seen, later))

    def counts(self) -> np.ndarray:
        return np.asarray(self.train.sum(0)).ravel().astype(np.int64)

    def matrix(self, split: str) -> ss.csr_matrix:
        return {"train": self.train, "valid": self.seen}[split]

    def scan(self, split: str, *, batch_users: int) -> Iterator[HistoryBlock]:
        x = self.matrix(split)
        yield HistoryBlock(x.indptr.astype(np.int64), x.indices.astype(np.int64))

    def targets(self, split: str) -> ss.csr_matrix:
        assert split == "valid"
        return self.later


@pytest.mark.parametrize("numbers", [2**26, 7 * ITEMS, 1])
def test_worth_is_the_ndcg_of_dense_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr("hse_dist.tasks.ray_is_running", lambda: False)
    held = Held()
    config = parse_config({"tables": {"item": {"live": 6}}, "sparsity": {"budget": {"ceiling": 30}}}, "test")
    start = make_start(config, held, tmp_path / "start")
    monkeypatch.setattr(starts, "POOLED", numbers)
    monkeypatch.setattr(starts, "row_ranges", lambda rows: [(0, 1), (1, 64), (64, 64), (64, rows)])
    offsets, columns, values = start.entries()
    table = ss.csr_matrix((values, columns, offsets), shape=(ITEMS, ITEMS)).toarray().astype(np.float64)
    seen, later = held.seen.toarray() > 0, held.later.toarray() > 0
    scores = np.where(seen, -np.inf, (seen @ table) @ table.T * start.gains())
    expected = []
    for user in range(USERS):
        best = np.argsort(-scores[user], kind="stable")[:100]
        hits = later[user, best] & ~seen[user, best]
        gain = 1 / np.log2(np.arange(100) + 2)
        expected.append((hits * gain).sum() / gain[: later[user].sum()].sum())
    assert worth(held, start) == pytest.approx(np.mean(expected), rel=1e-6)

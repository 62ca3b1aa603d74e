from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hse_dist.config import ColumnNames, SyntheticSettings
from hse_dist.data import synthetic
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared

SETTINGS = SyntheticSettings(users=3000, items=1000, mean_history=20, seed=1)


def test_it_prepares_with_a_long_tail_and_local_co_occurrence(tmp_path: Path, make_config: Any) -> None:
    data = {"synthetic": SETTINGS.model_dump(), "columns": {"timestamp": "when"}}
    summary = prepare(make_config(tmp_path / "data", "synthetic", **data))
    assert sum(summary["users"].values()) + summary["left_out"] == 3000
    assert summary["read"] == pytest.approx(60_000, rel=0.1)
    matrix = Prepared(tmp_path / "data").matrix("train")
    counts = np.asarray(matrix.sum(axis=0)).ravel()
    assert counts[:100].sum() > 0.25 * counts.sum() and counts[500:].sum() > 0.1 * counts.sum()
    # lift of the pairs that occur together most: without clusters it would be about 1
    together = (matrix.T @ matrix).toarray()
    np.fill_diagonal(together, 0)
    lift = together * matrix.shape[0] / np.maximum(np.outer(counts, counts), 1)
    assert np.mean(lift[:100].max(axis=1)) > 2.5
    assert not list((tmp_path / "data").rglob("*synthetic*"))


def test_the_same_log_for_the_same_settings_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK_USERS", 700)
    names = ColumnNames(user="u", item="i", timestamp="t")
    for folder, settings in [("a", SETTINGS), ("b", SETTINGS), ("c", SETTINGS.model_copy(update={"seed": 2}))]:
        synthetic.write(settings, names, tmp_path / folder, tasks=1)
    tables = [pq.read_table(tmp_path / folder) for folder in "abc"]
    assert tables[0].column_names == ["u", "i", "t"] and len(list((tmp_path / "a").iterdir())) == 5
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])
    items, users = tables[0]["i"].to_numpy(), tables[0]["u"].to_numpy()
    assert items.min() >= 0 and items.max() < 1000 and len(np.unique(users)) == 3000
    assert (np.diff(users) >= 0).all()

"""Whole runs of rows with a structure in which the number of live entries falls: counts, repacks, bytes and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.data.prepare import prepare
from hse_dist.evaluate.driver import evaluate
from hse_dist.export.format import load_export
from hse_dist.export.writer import export
from hse_dist.sparsity.schedule import LiveCounts, live_after
from hse_dist.testing.runs import journal_of, small_config
from hse_dist.train.driver import train

BLOCK = {"kind": "block", "block": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


@pytest.mark.parametrize(
    ("kind", "structure"),
    [("gradual", BLOCK), ("lottery", BLOCK), ("gradual", {"kind": "n_of_m", "n": 4, "m": 8})],
    ids=["gradual in blocks", "lottery in blocks", "gradual in groups"],
)
def test_a_falling_number_keeps_the_structure(tmp_path: Path, data: Path, kind: str, structure: dict[str, Any]) -> None:
    schedule = {"interval": 6, "kind": kind, "live_start": 20, "fall_end": 0.6, "repack_ratio": 1.1}
    config = small_config(
        tmp_path / "run", data, sparsity__schedule=schedule, sparsity__structure=structure,
        sparsity__budget={"ceiling": 40}, export__format="smallest",
    )  # fmt: skip
    summary, journal = train(config), journal_of(config)
    unit = config.sparsity.structure.unit
    counts = LiveCounts(journal[0]["live"], journal[0]["goal"], unit)
    assert counts.goal == summary["live_entries"] < counts.start and counts.goal % unit == 0
    rewires = [entry for entry in journal if "policy" in entry and entry["version"]]
    assert all(
        entry["live"] == live_after(config.sparsity.schedule, counts, entry["step"], summary["steps"])
        for entry in rewires
    )
    assert any(entry.get("kind") == "repack" for entry in journal)
    answer = evaluate(config)
    export(config)
    matrix = load_export(tmp_path / "run" / "export").matrix
    assert matrix.nnz == answer["live_entries"] == counts.goal
    assert answer["bytes_per_item"] == pytest.approx((4 + 4 / unit) * counts.goal / matrix.shape[0])
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    size = structure.get("block", structure.get("m"))
    _, together = np.unique(rows * matrix.shape[1] + matrix.indices // size, return_counts=True)
    assert (together == 4).all() if unit > 1 else together.max() <= 4

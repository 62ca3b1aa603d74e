"""Each benchmark runs on a tiny shape and gives the figures that are promised; how large they are is not tested."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from hse_dist.benchmark.checkpoint import benchmark_checkpoint
from hse_dist.benchmark.made_up import MadeUp
from hse_dist.benchmark.report import Report, finish
from hse_dist.benchmark.retrieve import benchmark_retrieve
from hse_dist.benchmark.scale import benchmark_scale
from hse_dist.benchmark.step import benchmark_step
from hse_dist.errors import ConfigError

STEP = {"candidates": 64, "live": 8, "dims": 128, "users": 8, "history": 5, "rows": 500, "chunk_width": 8}


def checked(report: Report, tmp_path) -> list[dict]:
    """The report's rows, after it has been shown."""
    assert all(math.isfinite(value) and value > 0 for value in report.figures.values())
    assert all(list(row) == list(report.rows[0]) for row in report.rows)
    finish(report, tmp_path)
    assert (tmp_path / f"{report.kind}.png").stat().st_size > 0
    return report.rows


def test_step(tmp_path):
    report = benchmark_step(**STEP, repeats=1, threads=1)
    assert set(report.figures) == {"speedup_vs_dense_equal_dim", "time_vs_dense_equal_bytes"}
    assert [row["table"] for row in checked(report, tmp_path)] == [
        "packed",
        "dense, D = 128",
        "dense, D = 16 (same bytes)",
    ]
    assert report.shape["threads"] == 1


def test_step_of_blocks(tmp_path):
    report = benchmark_step(**STEP, block="4", repeats=1, threads=1)
    names = [row["table"] for row in checked(report, tmp_path)]
    assert names == ["packed, blocks of 4", "dense, D = 128", "dense, D = 8 (same bytes)"]
    with pytest.raises(ConfigError, match="Blocks of 16 do not divide --live 8"):
        benchmark_step(**STEP, block="16")


@pytest.mark.distributed
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks want two cores")
def test_scale(tmp_path):
    report = benchmark_scale(**STEP, rounds=1, steps=1)
    rows = checked(report, tmp_path)
    assert [row["table"] for row in rows] == ["packed"] * 4 + ["dense, same bytes"] * 4
    assert [row["ranks"][0] for row in rows] == ["1", "2", "2", "4"] * 2
    first, second = rows[0]["step, ms"]["median"], rows[2]["step, ms"]["median"]
    assert report.figures["efficiency_2"] == pytest.approx(first / second)


def test_retrieve(tmp_path):
    shape = {"items": 3000, "top": 7, "live": 8, "dims": 128, "queries": 9}
    report = benchmark_retrieve(**shape, users=20, history=5, repeats=1, threads=1)
    assert report.figures["speedup_vs_dense_64"] > 0
    names = [row["rows"] for row in checked(report, tmp_path)]
    assert names[0] == "packed" and "dense, D = 16 (same bytes)" in names and "SciPy CSR product" in names
    assert any("estimated" in note for note in report.notes)
    assert report.figures["p50_milliseconds"] <= report.figures["p99_milliseconds"]
    single = benchmark_retrieve(**shape, part="single")
    rows = checked(single, tmp_path)
    assert [row["way"] for row in rows] == [row["way"] for row in report.tables["single"]]
    by_way = {row["way"]: row["recall"] for row in rows}
    assert by_way["index, exact"] == by_way["all postings, by columns"] == 1
    assert 0 < single.figures["early_recall"] <= 1 and by_way["dense, D = 16 (same bytes)"] == ""


def test_made_up_rows_are_what_they_are_said_to_be():
    made = MadeUp(5000, 8, 256)
    blocks = list(made.blocks())
    lengths = np.concatenate([np.diff(block.offsets) for block in blocks])
    assert len(lengths) == 5000 and lengths.max() == 8 and lengths.mean() > 7.5
    columns = np.concatenate([block.columns for block in blocks])
    owner = np.repeat(np.arange(5000), lengths)
    assert len(np.unique(owner * 256 + columns)) == len(columns) and 0 <= columns.min() <= columns.max() < 256
    popular = np.sort(np.bincount(columns, minlength=256))[::-1]
    assert 0.2 < popular[:25].sum() / popular.sum() < 0.4
    for history in made.histories(20, 30):
        assert 20 < len(np.unique(history)) == len(history) <= 30


@pytest.mark.distributed
def test_checkpoint(tmp_path):
    report = benchmark_checkpoint(rows=400, live=8, dims=128, chunk_width=8, repeats=1, where=str(tmp_path))
    rows = checked(report, tmp_path)
    assert [row["operation"].split(" rank")[0] for row in rows] == ["1"] * 7 + ["2"] * 7
    assert report.figures["held_share"] == max(report.figures["held_share_1"], report.figures["held_share_2"])

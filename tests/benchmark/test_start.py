from __future__ import annotations

import pytest

from hse_dist.benchmark.report import finish
from hse_dist.benchmark.start import STAGES, benchmark_start


def test_a_start_is_timed_stage_by_stage_at_two_sizes(tmp_path):
    report = benchmark_start(items=400, interactions=20, history=8, entries=8, live=4, tasks=1, memory_mb=64, sizes=2)
    small, large = report.rows
    assert small["items"] < large["items"] <= 400 and large["live entries"] <= 4 * large["items"]
    for row in report.rows:
        assert sum(row[f"{stage}, s"] for stage in STAGES) == pytest.approx(row["seconds"])
        assert row["seconds"] > 0 and row["own memory, GB"] <= row["with mapped files, GB"] + 0.1
    assert report.figures["seconds"] == large["seconds"] and report.kind == "start"
    finish(report, tmp_path)
    assert (tmp_path / "start.png").stat().st_size > 0

from __future__ import annotations

import pytest

from hse_dist.benchmark.prepare import benchmark_prepare


def test_prepare_and_a_scan_of_the_same_log_are_timed():
    report = benchmark_prepare(interactions=4000, items=300, history=20, tasks=1, memory_mb=64, repeats=2)
    ours, scan = report.rows
    assert report.kind == "prepare"
    assert report.figures["interactions_per_second"] == ours["interactions/s"]["median"] > 0
    assert report.figures["interactions_per_core_second"] == ours["interactions/core s"]["median"] > 0
    assert scan["interactions/s"]["median"] > 0 and scan["peak of a task, MiB"] is None
    assert ours["interactions/s"]["lowest"] * ours["seconds"]["highest"] == pytest.approx(4000, rel=0.3)
    assert ours["peak of a task, MiB"] == report.figures["task_memory_mb"] < 64
    assert report.shape["memory_mb"] == 64 and report.chart is not None

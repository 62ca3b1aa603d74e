from __future__ import annotations

import pytest

from hse_dist.benchmark.prepare import benchmark_prepare


def test_prepare_with_and_without_a_sketch_and_a_scan_of_the_same_log_are_timed():
    shape = {"interactions": 4000, "items": 3000, "history": 20, "tasks": 1, "memory_mb": 64, "repeats": 2}
    report = benchmark_prepare(**shape, min_item_count=4, admission_mb=1)
    ours, sketch, scan = report.rows
    assert report.kind == "prepare"
    assert report.figures["interactions_per_second"] == ours["interactions/s"]["median"] > 0
    assert report.figures["interactions_per_core_second"] == ours["interactions/core s"]["median"] > 0
    assert scan["interactions/s"]["median"] > 0 and scan["peak of a task, MiB"] is None
    assert ours["interactions/s"]["lowest"] * ours["seconds"]["highest"] == pytest.approx(4000, rel=0.3)
    assert ours["peak of a task, MiB"] == report.figures["task_memory_mb"] < 64
    assert [sketch["what"], ours["what"]] == ["prepare, 1 tasks, sketch of 1 MiB", "prepare, 1 tasks"]
    assert 0 < ours["items"] == sketch["items"] < sketch["item ids counted"] < ours["item ids counted"] / 2
    assert ours["peak of the driver, MiB"] is None  # as the task is in this process
    assert report.shape["memory_mb"] == 64 and report.chart is not None

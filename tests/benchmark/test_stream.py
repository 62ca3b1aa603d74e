from __future__ import annotations

from hse_dist.benchmark.stream import benchmark_stream


def test_training_the_thread_and_a_scan_are_timed():
    report = benchmark_stream(
        candidates=150,
        live=4,
        dims=64,
        users=16,
        history=5,
        items=120,
        rows=400,
        chunk_width=8,
        steps=6,
        repeats=2,
        threads=1,
    )
    assert report.kind == "stream" and len(report.rows) == 4
    training, thread, stream, scan = report.rows
    assert 0 <= report.figures["wait_share"] <= 1
    assert training["waiting, %"]["median"] == 100 * report.figures["wait_share"] and thread["waiting, %"] is None
    assert report.figures["histories_per_second"] == thread["histories/s"]["median"]
    # lengths are the same in all four, so that the two rates of a row are too
    for row in (training, stream, scan):
        assert row["interactions/s"]["median"] > row["histories/s"]["median"] > 0
    assert 0 < report.shape["negatives"] < 150

"""`benchmark wire` on a tiny shape: the bytes that the layout implies, and the figures that follow from them."""

from __future__ import annotations

import pytest

from hse_dist.benchmark.wire import STRONGEST, WHOLE, benchmark_wire, codec_times


@pytest.mark.distributed
def test_bytes_follow_from_the_layout(monkeypatch):
    monkeypatch.setattr("hse_dist.benchmark.wire.CODEC_CHUNKS", 500)
    report = benchmark_wire(candidates=64, live=8, dims=128, users=8, history=5, rows=400, chunk_width=8, steps=1)
    found = {(row["table"], row["ranks"]): row for row in report.rows}
    assert len(found) == 10
    for ranks in (2, 4):
        whole, strongest = found[WHOLE, ranks], found[STRONGEST, ranks]
        rows = whole["ids, KB"] / 4  # one chunk of 8 slots a row
        assert whole["columns, KB"] == pytest.approx(2 * 8 * rows) and whole["values, KB"] == pytest.approx(32 * rows)
        assert whole["gradients, KB"] == pytest.approx(32 * rows)
        # a bitmap of one byte and two numbers of two bytes
        assert strongest["gradients, KB"] == pytest.approx(5 * rows) and strongest["ids, KB"] == whole["ids, KB"]
        dense = found["dense, D = 128", ranks]
        assert dense["values, KB"] == dense["gradients, KB"] == pytest.approx(4 * 128 * dense["ids, KB"] / 4)
    figures = report.figures
    assert figures["gradient_bytes_vs_all_gradients"] == pytest.approx(5 / 32)
    ours, dense = found[STRONGEST, 2]["KB a step"], found["dense, D = 128", 2]["KB a step"]
    assert figures["bytes_vs_dense_equal_dim"] == pytest.approx(ours / dense)


def test_codecs_are_timed(monkeypatch):
    monkeypatch.setattr("hse_dist.benchmark.wire.CODEC_CHUNKS", 500)
    times = codec_times(16, repeats=2)
    assert "plain" in times and all(len(values) == 2 and min(values) > 0 for values in times.values())

"""`benchmark rewire` on a tiny shape, and that what it simulates is a rewire."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hse_dist.benchmark import rewire
from hse_dist.benchmark.report import finish
from hse_dist.benchmark.rewire import Simulated, benchmark_rewire, density
from hse_dist.config import SparsitySettings
from hse_dist.sparsity.messages import Histogram
from hse_dist.sparsity.selection import Query, histogram, order_keys
from hse_dist.sparsity.server import SparsityServer


def test_a_tiny_shape_is_reported(monkeypatch):
    monkeypatch.setattr(rewire, "ROWS", (1_000, 10_000))
    report = benchmark_rewire(
        candidates=300, live=4, dims=64, users=20, history=5, rows=2_000, chunk_width=8, repeats=2, threads=1, ranks=5
    )
    result = json.loads(json.dumps(finish(report, None)))
    assert result["kind"] == "rewire" and result["seconds_at_5_ranks"] > 0 and result["seconds_ratio_most_rows"] > 0
    assert np.isfinite(result["cost_in_steps"])
    operations = [row["operation"] for row in result["table"]]
    assert operations[:3] == ["ordinary step", "collecting step", "rewire"] and len(operations) == 3 + 2 * 2
    assert report.chart is not None and set(report.chart.series) == {"2 ranks", "5 ranks"}


@pytest.mark.parametrize("ranks", [2, 7])
def test_simulated_ranks_hold_a_whole_conversation(ranks):
    server, asked, answer = SparsityServer(SparsitySettings(), 100, ranks), [], None
    conversation = Simulated(5_000, 16, ranks).conversation()
    while not server.version:
        messages = conversation.send(answer)
        asked += [messages[0].purpose] if isinstance(messages[0], Histogram) else []
        answer = server.decide(messages)[0]
    assert asked == ["drop"] * 3 + ["grow"] * 3 + ["restore"] * 3
    entry = server.journal[0]
    assert entry["live"] == 80_000 and entry["dropped"] == entry["grown"] + entry["restored"] > 10_000
    assert entry["grown"] == 5_000


def test_the_density_is_that_of_half_normal_scores():
    keys = order_keys(np.abs(np.random.default_rng(0).normal(size=400_000)).astype(np.float32))
    query = Query(0, 0)
    found = histogram(keys, query) / len(keys)
    np.testing.assert_allclose(found, density(query), atol=4e-3)
    query = Query(1, int(found.argmax()))
    found = histogram(keys, query)
    np.testing.assert_allclose(
        found.reshape(64, -1).sum(1) / found.sum(), density(query).reshape(64, -1).sum(1), atol=4e-3
    )
    assert density(Query(1, 0)).sum() == pytest.approx(1.0)  # a part without any score

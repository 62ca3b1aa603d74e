"""The benchmark of the server measures real requests, and counts those that get no answer."""

from __future__ import annotations

import threading

from hse_dist.benchmark.report import finish
from hse_dist.benchmark.serve import Waited, _ask, benchmark_serve


def test_rounds_of_clients_and_the_recommender_alone(tmp_path):
    shape = {"items": 500, "live": 8, "dims": 64, "history": 5, "top": 3}
    report = benchmark_serve(**shape, replicas=0, clients=(1, 3), seconds=1)
    assert [row["clients"] for row in report.rows] == ["none: recommend() alone", "1", "3"]
    for row in report.rows:
        assert 0 < row["p50, ms"] <= row["p99, ms"] and row["requests a second"] > 10 and row["core ms a request"] > 0
        assert row["errors"] == 0
    figures = report.figures
    assert figures["clients"] == 3 and figures["errors"] == 0
    assert figures["p99_milliseconds"] == report.rows[-1]["p99, ms"]
    assert figures["requests_per_second"] == report.rows[-1]["requests a second"]
    finish(report, tmp_path)
    assert (tmp_path / "serve.png").stat().st_size > 0


def test_what_gets_no_answer_is_an_error():
    found = Waited()
    _ask(1, [b"{}"], 0.05, found, threading.Barrier(1))  # nobody listens on port 1
    assert found.errors >= 20 and found.seconds == []

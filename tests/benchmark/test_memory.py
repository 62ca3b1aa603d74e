"""Nothing of size rows × D: a table that would take 52 GB dense trains and rewires in about one."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from hse_dist.benchmark import memory
from hse_dist.benchmark.memory import RandomStart, Watcher, benchmark_memory
from hse_dist.errors import ResourceError
from hse_dist.memory import resident_bytes

SHAPE = {"dims": 65_536, "live": 16, "chunk_width": 16, "users": 64, "history": 20, "candidates": 2048}


@pytest.mark.distributed
def test_training_and_rewiring_stay_far_below_the_dense_size():
    report = benchmark_memory(rows=200_000, ranks=2, **SHAPE)
    stages = {row["stage"]: row["resident, GB"] for row in report.rows}
    assert next(iter(stages)) == "import" and "rewire" in stages
    assert report.figures["grown"] > 0
    assert report.figures["rows"] == 200_000 and report.figures["dense_bytes"] == 4 * 200_000 * 65_536
    assert report.figures["resident_bytes"] == pytest.approx(1e9 * max(stages.values()))
    # what was imported is there before, and more with every release of a library
    assert max(stages.values()) - stages["import"] < 1.2 < 1e-9 * report.figures["dense_bytes"] / 40


def test_start_has_rows_of_length_one_with_distinct_columns():
    start = RandomStart(rows=50, dims=40, live=6)
    offsets, columns, values = start.entries(20, 30)
    assert np.array_equal(offsets, np.arange(0, 61, 6)) and len(columns) == len(values) == 60
    assert (np.diff(columns.reshape(10, 6)) > 0).all() and columns.min() >= 0 and columns.max() < 40
    np.testing.assert_allclose((values.reshape(10, 6) ** 2).sum(axis=1), 1.0, rtol=1e-5)
    assert (start.live(3, 9) == 6).all() and len(start.live()) == len(start.gains()) == 50


def test_too_large_a_table_is_refused_at_once(monkeypatch):
    with pytest.raises(ResourceError, match=r"table alone takes 5\.\d GB; .* --rows = 20000000"):
        benchmark_memory(limit_gb=4)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    with pytest.raises(ResourceError, match=r"0\.0 GB are free"):
        benchmark_memory(rows=100_000)


def test_watcher_sees_the_highest_of_each_stage_and_ends_at_the_limit():
    code = (
        "import sys; a = bytearray(2**26); print('a', flush=True); sys.stdin.readline(); b = bytearray(2**28); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        with Watcher([child.pid], 2**27) as watcher:
            watcher.stage = "small"
            child.stdout.readline()
            wait_until(lambda: watcher.highest.get("small", 0) >= 2**26)
            watcher.stage = "large"
            child.stdin.write("\n")
            child.stdin.flush()
            wait_until(lambda: watcher.killed)
        assert watcher.highest["small"] < 2**27 < watcher.highest["large"]
        assert child.wait() == -9
    assert resident_bytes(child.pid) == 0


def wait_until(done) -> None:
    """A while at most."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)

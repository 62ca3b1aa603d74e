"""Nothing of size rows × columns: a table that would take 52 GB as dense trains and rewires in a few hundred MB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHAPE = {"rows": 200_000, "dims": 65_536, "live": 16, "users": 64, "history": 20, "candidates": 2048}
BOUND_MB = 600.0


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the largest resident size differs")
def test_training_and_rewiring_take_a_hundredth_of_the_dense_table():
    command = [sys.executable, "-W", "ignore", "-m", "hse_dist.testing.memory", json.dumps(SHAPE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["dense_mb"] > 50_000 and max(found["peak_mb"].values()) < BOUND_MB
    assert found["live"] == SHAPE["rows"] * SHAPE["live"]
    assert len(found["grown"]) == 2 and min(found["grown"]) > 1000, "the rewires moved nothing"

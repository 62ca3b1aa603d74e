"""Nothing of size rows × D: a table that would take 52 GB dense trains and rewires in a few hundred MB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHAPE = {"rows": 200_000, "dims": 65_536, "live": 16, "users": 64, "history": 20, "candidates": 2048, "steps": 4}


@pytest.mark.distributed
def test_training_and_rewiring_stay_far_below_the_dense_size():
    shape = json.dumps({**SHAPE, "interval": 2, "window": 1})
    words = [sys.executable, "-W", "ignore", "-m", "hse_dist.testing.memory", shape]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=280)
    answer = json.loads(done.stdout.splitlines()[-1])
    print(answer)
    assert len(answer["grown"]) == 2 and min(answer["grown"]) > 0
    assert max(answer["peak_mb"].values()) < 600 < answer["dense_mb"] / 50

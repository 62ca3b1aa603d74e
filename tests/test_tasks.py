"""Pieces of work, in this process and as Ray tasks: order, errors, and that a failure leaves nothing running."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hse_dist.errors import DataError, MissingRanksError, TrainingError
from hse_dist.tasks import map_tasks


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def test_without_ray_the_pieces_run_in_order():
    assert map_tasks(lambda x: x * x, range(4), at_a_time=2, label="square") == [0, 1, 4, 9]


@pytest.mark.ray
def test_results_come_in_the_order_of_the_arguments(shared_ray):
    def square(x: int) -> int:
        time.sleep(0.2 * (x == 0))
        return x * x

    assert map_tasks(square, range(5), at_a_time=2, label="square") == [0, 1, 4, 9, 16]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("ending", "error", "text"),
    [
        ("raises ours", DataError, r"Line 7 .*setting data.source = 'x'"),
        ("raises", TrainingError, r"The task piece 0 failed: KeyError\('k'\)"),
        ("hangs", MissingRanksError, r"No piece task finished within 4 s\. Waiting for piece 0, piece 1, piece 2\."),
    ],
)
def test_a_failure_ends_the_other_pieces_and_starts_no_more(shared_ray, tmp_path, ending, error, text):
    def piece(index: int) -> None:
        new = tmp_path / f".{index}"
        new.write_text(str(os.getpid()))
        new.rename(tmp_path / str(index))
        while index or ending == "hangs" or len(list(tmp_path.glob("[0-9]"))) < 3:
            time.sleep(0.02)
        raise DataError("Line 7 is damaged.", setting="data.source", value="x") if "ours" in ending else KeyError("k")

    began = time.monotonic()
    with pytest.raises(error, match=text):
        map_tasks(piece, range(9), at_a_time=3, label="piece", timeout_seconds=4.0)
    assert time.monotonic() - began < 12
    pids = [path.read_text() for path in Path(tmp_path).glob("[12]")]
    assert len(pids) == 2 and wait_for(lambda: not any(map(runs, pids)), 5.0)
    assert not list(tmp_path.glob("[3-9]"))

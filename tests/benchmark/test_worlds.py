"""Worlds of ranks that stay."""

from __future__ import annotations

import os

import pytest
import torch

from hse_dist.benchmark.worlds import World
from hse_dist.errors import DataError, TrainingError
from hse_dist.ranks import Ranks

pytestmark = pytest.mark.distributed


class Counter:
    """Adds up over its ranks, and remembers."""

    def __init__(self, ranks: Ranks, start: int) -> None:
        self.ranks, self.total = ranks, start

    def add(self, value: int) -> int:
        self.total += int(self.ranks.sum(torch.tensor(value)))
        return self.total

    def place(self) -> tuple[int, int, set[int], int]:
        return self.ranks.rank, self.ranks.size, os.sched_getaffinity(0), torch.get_num_threads()

    def fail(self, how: str) -> None:
        if self.ranks.rank == 1:
            if how == "die":
                os._exit(3)
            raise DataError("It is broken.") if how == "known" else ValueError("strange")


class Broken:
    def __init__(self, ranks: Ranks) -> None:
        raise DataError("It cannot be made.")


def test_worlds_keep_their_state_and_work_at_the_same_time():
    core = min(os.sched_getaffinity(0))
    with World(Counter, 2, 10, cores=[core]) as two, World(Counter, 1, 100) as one:
        for world in (two, one):
            world.begin("add", 3)
        assert (two.end(), one.end()) == ([16, 16], [103])
        assert two.call("add", 1) == [18, 18]
        assert [place[:2] for place in two.call("place")] == [(0, 2), (1, 2)]
        assert all(place[2:] == ({core}, 1) for place in two.call("place"))
        assert len(set(two.pids + one.pids)) == 3


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("known", DataError, "It is broken"),
        ("unknown", TrainingError, "Rank 1 of 2 failed:(?s:.*)ValueError: strange"),
        ("die", TrainingError, "Rank 1 of 2 died"),
    ],
)
def test_failure_of_a_rank_is_told(how, kind, message):
    with World(Counter, 2, 0) as world, pytest.raises(kind, match=message):
        world.call("fail", how)


def test_failure_to_begin_is_told():
    with World(Broken, 1) as world, pytest.raises(DataError, match="cannot be made"):
        world.call("anything")

"""Every policy of the registry on real gloo ranks: a new kind is held to the contract by its line there."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from hse_dist.testing.policies import REWIRES, Case, cases, check, rewires, whole
from hse_dist.testing.ranks import run_ranks

CASES = cases()
# where rows decide for themselves, or all comes back, ranks have little to agree on: one such case stands for all
ON_TWO = [case for case in CASES if case[2] not in ("by row", "nothing can grow") or case[1] == "soft_threshold"]
# what more ranks could make different is how sums and ties are spread, whatever the situation
ON_MORE = [case for case in ON_TWO if case[2] == "usual" or case[1] == "soft_threshold"]
ON = {1: CASES, 2: ON_TWO, 4: ON_MORE}


def name(case: Case) -> str:
    return " ".join(case)


@cache
def run(ranks: int) -> list[dict[Case, dict[str, Any]]]:
    return run_ranks(rewires, ranks, ON[ranks])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_rewire_keeps_its_promises(case: Case) -> None:
    journal = run(1)[0][case]["server"]["journal"]
    journal = [entry for entry in journal if entry["version"]]
    assert [entry["version"] for entry in journal] == [1, 2]
    for step in range(REWIRES):
        check(case, step, whole(run(1), case, step, 0), whole(run(1), case, step, 1), journal[step])


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("case", "ranks"),
    [pytest.param(case, ranks, id=f"{name(case)} on {ranks}") for ranks in (2, 4) for case in ON[ranks]],
)
def test_decisions_are_the_same_on_any_number_of_ranks(case: Case, ranks: int) -> None:
    for step in range(REWIRES):
        one, many = whole(run(1), case, step, 1), whole(run(ranks), case, step, 1)
        assert np.array_equal(one.columns, many.columns) and one.values.tobytes() == many.values.tobytes()
    assert all(answer[case]["server"] == run(1)[0][case]["server"] for answer in run(ranks)), "journals differ"


def test_policies_decide_differently() -> None:
    kinds = [case for case in CASES if case[2] == "usual" and case != ("budget", "row", "usual")]
    tables = {case: whole(run(1), case, 1, 1).columns.tobytes() for case in kinds}
    same = {(a, b) for a in kinds for b in kinds if a < b and tables[a] == tables[b]}
    # one table's default of each section is the same case; soft thresholds choose as magnitude does, at first
    defaults = {("drop", "magnitude", "usual"), ("grow", "gradient", "usual"), ("budget", "global", "usual")}
    defaults |= {("grow", "co_occurrence", "usual")}  # which differs in what is gathered, and here that is given
    assert all(a in defaults and b in defaults for a, b in same)

"""Who is the best of several validations, and when it is enough."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hse_dist.train.best import Best, surely_better


@pytest.mark.parametrize(("errors", "better"), [(0.0, True), (1.0, True), (1.9, True), (2.1, False)])
def test_a_difference_is_measured_in_its_standard_errors(errors: float, better: bool) -> None:
    old = np.arange(4.0)
    difference = np.array([0.5, 0.5, 0.0, 0.0])  # mean .25, standard error .5 / sqrt(3) / 2 = .144
    assert surely_better(old + difference * 2.0, old, errors * 0.25 / 0.1443 / 2) is better
    assert not surely_better(old - difference, old, errors) and not surely_better(old, old, errors)


def test_one_user_and_equal_differences_have_no_error() -> None:
    assert surely_better(np.array([0.2]), np.array([0.1]), 5.0)
    assert surely_better(np.array([0.5, 0.25]), np.array([0.25, 0.0]), 5.0)


def test_a_lucky_mean_does_not_take_the_place_of_the_start() -> None:
    rng = np.random.default_rng(0)
    users = rng.random(100)
    best = Best(1.0)
    assert best.judge(users)
    lucky = users + rng.normal(0, 0.1, 100)
    lucky += 0.005 - (lucky - users).mean()  # half a standard error above
    assert not best.judge(lucky) and best.worse == 0 and best.highest == pytest.approx(lucky.mean())
    assert not best.judge(users) and best.worse == 1
    assert best.judge(users + 0.02) and best.worse == 0
    # what comes next is measured against the one that was taken
    assert not best.judge(users + 0.02 + rng.normal(0, 0.1, 100) * 0.01) or best.highest > users.mean() + 0.02


def test_it_goes_on_from_a_checkpoint() -> None:
    def validations() -> list[np.ndarray]:
        rng = np.random.default_rng(1)
        return [rng.random(30) + 0.02 * n for n in range(12)]

    whole, first = Best(1.0), Best(1.0)
    expected = [whole.judge(users) for users in validations()]
    found = [first.judge(users) for users in validations()[:5]]
    second = Best(1.0)
    second.load(json.loads(json.dumps(first.facts())), first.users)
    found += [second.judge(users) for users in validations()[5:]]
    assert found == expected and 1 < sum(expected) < 12
    fresh = Best(1.0)
    fresh.load(json.loads(json.dumps(Best(1.0).facts())), Best(1.0).users)
    assert fresh.judge(validations()[0])

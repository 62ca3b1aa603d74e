"""When a rewire comes, and how much it drops."""

from __future__ import annotations

import pytest

from hse_dist.config import GrowSettings, ScheduleSettings, SparsitySettings
from hse_dist.sparsity.schedule import collects_at, drop_fraction, rewires_at

STEPS = 100


def policies(*, grow: str = "gradient", window: int = 4, **schedule) -> SparsitySettings:
    return SparsitySettings(schedule=ScheduleSettings(**schedule), grow=GrowSettings(kind=grow, window=window))


def steps_where(function, settings: SparsitySettings) -> list[int]:
    return [step for step in range(STEPS + 1) if function(settings, step, STEPS)]


def test_rewires_come_at_the_interval_until_the_stop():
    assert steps_where(rewires_at, policies(interval=20, stop=0.6)) == [20, 40, 60]
    assert steps_where(rewires_at, policies(interval=30, stop=1.0)) == [30, 60, 90]
    assert steps_where(rewires_at, policies(interval=30, stop=0.0)) == []


@pytest.mark.parametrize("off", [{"kind": "static"}, {"grow": "none"}])
def test_static_or_without_growth_nothing_happens(off):
    settings = policies(**off)
    assert steps_where(rewires_at, settings) == steps_where(collects_at, settings) == []


def test_a_window_ends_with_the_step_of_its_rewire():
    settings = policies(interval=10, stop=0.35, window=3)
    assert steps_where(collects_at, settings) == [8, 9, 10, 18, 19, 20, 28, 29, 30]
    # a window as long as the interval: every step up to the last rewire
    settings = policies(interval=4, stop=0.1, window=4)
    assert steps_where(collects_at, settings) == list(range(1, 9))


def test_random_growth_collects_nothing():
    settings = policies(interval=10, grow="random")
    assert steps_where(rewires_at, settings) and not steps_where(collects_at, settings)


def test_drop_fraction_falls_as_a_cosine_to_zero_at_the_stop():
    settings = ScheduleSettings(drop_fraction=0.4, stop=0.8)
    assert drop_fraction(settings, 0, STEPS) == pytest.approx(0.4)
    assert drop_fraction(settings, 20, STEPS) == pytest.approx(0.2 * (1 + 2**-0.5))
    assert drop_fraction(settings, 40, STEPS) == pytest.approx(0.2)
    assert drop_fraction(settings, 80, STEPS) == drop_fraction(settings, 95, STEPS) == pytest.approx(0.0)
    constant = ScheduleSettings(drop_fraction=0.4, drop_decay="constant")
    assert {drop_fraction(constant, step, STEPS) for step in range(STEPS)} == {0.4}


def test_a_run_without_steps_has_a_fraction():
    assert 0.0 <= drop_fraction(ScheduleSettings(), 0, 0) <= 1.0

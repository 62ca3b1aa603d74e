"""When a rewire comes, and how much it drops."""

from __future__ import annotations

import pytest

from hse_dist.config import DropSettings, GrowSettings, ScheduleSettings, SparsitySettings
from hse_dist.sparsity.schedule import (
    LiveCounts,
    collects_at,
    cuts,
    drop_fraction,
    falls_at,
    live_after,
    rate_share,
    repacks,
    rewires_at,
    watches_at,
)

STEPS = 100


def policies(*, grow: str = "gradient", window: int = 4, drop: str = "magnitude", **schedule) -> SparsitySettings:
    moves = {"drop": DropSettings(kind=drop), "grow": GrowSettings(kind=grow, window=window)}
    return SparsitySettings(schedule=ScheduleSettings(**schedule), **moves)


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


def test_live_entries_are_watched_before_every_rewire_also_one_that_only_drops():
    fixed = policies(interval=10, stop=0.35, window=3, drop="movement")
    assert steps_where(watches_at, fixed) == steps_where(collects_at, fixed)
    shot = policies(
        kind="one_shot", live_start=32, fall_end=0.55, after="static", interval=50, drop="fisher", grow="none"
    )
    assert steps_where(watches_at, shot) == [52, 53, 54, 55] and not steps_where(collects_at, shot)
    assert not steps_where(watches_at, policies(interval=10))


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


@pytest.mark.parametrize(
    ("decay", "power", "expected"),
    [
        ("linear", 3.0, 0.2),
        ("inverse_power", 1.0, 0.2),
        ("inverse_power", 3.0, 0.05),
        ("inverse_power", 0.5, 0.4 / 2**0.5),
    ],
)
def test_drop_fraction_falls_by_a_power_to_zero_at_the_stop(decay, power, expected):
    settings = ScheduleSettings(drop_fraction=0.4, stop=0.8, drop_decay=decay, drop_power=power)
    found = [drop_fraction(settings, step, STEPS) for step in (0, 40, 80, 100)]
    assert found == pytest.approx([0.4, expected, 0.0, 0.0])


FALLING = {"interval": 10, "live_start": 32, "fall_begin": 0.2, "fall_end": 0.55}
COUNTS = LiveCounts(32_000, 8_003)


def numbers(schedule: ScheduleSettings) -> list[int]:
    return [live_after(schedule, COUNTS, step, STEPS) for step in range(STEPS + 1)]


def test_one_shot_falls_at_its_step_and_nowhere_else():
    schedule = ScheduleSettings(kind="one_shot", **FALLING)
    assert numbers(schedule) == [32_000] * 55 + [8_003] * 46
    assert [step for step in range(STEPS + 1) if falls_at(schedule, step, STEPS)] == [55]


@pytest.mark.parametrize(
    ("fall", "expected"),
    [
        ("linear", lambda t: 8_003 + 23_997 * (1 - t)),
        ("cubic", lambda t: 8_003 + 23_997 * (1 - t) ** 3),
        ("exponential", lambda t: 32_000 ** (1 - t) * 8_003**t),
    ],
)
def test_a_gradual_fall_follows_its_formula_at_rewires_and_ends_exactly(fall, expected):
    schedule = ScheduleSettings(kind="gradual", fall=fall, **FALLING)
    found = numbers(schedule)
    assert found[:30] == [32_000] * 30 and found[55:] == [8_003] * 46
    for step in (30, 40, 50):
        assert abs(found[step] - expected((step - 20) / 35)) <= 0.5
    # the number changes at rewires alone, and only downwards
    steps = [step for step in range(1, STEPS + 1) if found[step] != found[step - 1]]
    assert steps == [step for step in range(STEPS + 1) if falls_at(schedule, step, STEPS)] == [30, 40, 50, 55]
    assert found == sorted(found, reverse=True)
    settings = policies(kind="gradual", fall=fall, **FALLING)
    assert steps_where(rewires_at, settings) == [10, 20, 30, 40, 50, 55, 60, 70]
    assert 54 not in steps_where(collects_at, settings), "a rewire that only drops needs no gradients"


def test_columns_stay_after_the_fall_and_where_nothing_grows():
    settings = policies(kind="gradual", after="static", **FALLING)
    assert steps_where(rewires_at, settings) == [10, 20, 30, 40, 50, 55]
    assert steps_where(rewires_at, policies(kind="gradual", grow="none", **FALLING)) == [30, 40, 50, 55]


def test_a_lottery_cuts_by_the_same_ratio_and_trains_again_from_the_early_step():
    schedule = ScheduleSettings(kind="lottery", rounds=2, rewind=0.1, **FALLING)
    assert cuts(schedule, STEPS) == [37, 55]
    found = numbers(schedule)
    assert found == [32_000] * 37 + [round((32_000 * 8_003) ** 0.5)] * 18 + [8_003] * 46
    assert steps_where(rewires_at, policies(kind="lottery", rounds=2, **FALLING)) == [37, 55, 60, 70]
    shares = [rate_share(schedule, step, STEPS) for step in range(1, STEPS + 1)]
    assert shares[0] == 0.0 and shares[36] == pytest.approx(36 / 37)
    assert shares[37] == shares[55] == pytest.approx(0.1)
    assert shares[-1] == pytest.approx(0.1 + 0.9 * 44 / 45)


def test_a_repack_comes_at_its_rewires_where_it_is_worth_it_and_after_the_last_cut():
    schedule = ScheduleSettings(kind="gradual", repack_every=2, repack_ratio=1.5, **FALLING)
    assert [step for step in (20, 30, 40, 50, 55) if repacks(schedule, step, STEPS, 150, 100)] == [20, 40, 55]
    assert [step for step in (40, 55) if repacks(schedule, step, STEPS, 149, 100)] == [55]
    assert not any(repacks(schedule, step, STEPS, 100, 100) for step in (40, 55))
    lottery = ScheduleSettings(kind="lottery", repack_every=2, rounds=2, **FALLING)
    assert repacks(lottery, 37, STEPS, 150, 100)


@pytest.mark.parametrize("kind", ["one_shot", "gradual", "lottery"])
@pytest.mark.parametrize("steps", [0, 1, 3, 7])
def test_the_shortest_run_ends_with_the_final_number(kind, steps):
    schedule = ScheduleSettings(kind=kind, rounds=3, **FALLING)
    assert live_after(schedule, COUNTS, max(steps, 1), steps) == 8_003
    assert live_after(schedule, COUNTS, 0, steps) == 32_000
    reached = [step for step in range(1, max(steps, 1) + 1) if falls_at(schedule, step, steps)]
    assert reached and live_after(schedule, COUNTS, reached[-1], steps) == 8_003


def test_without_a_fall_the_number_and_the_rate_are_those_of_the_step():
    schedule = ScheduleSettings()
    assert live_after(schedule, LiveCounts(77, 77), 5, STEPS) == 77
    assert rate_share(schedule, 26, STEPS) == 0.25

"""When to rewire, how much moves, and how many entries are live: pure functions of the step.

In: the settings, the step and the length of the run. Out: yes or no, a share of the live entries, or their number.

    fixed, static   k live entries a row throughout
    one_shot        k₀, and k from the step at `fall_end` on
    gradual         from k₀ at `fall_begin` to k at `fall_end`, a part of it at each rewire
    lottery         from k₀ to k in `rounds` cuts, each of the same ratio, the last at `fall_end`

Sources: the cosine decay of the drop fraction, and its inverse power α · (1 − t / T)^k, are of RigL (Evci et al., ICML
2020, §3 and appendix), the linear one of sparse momentum (Dettmers & Zettlemoyer, arXiv 1907.04840); the cubic fall is
that of Zhu & Gupta (arXiv 1710.01878); cuts of one ratio are iterative magnitude pruning (Frankle & Carbin, ICLR 2019).
The survey of Hoefler et al. (arXiv 2102.00554, §2.4) names the choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hse_dist.config import FALLING, Config, ScheduleSettings, SparsitySettings


@dataclass(frozen=True)
class LiveCounts:
    """Live entries of a whole table: at the start, and in the end; multiples of `unit`, the columns of a block."""

    start: int
    goal: int
    unit: int = 1


def falls(schedule: ScheduleSettings) -> bool:
    """Whether the number of live entries falls during the run."""
    return schedule.kind in FALLING


def live_at_start(config: Config) -> int:
    """Mean live entries a row that the start is cut to."""
    schedule = config.sparsity.schedule
    return schedule.live_start if falls(schedule) and schedule.live_start else config.tables.item.live


def live_counts(config: Config, start: int, items: int, of_features: int = 0) -> LiveCounts:
    """Where the number of live entries of a table of so many items begins and ends.

    Args:
        start: entries that the start has.
        of_features: entries that rows of features bring into the budget.
    """
    unit, goal = config.sparsity.structure.unit, config.tables.item.live * items + of_features
    return LiveCounts(start, min(start, goal - goal % unit) if falls(config.sparsity.schedule) else start, unit)


def start_counts(journal: list[dict[str, Any]], unit: int = 1) -> LiveCounts | None:
    """What the first line of a journal says of them; None where nobody recorded a start."""
    start = journal[0] if journal else {}
    return LiveCounts(start["live"], start["goal"], unit) if "goal" in start else None


def rewires_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether the tables are rewired after `step` (counted from 1) of `steps`: entries move, or become fewer."""
    return moves_at(settings, step, steps) or falls_at(settings.schedule, step, steps)


def moves_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether the rewire after `step` moves live entries to other columns."""
    schedule = settings.schedule
    if schedule.kind == "static" or settings.grow.kind == "none" or not step:
        return False
    if step % schedule.interval or step > schedule.stop * steps:
        return False
    if not falls(schedule):
        return True
    ended = step > last_fall(schedule, steps)
    # a lottery trains the entries that it began with, so that all that survive have an early value
    return schedule.after == "fixed" if ended else schedule.kind != "lottery"


def collects_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether gradients of candidates are gathered in `step`: the last `window` steps up to a rewire that grows."""
    if not settings.grow.gathers:
        return False
    ahead = -step % settings.schedule.interval
    return ahead < settings.grow.window and moves_at(settings, step + ahead, steps)


def watches_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether gradients of live entries are gathered in `step`: the last `window` steps up to any rewire."""
    later = range(step, step + settings.grow.window) if settings.drop.by_gradient else ()
    return any(rewires_at(settings, after, steps) for after in later)


def only_falls_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether the rewire after `step` drops entries and moves none."""
    return falls_at(settings.schedule, step, steps) and not moves_at(settings, step, steps)


def drop_fraction(settings: ScheduleSettings, step: int, steps: int) -> float:
    """The share of live entries that the rewire after `step` may move."""
    done = min(1.0, step / max(1.0, settings.stop * steps))
    match settings.drop_decay:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - done
        case "inverse_power":
            share = (1.0 - done) ** settings.drop_power
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.drop_fraction * share


def last_fall(schedule: ScheduleSettings, steps: int) -> int:
    """The step after which the number of live entries is the final one; 0 where it never falls."""
    return max(1, int(schedule.fall_end * steps)) if falls(schedule) else 0


def first_step_of_fall(schedule: ScheduleSettings, steps: int) -> int:
    """The step after which a number that falls little by little begins to."""
    return min(int(schedule.fall_begin * steps), last_fall(schedule, steps) - 1)


def cuts(schedule: ScheduleSettings, steps: int) -> list[int]:
    """The steps of a lottery's cuts, ascending; in a very short run fewer than `rounds`, as they coincide."""
    begin, end = first_step_of_fall(schedule, steps), last_fall(schedule, steps)
    return sorted({begin + max(1, (end - begin) * turn // schedule.rounds) for turn in range(1, schedule.rounds + 1)})


def falls_at(schedule: ScheduleSettings, step: int, steps: int) -> bool:
    """Whether the number of live entries falls after `step`."""
    if not falls(schedule):
        return False
    if schedule.kind == "lottery":
        return step in cuts(schedule, steps)
    last = last_fall(schedule, steps)
    if schedule.kind == "one_shot" or step >= last:
        return step == last
    return step % schedule.interval == 0 and step > first_step_of_fall(schedule, steps)


def live_after(schedule: ScheduleSettings, counts: LiveCounts, step: int, steps: int) -> int:
    """How many entries are live after `step` and its rewire, exactly; a multiple of the counts' unit."""
    return counts.unit * _units_after(schedule, counts.start // counts.unit, counts.goal // counts.unit, step, steps)


def _units_after(schedule: ScheduleSettings, start: int, goal: int, step: int, steps: int) -> int:
    last = last_fall(schedule, steps)
    if not falls(schedule) or step >= last:
        return goal
    if schedule.kind == "one_shot":
        return start
    if schedule.kind == "lottery":
        made = cuts(schedule, steps)
        done = sum(cut <= step for cut in made) / len(made)
        return round(start * (goal / start) ** done)
    first = first_step_of_fall(schedule, steps)
    fallen = step - step % schedule.interval  # between rewires nothing changes
    if fallen <= first:
        return start
    done = (fallen - first) / (last - first)
    match schedule.fall:
        case "linear":
            return round(goal + (start - goal) * (1.0 - done))
        case "cubic":
            return round(goal + (start - goal) * (1.0 - done) ** 3)
        case "exponential":
            return round(start * (goal / start) ** done)


def rewind_step(schedule: ScheduleSettings, steps: int) -> int:
    """The step whose values a lottery goes back to."""
    return int(schedule.rewind * steps)


def rate_share(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """How far training has come before `step`, 0 … 1: a lottery goes back, with its values, to the share at which they
    were remembered, and goes to the end from there after each cut."""
    done = step - 1
    if schedule.kind != "lottery":
        return done / steps
    since = max((cut for cut in cuts(schedule, steps) if cut <= done), default=0)
    until = min((cut for cut in cuts(schedule, steps) if cut > done), default=steps)
    begin = rewind_step(schedule, steps) / steps if since else 0.0
    return begin + (1.0 - begin) * (done - since) / (until - since)


def repacks(schedule: ScheduleSettings, step: int, steps: int, chunks: int, needed: int) -> bool:
    """Whether a table whose number of live entries has just fallen goes into the chunks that it needs."""
    if step >= last_fall(schedule, steps):
        return chunks > needed
    if schedule.kind == "gradual" and step // schedule.interval % schedule.repack_every:
        return False
    return chunks > needed and chunks >= schedule.repack_ratio * needed

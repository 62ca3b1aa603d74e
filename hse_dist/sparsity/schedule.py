"""When to rewire, and how much: pure functions of the step.

In: the settings, the step and the length of the run. Out: yes or no, and a share of the live entries.
Source: the cosine decay of the drop fraction is that of RigL (Evci et al., ICML 2020, §3); the survey of Hoefler et al.
(arXiv 2102.00554, §2.4) names the choices.
"""

from __future__ import annotations

import math

from hse_dist.config import ScheduleSettings, SparsitySettings


def rewires_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether the tables are rewired after `step` (counted from 1) of `steps`."""
    schedule = settings.schedule
    if schedule.kind == "static" or settings.grow.kind == "none" or not step:
        return False
    return step % schedule.interval == 0 and step <= schedule.stop * steps


def collects_at(settings: SparsitySettings, step: int, steps: int) -> bool:
    """Whether gradients of candidates are gathered in `step`: the last `window` steps up to a rewire."""
    if not (settings.grow.gathers or settings.drop.by_gradient):
        return False
    ahead = -step % settings.schedule.interval
    return ahead < settings.grow.window and rewires_at(settings, step + ahead, steps)


def drop_fraction(settings: ScheduleSettings, step: int, steps: int) -> float:
    """The share of live entries that the rewire after `step` may drop."""
    if settings.drop_decay == "constant":
        return settings.drop_fraction
    end = max(1.0, settings.stop * steps)
    return settings.drop_fraction / 2.0 * (1.0 + math.cos(math.pi * min(1.0, step / end)))

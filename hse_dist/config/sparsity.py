"""Settings of the sparsity policies: start, schedule, drop, grow, budget."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from hse_dist.config.base import Fraction, Settings


def _choice(value: Any) -> Any:
    given = tuple(value) if isinstance(value, list | tuple) else value
    every = given if isinstance(given, tuple) else (given,)
    right = all(type(one) in (int, float) and 0 < one < inf for one in every)
    if right and (every is not given or 2 <= len(every) <= 16):
        return given
    raise ValueError("Input should be a number above 0, or a list of 2 to 16 of them to choose from")


# one message for both kinds of value, where pydantic would give one a kind
Choice = Annotated[float | tuple[float, ...], BeforeValidator(_choice)]


class LocalInverseSettings(Settings):
    regularization: Choice = 200.0
    """λ added to the diagonal of the Gram matrix; of several the start takes the best by validation nDCG@100."""
    dropout: Fraction = 0.5
    """p, the share of a history that is thought missing: p / (1 − p) · counts is added to the diagonal."""
    history_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """β: a history of n items counts as n^−β (on average over interactions as 1) in the Gram matrix; 0: all alike."""
    entries: Annotated[int, Field(ge=1, le=1024)] = 100
    """m, the size of each item's pattern."""
    refit: bool = True
    """Solve for the values again on the entries that the cut has left."""
    tasks: PositiveInt = 4
    """Ranges of items, solved by one task each."""


class HseSettings(Settings):
    regularization: PositiveFloat = 200.0
    """λ added to the diagonal of the Gram matrix."""
    max_items: PositiveInt = 30_000
    """Largest catalogue that the exact factorization accepts (it is items × items on the driver)."""


class BudgetSettings(Settings):
    kind: Literal["global", "row"] = "global"
    """Who gets the live entries: all rows compete, or each row keeps its own number."""
    floor: PositiveInt = 1
    """Live entries that every row keeps."""
    ceiling: PositiveInt = 128
    """Most live entries of a row (its capacity may be smaller)."""


class ScheduleSettings(Settings):
    kind: Literal["fixed", "static"] = "fixed"
    """When live entries change: `fixed` keeps their number and moves them every `interval` steps; `static` never."""
    interval: PositiveInt = 50
    """Steps between rewires."""
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75
    """Share of the run after which columns stay."""
    drop_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """Share of the live entries dropped by the first rewire."""
    drop_decay: Literal["cosine", "constant"] = "cosine"
    """How that share falls until `stop`."""


class DropSettings(Settings):
    kind: Literal["magnitude"] = "magnitude"
    """What a live entry is worth: |value| · √|gain|."""


class GrowSettings(Settings):
    kind: Literal["gradient", "random", "none"] = "gradient"
    """Which positions become live: the strongest loss gradient, random ones, or none (then nothing is dropped)."""
    window: PositiveInt = 4
    """Steps before a rewire over which gradients of candidates are gathered."""
    collect_users: PositiveInt = 128
    """Users of a batch whose gradients are gathered: a sample of them, the cost is in proportion."""
    explore: PositiveInt = 16
    """Strongest positions a candidate row and step that are sent to the row's owner."""
    memory_mb: PositiveInt = 256
    """Memory for what those users leave in such a step, and for blocks of dense gradients of the plain path, in MiB."""


class SparsitySettings(Settings):
    start: Literal["local_inverse", "hse", "random"] = "local_inverse"
    """Where the first live entries come from."""
    local_inverse: LocalInverseSettings = LocalInverseSettings()
    hse: HseSettings = HseSettings()
    budget: BudgetSettings = BudgetSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    drop: DropSettings = DropSettings()
    grow: GrowSettings = GrowSettings()

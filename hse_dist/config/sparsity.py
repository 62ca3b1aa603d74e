"""Settings of the sparsity policies: start, schedule, drop, grow, budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hse_dist.config.base import Settings


class LocalInverseSettings(Settings):
    regularization: PositiveFloat = 200.0
    """λ added to the diagonal of the Gram matrix."""
    entries: Annotated[int, Field(ge=1, le=1024)] = 100
    """m, the size of each item's pattern."""
    tasks: PositiveInt = 4
    """Tasks at a time that count pairs and solve ranges of items."""
    memory_mb: PositiveInt = 1024
    """Memory of a task for what it counts or solves at a time, in MiB; files that tasks share are mapped beside it."""
    max_history: Annotated[int, Field(ge=2)] = 10_000
    """Longest history that is counted whole: of a longer one so many items are drawn, whose pairs weigh more, so that
    counts are right in expectation."""
    sample_seed: NonNegativeInt = 0
    """Seed of that draw."""


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

"""Settings of the sparsity policies: start, schedule, drop, grow, budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hse_dist.config.base import Fraction, Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class LocalInverseSettings(Settings):
    regularization: PositiveFloat = 200.0
    """λ added to the diagonal of the Gram matrix."""
    entries: Annotated[int, Field(ge=1, le=1024)] = 100
    """m, the size of each item's pattern."""
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
    kind: Literal["fixed", "static", "one_shot", "gradual", "lottery"] = "fixed"
    """When live entries change: `fixed` keeps their number and moves them every `interval` steps; `static` never. The
    other kinds begin with `live_start` a row and end with `tables.item.live`: cut at once, little by little, or with
    the surviving values rewound after each cut."""
    interval: PositiveInt = 50
    """Steps between rewires."""
    stop: Share = 0.75
    """Share of the run after which columns stay."""
    drop_fraction: Share = 0.3
    """Share of the live entries dropped by the first rewire, to be grown elsewhere."""
    drop_decay: Literal["cosine", "constant", "linear", "inverse_power"] = "cosine"
    """How that share falls until `stop`."""
    drop_power: PositiveFloat = 3.0
    """Exponent of `inverse_power`; 1 is `linear`."""
    live_start: PositiveInt | None = None
    """k₀, mean live entries a row at the start, where their number falls."""
    fall: Literal["cubic", "exponential", "linear"] = "cubic"
    """How the number falls in `gradual`, rewire by rewire."""
    fall_begin: Share = 0.0
    """Share of the run after which it falls; `one_shot` does not ask."""
    fall_end: Share = 0.5
    """Share of the run after which it is `tables.item.live`: the step of the one shot, or of the last cut."""
    rounds: PositiveInt = 1
    """Cuts of `lottery`, evenly spaced from `fall_begin` to `fall_end`; each leaves the same share."""
    rewind: Fraction = 0.0
    """Share of the run at which `lottery` remembers the values that it goes back to; 0: those of the start."""
    after: Literal["fixed", "static"] = "fixed"
    """What columns do once the number has fallen."""
    repack_every: PositiveInt = 1
    """Rewires between looks at whether a table whose number falls should go into fewer chunks."""
    repack_ratio: Annotated[float, Field(ge=1.0)] = 1.25
    """How many times the chunks that it needs a table must have to be repacked then; after the last cut: more than it
    needs."""


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

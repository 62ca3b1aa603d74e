"""Settings of the sparsity policies: start, schedule, drop, grow, budget, structure."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hse_dist.config.base import Fraction, Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]


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
    pattern: Literal["conditional", "two_hop", "greedy"] = "conditional"
    """Which more popular items are in it: those with the largest G_ij / G_jj, the strongest neighbours' own counted too
    (`two_hop`), or one after the other what explains most of what those before it leave (`greedy`)."""
    candidates: Annotated[int, Field(ge=1, le=1024)] = 200
    """Of `greedy`: the size of the conditional pattern that members are chosen from."""
    cuts: Annotated[int, Field(ge=1, le=8)] = 1
    """Cuts in which the budget is reached: the last leaves what it allows, each before it twice as much as the next,
    and what is left is solved again in between."""
    refine: Annotated[int, Field(ge=0, le=16)] = 0
    """Times that each item gets back, after the cut, as many members of its first pattern as it has kept, those with
    the largest gradient, and all are solved and cut again."""
    refit: bool = True
    """Solve for the values again on the entries that the cut has left."""
    gain_power: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """γ: gains are divided by (1 + count)^γ after the cut, so that rarer items rank higher for γ above 0."""
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
    regularization: Choice = 200.0
    """λ added to the diagonal of the Gram matrix; of several the start takes the best by validation nDCG@100."""
    dropout: Fraction = 0.5
    """As that of `local_inverse`; 0: as published."""
    history_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """As that of `local_inverse`; 0: as published."""
    max_items: PositiveInt = 30_000
    """Largest catalogue that the exact factorization accepts (it is items × items on the driver)."""


class BudgetSettings(Settings):
    kind: Literal["global", "row", "popularity"] = "global"
    """Who gets the live entries: all rows compete, or each row keeps its own number: the same for all (`row`), or by
    how often it occurs (`popularity`)."""
    floor: PositiveInt = 1
    """Live entries that every row keeps."""
    ceiling: PositiveInt = 128
    """Most live entries of a row (its capacity may be smaller)."""
    power: NonNegativeFloat = 0.5
    """Of `popularity`: a row's number is in proportion to count^power; 0: all the same."""


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


DropKind = Literal["magnitude", "sensitivity", "movement", "fisher", "activity", "soft_threshold", "random", "own"]


class DropSettings(Settings):
    kind: DropKind = "magnitude"
    """What a live entry is worth: |value| · √|gain|, or by the loss gradients of the steps before a rewire
    (`sensitivity`, `movement`, `fisher`), with the length of its column (`activity`), or nothing (`random`).
    `soft_threshold` drops by magnitude, and takes the magnitude of the last one dropped from all that stay. `own` is
    what `function` says."""
    function: Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")] | None = None
    """Of `own`: `module:function` of your own code, as sparsity/README.md describes; it is imported by every rank."""
    normalise: bool = True
    """Whether gradients are divided by how often their row was a candidate; else rows that often are weigh more."""
    popularity_power: Annotated[float, Field(ge=-4.0, le=4.0)] = 0.0
    """Worth is multiplied by (count of the row / largest count)^power; 0: by nothing."""

    @property
    def by_gradient(self) -> bool:
        """Whether gradients of live entries are gathered before a rewire."""
        return self.kind in ("sensitivity", "movement", "fisher")


class GrowSettings(Settings):
    kind: Literal["gradient", "momentum", "co_occurrence", "random", "none"] = "gradient"
    """Which positions become live: the strongest loss gradient, or its sum decayed from rewire to rewire (`momentum`);
    columns of the rows that occur in the same histories (`co_occurrence`); random ones; or none (then nothing is
    dropped)."""
    window: PositiveInt = 4
    """Steps before a rewire over which gradients are gathered: of candidates, and of live entries where the worth of
    these depends on it."""
    collect_users: PositiveInt = 128
    """Users of a batch whose gradients are gathered: a sample of them, the cost is in proportion."""
    explore: PositiveInt = 16
    """Strongest positions a candidate row and step that are sent to the row's owner."""
    normalise: bool = True
    """Whether sums are divided by how often their row was seen; else rows that often are weigh more."""
    decay: Fraction = 0.5
    """Of `momentum`: what a rewire leaves of the sums before it; of each row the `explore` strongest are kept."""
    memory_mb: PositiveInt = 256
    """Memory for what those users leave in such a step, and for blocks of dense gradients of the plain path, in MiB."""

    @property
    def by_gradient(self) -> bool:
        """Whether gradients of positions that are not live are gathered before a rewire."""
        return self.kind in ("gradient", "momentum")

    @property
    def gathers(self) -> bool:
        """Whether steps before a rewire gather candidates."""
        return self.by_gradient or self.kind == "co_occurrence"


class StructureSettings(Settings):
    kind: Literal["single", "block", "n_of_m"] = "single"
    """Which positions of a row may be live together: any (`single`); whole blocks of adjacent columns, with one column
    number a block; or at most `n` of every `m` columns."""
    block: Literal[4, 8, 16] = 8
    """Columns of a block. Live entries come and go in whole blocks: budget and ceiling are rounded down to these, the
    floor up, and so are `tables.item.dims` of `items`."""
    n: PositiveInt = 2
    """Of `n_of_m`: live entries of a group at most."""
    m: Literal[4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384] = 4
    """Of `n_of_m`: adjacent columns of a group; the last group of a row may have fewer."""

    @property
    def unit(self) -> int:
        """Adjacent columns that are live together, under one number."""
        return self.block if self.kind == "block" else 1


class JournalSettings(Settings):
    ages: NonNegativeInt = 4096
    """Rows, a keyed sample, whose live entries' ages are followed; 20 bytes an entry of these; 0: none."""


class SparsitySettings(Settings):
    start: Literal["local_inverse", "hse", "random"] = "local_inverse"
    """Where the first live entries come from."""
    local_inverse: LocalInverseSettings = LocalInverseSettings()
    hse: HseSettings = HseSettings()
    budget: BudgetSettings = BudgetSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    drop: DropSettings = DropSettings()
    grow: GrowSettings = GrowSettings()
    structure: StructureSettings = StructureSettings()
    journal: JournalSettings = JournalSettings()

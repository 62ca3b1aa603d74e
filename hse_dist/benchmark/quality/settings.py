"""What `benchmark quality` measures, and the best known settings of `ours`: the one file to fill in.

In: a data set, a method and a budget. Out: overrides of the data set's configuration, in the words of the command line.

Settings of a budget follow from its size (`of_size`); `OURS` adds what was found to be better, chosen on validation.
Later overrides win: configuration, size, `OURS` of the data set, `OURS` of the budget, the method's own.
"""

from __future__ import annotations

from hse_dist.config import Config

BYTES = (64, 128, 256, 512, 1024)
"""Budgets, bytes an item."""
LIVE_BYTES = 8
"""Of a live entry: a float32 value and a column number of four bytes."""

SEEDS: dict[str, tuple[int, ...]] = {"ml-100k": (0, 1, 2), "citeulike-a": (0, 1, 2)}
"""Seeds of the split and of the run. The test users of the small sets are few, so that one seed says little."""
OTHER_SEEDS = (0,)

OURS_NAME, FULL = "ours", "ease"
"""The method that all others are compared with, and the baseline whose quality `TARGETS` are shares of."""

METHODS: dict[str, tuple[str, ...]] = {
    OURS_NAME: (),
    "ours-start": ("train.epochs=0",),
    "ours-row": ("sparsity.budget.kind=row",),
    "ours-popularity": ("sparsity.budget.kind=popularity",),
}
"""Methods of this project: each differs from `ours` by the overrides here."""

COORDINATION = {"global": OURS_NAME, "row": "ours-row", "popularity": "ours-popularity"}
"""Kinds of budget and the methods that show what each is worth; they are left out of the picture."""

_INVERSE = "sparsity.local_inverse"
_FLATTER = (f"{_INVERSE}.history_power=0.3", f"{_INVERSE}.regularization=30.0")

OURS: dict[str, dict[int | None, tuple[str, ...]]] = {
    "ml-100k": {None: ()},
    "citeulike-a": {
        None: (f"{_INVERSE}.gain_power=0.1",),
        64: (f"{_INVERSE}.cuts=3", f"{_INVERSE}.history_power=0.4"),
        128: (f"{_INVERSE}.cuts=2", f"{_INVERSE}.history_power=0.4"),
        256: (f"{_INVERSE}.cuts=2", *_FLATTER),
        512: _FLATTER,
        1024: _FLATTER,
    },
    "gowalla": {None: ()},
    "amazon-book-kgat": {None: ()},
}
"""By data set: overrides for every budget (None), and for one of so many bytes."""

TARGETS: dict[tuple[str, int], float] = {
    ("ml-100k", 256): 1.0,
    ("gowalla", 256): 1.0,
    ("amazon-book-kgat", 256): 1.0,
    ("citeulike-a", 256): 0.985,
    ("ml-100k", 64): 0.93,
    ("gowalla", 64): 0.95,
    ("amazon-book-kgat", 64): 0.95,
    ("citeulike-a", 64): 0.90,
}
"""The share of full EASE's nDCG@100 that `ours` is to reach, by data set and bytes an item."""


TEACHER, TEACHER_BYTES = "ours-start", 1024
"""Method and budget of the runs that teach."""
_TO_ITS_END = ("train.better_by=0", "train.patience=0", "model.input_dropout=0.1")
_ON_GOWALLA = (
    *_TO_ITS_END,
    "train.evaluate_every=2",
    "train.negatives=16384",
    "train.gain_learning_rate=0.01",
    "train.warm_accumulator=0.0001",
)
TAUGHT: dict[tuple[str, int], tuple[str, ...]] = {
    ("ml-100k", 64): (
        *_TO_ITS_END,
        "train.epochs=80",
        "train.evaluate_every=80",
        "train.batch_size=64",
        "train.negatives=1682",
        "train.learning_rate=0.015",
        "train.gain_learning_rate=0.005",
        "train.warm_accumulator=1e-8",
    ),
    ("amazon-book-kgat", 64): (
        *_TO_ITS_END,
        "train.epochs=3",
        "train.negatives=8192",
        "train.learning_rate=0.01",
        "train.gain_learning_rate=0.003",
        "train.warm_accumulator=1e-6",
    ),
    ("gowalla", 64): (*_ON_GOWALLA, "train.epochs=8", "train.learning_rate=0.03"),
    ("gowalla", 128): (*_ON_GOWALLA, "train.epochs=6", "train.learning_rate=0.02"),
}
"""By data set and bytes: overrides of `ours` where it learns from such a run of the same seed, because that is worth
something."""


def of_size(config: Config, budget: int) -> tuple[str, ...]:
    """The overrides that follow from a budget of bytes an item.

    Rows of few entries waste less in narrow chunks. A start of m entries a row has at most m to cut from; a larger m
    costs the start time, so it grows only where the budget needs it.
    """
    live = budget // LIVE_BYTES
    words = [f"tables.item.live={live}", f"sparsity.budget.ceiling={max(min(8 * live, 128), 4 * live)}"]
    if live < 16:
        words.append("tables.item.chunk_width=8")
    entries = max(config.sparsity.local_inverse.entries, 3 * live // 2)
    return (*words, f"sparsity.local_inverse.entries={entries}")


def overrides(config: Config, data: str, method: str, budget: int) -> tuple[str, ...]:
    """All overrides of a method of this project, on the configuration of its data set."""
    known, taught = OURS.get(data, {}), TAUGHT[data, budget] if is_taught(data, method, budget) else ()
    return (*of_size(config, budget), *known.get(None, ()), *known.get(budget, ()), *taught, *METHODS[method])


def is_taught(data: str, method: str, budget: int) -> bool:
    """Whether a method of this project learns from another run."""
    return method == OURS_NAME and (data, budget) in TAUGHT


def seeds_of(data: str) -> tuple[int, ...]:
    """The seeds that a data set is measured with where none are asked for."""
    return SEEDS.get(data, OTHER_SEEDS)

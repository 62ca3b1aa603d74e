"""A drop score of the user's own: a function that the setting `sparsity.drop.function` names as `module:function`.

In: live entries (`Entries`), whole rows at a time. Out: their scores; the smallest are dropped. The module is imported
where the table is, in every rank, so it must be found there (`PYTHONPATH`, or a job's working directory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from hse_dist.errors import ConfigError
from hse_dist.sparsity.growth import Floats, Ints

SETTING = "sparsity.drop.function"


@dataclass(frozen=True)
class Entries:
    """Live entries of some rows, all those of a row together. With blocks of columns an entry is a block.

    Attributes:
        rows: row of each, int64 [n], ascending; 0 is the most popular item.
        columns: its column, or the number of its block, int64 [n].
        values: float32 [n, b]; b is 1, or the columns of a block.
        gains: of its row, float32 [n].
    """

    rows: Ints
    columns: Ints
    values: Floats
    gains: Floats


Score = Callable[[Entries], Floats]
"""Scores float [n]. They may depend on the entry and its row, and on no more: another number of ranks cuts rows into
other groups, and must decide the same."""


def own_score(name: str) -> Score:
    """The function of that name, with a check of what it gives.

    Raises:
        ConfigError: there is no such module or function, or (when called) it gives something else than n numbers.
    """
    module, _, function = name.partition(":")
    try:
        score = getattr(import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(
            f"The module {module} cannot be imported: {error}.",
            cause="It must be on the path of every rank, by PYTHONPATH or as part of the job's working directory.",
            setting=SETTING,
            value=name,
        ) from None
    if not callable(score):
        raise ConfigError(f"There is no function {function} in {module}.", setting=SETTING, value=name)

    def checked(entries: Entries) -> Floats:
        scores = np.asarray(score(entries))
        if scores.shape != entries.rows.shape or scores.dtype.kind != "f":
            raise ConfigError(
                f"The function gave {scores.dtype} {list(scores.shape)} for {len(entries.rows)} entries.",
                cause="It must give one floating-point number an entry.",
                setting=SETTING,
                value=name,
            )
        return scores.astype(np.float32)

    return checked

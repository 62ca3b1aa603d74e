"""Every baseline by its name, and the one function that runs them.

In: a name, prepared data, a split, and for methods that take one a budget of bytes an item. Out: the metrics of
`evaluate` with sizes, seconds and what validation chose, and the metrics of each user.

What a matrix of runs costs is said by the modules: `neighbours` takes seconds, `elsa` minutes, `factors` (of EASE, its
pruned form and HSE) grows with items³: the three share one factorization a λ, for all budgets and splits, where the
caller hands the same `Factors` to every call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hse_dist.baselines.als import als
from hse_dist.baselines.closed_forms import ease, ease_pruned, hse
from hse_dist.baselines.elsa import dense, gradual_topk
from hse_dist.baselines.fitting import Answer, Request, need_users
from hse_dist.baselines.neighbours import item_knn, item_knn_full, popularity
from hse_dist.errors import ConfigError

if TYPE_CHECKING:
    from hse_dist.baselines.factors import Factors
    from hse_dist.data.prepared import Prepared


@dataclass(frozen=True)
class Baseline:
    """A method to compare with.

    Attributes:
        name: on the command line. what: in a line. source: paper.
        sized: whether it takes a budget of bytes: 8 a live entry, 4 a dense dimension.
    """

    name: str
    what: str
    source: str
    sized: bool
    function: Callable[[Request], Answer]


BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("popularity", "items by their count", "–", False, popularity),
        Baseline("item-knn", "cosine with shrinkage, k neighbours an item",
                 "Sarwar et al., WWW 2001; shrinkage: Bell & Koren, ICDM 2007", True, item_knn),
        Baseline("item-knn-full", "the same with as many neighbours as validation likes",
                 "Sarwar et al., WWW 2001", False, item_knn_full),
        Baseline("ease", "full EASE, items × items", "Steck, WWW 2019", False, ease),
        Baseline("ease-pruned", "the largest weights of EASE, an item or globally",
                 "Steck, WWW 2019", True, ease_pruned),
        Baseline("hse", "the largest entries of each row of EASE's factor",
                 "Van Balen & Goethals, WWW 2021", True, hse),
        Baseline("dense", "linear autoencoder of D dense dimensions", "ELSA, Vančura et al., RecSys 2022", True, dense),
        Baseline("gradual-topk", "the same of many dimensions, rows pruned to k entries while it trains",
                 "Compressed ELSA, Vančura et al., WWW 2026", True, gradual_topk),
        Baseline("als", "weighted matrix factorization, from the library implicit (an extra)",
                 "Hu, Koren & Volinsky, ICDM 2008", True, als),
    )
}  # fmt: skip
"""By name."""


def evaluate_baseline(
    name: str,
    prepared: Prepared,
    split: str,
    *,
    bytes_per_item: int | None = None,
    seed: int = 0,
    users: int = 512,
    regularization: float | None = None,
    factors: Factors | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fit a baseline on the training users and rank the whole catalogue for the users of `split`.

    Args:
        name: a key of `BASELINES`.
        split: `valid` or `test`; hyperparameters are chosen on `valid` whatever it is.
        bytes_per_item: the budget of a sized method: it takes no more, and may take less; others ignore it.
        seed: of random starts and of the order of users.
        users: users ranked at a time (the block of scores is users × items).
        regularization: λ of EASE, of its pruned form and of HSE; None: the best by validation. Others ignore it.
        factors: keeps factorizations from one call to the next, of the same prepared data.

    Returns:
        The keys of `Metrics.result()` with `bytes_per_item` (as measured), `live_entries`, `slots_per_live`, `seconds`,
        `chosen` (hyperparameters by name) and `validation` (each value tried, as text → nDCG@100; empty where there
        was no choice); and `Metrics.per_user()`.

    Raises:
        ConfigError: an unknown name, a missing budget or one that does not pay for an entry, an extra that is missing.
        ResourceError: the model does not fit into memory.
        DataError: `split` has no users, or `valid`, where something is to be chosen.
    """
    started = time.perf_counter()
    if name not in BASELINES:
        raise ConfigError(f"There is no baseline {name!r}.", cause=f"There are {', '.join(BASELINES)}.")
    baseline = BASELINES[name]
    if baseline.sized and bytes_per_item is None:
        raise ConfigError(f"The baseline {name!r} needs a budget of bytes an item.", cause="Give --bytes N.")
    need_users(prepared, split)
    budget = bytes_per_item if baseline.sized else None
    answer = baseline.function(Request(prepared, split, budget, seed, users, regularization, factors))
    result = {
        **answer.metrics.result(),
        "bytes_per_item": answer.bytes_per_item,
        "live_entries": answer.live_entries,
        "slots_per_live": 1.0,
        "chosen": answer.chosen,
        "seconds": time.perf_counter() - started,
        "validation": answer.validation,
    }
    return result, answer.metrics.per_user()

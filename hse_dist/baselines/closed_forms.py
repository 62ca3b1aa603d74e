"""EASE, EASE pruned, and HSE: three models of one factorization (`factors`).

In: a request, with the `Factors` of the caller where it has them. Out: an answer.

λ is chosen on validation where it is not given, for each model and budget, by climbing a grid: nDCG over log λ has one
peak, and a factorization of 41 000 items takes a quarter of an hour. The λ already factored are asked first, and the
climb begins at the best of them.

* Pruned: of the weights B (Steck, WWW 2019) the k largest |B_ij| of every item j, or the k · items largest of all with
  at most `factors.KEEP` an item; validation chooses between the two.
* HSE at k (Van Balen & Goethals, WWW 2021): the k largest entries of each row of the factor, and a gain an item that is
  not counted, as it is not for ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hse_dist.baselines.factors import EASE, HSE, KEEP, PRUNED, Factors, Sketch, Strongest
from hse_dist.baselines.fitting import (
    CHOICE,
    DIMENSION_BYTES,
    ENTRY_BYTES,
    Answer,
    Model,
    Request,
    climb,
    measure,
    metrics_of,
    need_users,
)
from hse_dist.errors import ConfigError
from hse_dist.evaluate.metrics import Metrics

GRID = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""The λ that validation chooses from."""

PER_INTERACTION = 2.5
"""The climb begins near so many times the mean count of an item: 150 for MovieLens-100K, 30 for citeulike-a."""


@dataclass(frozen=True)
class Candidate:
    """A model of a λ: how it ranks a split, its size, and what else was chosen."""

    rank: Callable[[str], Metrics]
    live_entries: int
    bytes_per_item: float
    chosen: dict[str, str]


def ease(request: Request) -> Answer:
    """All items² weights."""
    items = request.prepared.items

    def make(sketch: Sketch) -> list[Candidate]:
        def rank(split: str) -> Metrics:
            return metrics_of(sketch.tops[split], request.prepared, split)

        return [Candidate(rank, items**2, float(DIMENSION_BYTES * items), {})]

    return _choose(request, EASE, make)


def ease_pruned(request: Request) -> Answer:
    """k = bytes / 8 weights an item, or so many on average."""
    most = _entries(request, "ease-pruned")

    def make(sketch: Sketch) -> list[Candidate]:
        assert sketch.weights is not None
        kept = {"item": strongest_of_item(sketch.weights, most), "global": strongest_of_all(sketch.weights, most)}
        return [_candidate(request, _pruned_model(rows), {"variant": variant}) for variant, rows in kept.items()]

    return _choose(request, PRUNED, make)


def hse(request: Request) -> Answer:
    """k = bytes / 8 entries a row of the factor."""
    most = _entries(request, "hse")

    def make(sketch: Sketch) -> list[Candidate]:
        assert sketch.factor is not None
        return [_candidate(request, _factor_model(strongest_of_item(sketch.factor, most), sketch.gains), {})]

    return _choose(request, HSE, make)


def _choose(request: Request, part: str, make: Callable[[Sketch], list[Candidate]]) -> Answer:
    """The best candidate of the best λ by validation."""
    factors = request.factors or Factors(request.prepared, parts=(part,), users=request.users)
    if request.regularization is not None and (len(made := make(factors.sketch(request.regularization)))) == 1:
        return _answer(request, request.regularization, made[0], {})
    need_users(request.prepared, "valid")
    best: dict[float, tuple[float, Candidate]] = {}

    def value(regularization: float) -> float:
        if regularization not in best:
            found = [(c.rank("valid").result()[CHOICE], c) for c in make(factors.sketch(regularization))]
            best[regularization] = max(found, key=lambda pair: pair[0])
        return best[regularization][0]

    if request.regularization is not None:
        chosen = request.regularization
        value(chosen)
    else:
        known = [regularization for regularization in factors.known() if regularization in GRID]
        start = max(known, key=value) if known else first_guess(request.prepared.counts())
        chosen = GRID[climb(lambda index: value(GRID[index]), len(GRID), GRID.index(start))]
    tried = {f"{regularization:g}": metric for regularization, (metric, _) in sorted(best.items())}
    return _answer(request, chosen, best[chosen][1], tried)


def first_guess(counts: np.ndarray) -> float:
    """The λ of the grid nearest to `PER_INTERACTION` × the mean of `counts` `[items]`, by their logarithms."""
    guess = PER_INTERACTION * max(float(counts.mean()), 1e-9)
    return min(GRID, key=lambda regularization: abs(np.log(regularization / guess)))


def _answer(request: Request, regularization: float, best: Candidate, tried: dict[str, float]) -> Answer:
    chosen = {"regularization": regularization, **best.chosen}
    return Answer(best.rank(request.split), best.live_entries, best.bytes_per_item, chosen, tried)


def _entries(request: Request, name: str) -> int:
    """Entries an item, at most as many as there are items.

    Raises:
        ConfigError: the sketches keep fewer.
    """
    most = min(request.size(ENTRY_BYTES, name), request.prepared.items)
    if most > KEEP:
        raise ConfigError(
            f"{name} keeps at most {KEEP} entries an item, {request.budget} bytes are {most}.",
            cause=f"Give at most {KEEP * ENTRY_BYTES}.",
        )
    return most


def _candidate(request: Request, model: Model, chosen: dict[str, str]) -> Candidate:
    def rank(split: str) -> Metrics:
        return measure(model.scores, request, split)

    return Candidate(rank, model.live_entries, model.bytes_per_item, chosen)


def _pruned_model(rows: sp.csr_matrix) -> Model:
    transposed = rows.T.tocsr()

    def scores(inputs: sp.csr_matrix) -> np.ndarray:
        return (inputs @ transposed).toarray()

    return Model(scores, rows.nnz, ENTRY_BYTES * rows.nnz / rows.shape[0])


def _factor_model(rows: sp.csr_matrix, gains: np.ndarray) -> Model:
    transposed = rows.T.tocsr()

    def scores(inputs: sp.csr_matrix) -> np.ndarray:
        return ((inputs @ rows) @ transposed).toarray() * gains

    return Model(scores, rows.nnz, ENTRY_BYTES * rows.nnz / rows.shape[0])


def strongest_of_item(strongest: Strongest, most: int) -> sp.csr_matrix:
    """The `most` strongest entries of each row, float32 `[items, items]`."""
    return _matrix(strongest, np.arange(strongest.values.shape[1]) < most)


def strongest_of_all(strongest: Strongest, most: int) -> sp.csr_matrix:
    """The `most` · items strongest entries of all rows; of those equal to the last the first rows'."""
    strength = np.abs(strongest.values)
    wanted = min(most * len(strength), strength.size)
    threshold = np.partition(strength, strength.size - wanted, axis=None)[strength.size - wanted]
    keep = strength > threshold
    equal = np.flatnonzero(strength == threshold)
    keep.reshape(-1)[equal[: wanted - int(keep.sum())]] = True
    return _matrix(strongest, keep)


def _matrix(strongest: Strongest, keep: np.ndarray) -> sp.csr_matrix:
    items = len(strongest.values)
    keep = np.broadcast_to(keep, strongest.values.shape) & (strongest.values != 0)
    offsets = np.concatenate([[0], np.cumsum(keep.sum(1))])
    matrix = sp.csr_matrix((strongest.values[keep], strongest.columns[keep], offsets), shape=(items, items))
    matrix.sort_indices()
    return matrix

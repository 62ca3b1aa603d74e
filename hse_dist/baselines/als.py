"""Weighted matrix factorization by alternating least squares, from the library `implicit`.

In: a request. Out: an answer, of factors = bytes / 4 dense dimensions an item; held-out users are folded in.

Hu, Koren & Volinsky, Collaborative Filtering for Implicit Feedback Datasets (ICDM 2008); solved by conjugate gradients
(Takács et al., RecSys 2011). The library is an extra of its own: `pip install hse-dist[als]`. Weight and λ are chosen
on validation, one after the other.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import scipy.sparse as sp

from hse_dist.baselines.fitting import DIMENSION_BYTES, Answer, Model, Request, choose
from hse_dist.errors import ConfigError

ALPHAS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""The weight of a seen item over that of an unseen one; the climb begins at 5."""
LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""The λ that validation chooses from at the best weight; the climb begins at 10."""
ITERATIONS = 15


def als(request: Request) -> Answer:
    """Factors = bytes / 4."""
    library = _library()
    factors = request.size(DIMENSION_BYTES, "als")
    x = request.prepared.matrix("train")

    def fit(alpha: float, regularization: float) -> Model:
        model = library.AlternatingLeastSquares(
            factors=factors,
            alpha=alpha,
            regularization=regularization,
            iterations=ITERATIONS,
            random_state=request.seed,
            use_gpu=False,
            num_threads=1,
        )
        model.fit(x, show_progress=False)
        return Model(_scorer(model), factors * x.shape[1], float(DIMENSION_BYTES * factors))

    start = LAMBDAS.index(10.0)
    weigh = replace(request, split="valid")
    first = choose(weigh, "alpha", ALPHAS, ALPHAS.index(5.0), lambda alpha: fit(alpha, LAMBDAS[start]))
    alpha = first.chosen["alpha"]
    answer = choose(request, "regularization", LAMBDAS, start, lambda regularization: fit(alpha, regularization))
    tried = {f"alpha {key}": value for key, value in first.validation.items()}
    tried |= {f"regularization {key}": value for key, value in answer.validation.items()}
    return replace(answer, chosen={**first.chosen, **answer.chosen}, validation=tried)


def _scorer(model: Any) -> Any:
    def scores(inputs: sp.csr_matrix) -> np.ndarray:
        users = model.recalculate_user(np.arange(inputs.shape[0]), inputs)
        return users @ model.item_factors.T

    return scores


def _library() -> Any:
    try:
        return import_module("implicit.als")
    except ImportError:
        raise ConfigError(
            "The baseline 'als' needs the library implicit.", cause="Install the extra: pip install 'hse-dist[als]'."
        ) from None

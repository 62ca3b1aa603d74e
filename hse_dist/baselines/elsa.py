"""Dense linear autoencoders trained by gradient: ELSA, and ELSA whose rows are pruned to k entries while it trains.

In: a request. Out: an answer. One process and no ranks: a baseline must not share the code that it is compared with.

ELSA (Vančura et al., RecSys 2022): A `[items, D]` with rows of length 1, scores s = x A Aᵀ - x, loss 2 - 2·cos(s, x)
over the whole catalogue, Adam. `dense` has D = bytes / 4.

`gradual-topk` is the method of Compressed ELSA ("Efficient Learning of Sparse Representations from Interactions",
WWW 2026), from its description: D is large, and each row keeps its k_t largest |entries|, scaled to length 1 again; k_t
falls exponentially from D to k = bytes / 8 over the first `PRUNE` epochs and stays there. An entry that is cut
gets no gradient and keeps its value, so that it comes back when others shrink below it.

The rate is chosen on validation: for `dense` with the model itself, for `gradual-topk` on a table of at most `PROBE`
dimensions and the same k. Entries start as unit normals, so that a rate moves them by the same part of themselves
whatever D is. Of the epochs measured on validation (only those at k entries) the best one is the result.

A step costs items × D² multiplications, twice, whatever its users: on one thread of a CPU 1.4 s for 17 000 items and
D = 1 024, some hundredths of a second for D = 64. So citeulike-a takes half a minute for `dense` and some five
for `gradual-topk`; Gowalla (41 000 items, 27 steps an epoch) is reckoned at half an hour for the latter.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hse_dist.baselines.fitting import (
    CHOICE,
    DIMENSION_BYTES,
    ENTRY_BYTES,
    Answer,
    Request,
    Scores,
    climb,
    measure,
    need_memory,
    need_users,
)
from hse_dist.evaluate.metrics import Metrics

WIDE = 1024
"""D of `gradual-topk`, or the number of items where that is smaller."""
PROBE = 128
"""D with which its rate is chosen."""
RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The rates that validation chooses from; the climb begins at 0.1."""
EPOCHS = 60
"""Epochs at most; validation ends most trainings before."""
PRUNE = 12
"""Epochs in which k_t falls."""
BATCHES = 8
"""Steps an epoch, where that makes `USERS` users a step: small data need as many steps as large."""
USERS = (64, 1024)
"""The fewest and the most users a step."""
EVERY = 2
"""Epochs from one measurement on validation to the next."""
PATIENCE = 2
"""Measurements without a new best one that end a training."""
RENEW = 4
"""Steps from one choice of the strongest entries to the next."""

_NOTHING = np.empty((0, 0), np.float32)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One training: D, entries a row at its end (D: never pruned), and the rate."""

    dims: int
    live: int
    rate: float


@dataclass(frozen=True)
class Trained:
    """The best epoch: its rows `[items, D]` in CSR or dense, float32 of length 1, and its validation metrics."""

    rows: np.ndarray | sp.csr_matrix
    valid: Metrics
    epoch: int

    @property
    def value(self) -> float:
        """The metric that chooses."""
        return float(self.valid.result()[CHOICE])


def dense(request: Request) -> Answer:
    """D = bytes / 4 dimensions."""
    dims = request.size(DIMENSION_BYTES, "dense")
    return _answer(request, Plan(dims, dims, 0.0), probe=dims)


def gradual_topk(request: Request) -> Answer:
    """k = bytes / 8 entries of D a row."""
    dims = min(WIDE, request.prepared.items)
    return _answer(request, Plan(dims, min(request.size(ENTRY_BYTES, "gradual-topk"), dims), 0.0), probe=PROBE)


def _answer(request: Request, plan: Plan, probe: int) -> Answer:
    """Choose the rate with `probe` dimensions at most, train with all of them, and measure."""
    prepared = request.prepared
    need_users(prepared, "valid")
    _check_memory(prepared.items, plan)
    x = prepared.matrix("train")
    x = x[np.diff(x.indptr) > 0]
    dims = min(probe, plan.dims)
    small = replace(plan, dims=dims, live=min(plan.live, dims))
    runs: dict[float, Trained] = {}

    def value(rate: float) -> float:
        runs[rate] = train(x, replace(small, rate=rate), request)
        for worse in sorted(runs, key=lambda tried: runs[tried].value)[:-1]:
            runs[worse] = replace(runs[worse], rows=_NOTHING)
        return runs[rate].value

    index = climb(lambda i: value(RATES[i]), len(RATES), RATES.index(0.1))
    tried = {f"{rate:g}": run.value for rate, run in sorted(runs.items())}
    best = runs[RATES[index]] if small == plan else train(x, replace(plan, rate=RATES[index]), request)
    metrics = best.valid if request.split == "valid" else measure(scorer(best.rows), request, request.split)
    if isinstance(best.rows, sp.csr_matrix):
        live, unit = best.rows.nnz, ENTRY_BYTES
    else:
        live, unit = best.rows.size, DIMENSION_BYTES
    chosen = {"rate": RATES[index], "epoch": best.epoch, "dims": plan.dims}
    return Answer(metrics, live, unit * live / prepared.items, chosen, tried)


def train(x: sp.csr_matrix, plan: Plan, request: Request) -> Trained:
    """Train on the histories `x` `[users, items]`, none of them empty, and keep the best epoch by validation."""
    generator = torch.Generator().manual_seed(request.seed)
    weights = torch.randn(x.shape[1], plan.dims, generator=generator)
    optimizer = torch.optim.Adam([weights], lr=plan.rate)
    size = min(max(x.shape[0] // BATCHES, USERS[0]), USERS[1])
    pruning = -(-x.shape[0] // size) * PRUNE
    best, mask, step, kept = None, None, 0, plan.dims
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(x.shape[0], generator=generator).numpy()
        for first in range(0, len(order), size):
            kept = entries_kept(plan, step / pruning)
            if kept < plan.dims and step % RENEW == 0:
                mask = strongest_mask(weights, kept)
            _, weights.grad = gradient(x[order[first : first + size]], weights, mask)
            optimizer.step()
            step += 1
        if kept == plan.live and (epoch % EVERY == 0 or epoch == EPOCHS):
            rows = _rows(weights, plan)
            found = Trained(rows, measure(scorer(rows), request, "valid"), epoch)
            if best is None or found.value > best.value:
                best = found
            elif epoch - best.epoch >= PATIENCE * EVERY:
                break
    assert best is not None
    logger.info("%s: validation %s %.4f in epoch %d", plan, CHOICE, best.value, best.epoch)
    return best


def entries_kept(plan: Plan, done: float) -> int:
    """k_t after a part `done` of the steps in which it falls."""
    return max(plan.live, round(plan.dims * (plan.live / plan.dims) ** min(1.0, done)))


def strongest_mask(weights: Tensor, kept: int) -> Tensor:
    """1 at the `kept` largest |entries| of each row, else 0."""
    places = weights.abs().topk(kept, dim=1, sorted=False).indices
    return torch.zeros_like(weights).scatter_(1, places, 1.0)


def gradient(x: sp.csr_matrix, weights: Tensor, mask: Tensor | None) -> tuple[float, Tensor]:
    """The loss of histories, and its gradient with respect to `weights` `[items, D]`; zero where the mask is.

    With N the rows at length 1, u = xN, h the length of a history, and s = uNᵀ - x, no matrix of users × items is
    needed: ‖s‖² = u(NᵀN)uᵀ - 2‖u‖² + h and s·x = ‖u‖² - h. ∂s = αs + βx with a number each a user, so that
    ∂u = α(uNᵀN - u) + βu and ∂N = N·uᵀ(αu) + xᵀ((β - α)u + ∂u): items × D² multiplications, twice.

    Args:
        x: binary `[B, items]`; no history is empty.
        mask: 0 or 1, as `weights`; None: all ones.
    """
    masked = weights if mask is None else weights * mask
    length = torch.linalg.vector_norm(masked, dim=1, keepdim=True).clamp_(min=1e-12)
    n = masked / length
    u = torch.from_numpy(x @ n.numpy())
    gram = n.T @ n
    h = torch.from_numpy(np.diff(x.indptr).astype(n.numpy().dtype)).unsqueeze(1)
    squares, projected = (u * u).sum(1, keepdim=True), u @ gram
    score = ((projected * u).sum(1, keepdim=True) - 2 * squares + h).clamp_(min=1e-12).sqrt_()
    cosine = (squares - h) / (h.sqrt() * score)
    alpha, beta = 2 / len(u) * cosine / score**2, -2 / len(u) / (h.sqrt() * score)
    grad_u = alpha * (projected - u) + beta * u
    grad_n = torch.from_numpy(x.T @ ((beta - alpha) * u + grad_u).numpy())
    grad_n.addmm_(n, u.T @ (alpha * u))
    # a row's length does not matter, so its gradient is at right angles to it
    grad_n.addcmul_(n, (n * grad_n).sum(1, keepdim=True), value=-1).div_(length)
    return float((2 - 2 * cosine).mean()), grad_n if mask is None else grad_n.mul_(mask)


def _rows(weights: Tensor, plan: Plan) -> np.ndarray | sp.csr_matrix:
    if plan.live == plan.dims:
        return normalize(weights, dim=1).numpy()
    return sp.csr_matrix(normalize(weights * strongest_mask(weights, plan.live), dim=1).numpy())


def scorer(rows: np.ndarray | sp.csr_matrix) -> Scores:
    """Scores (x A) Aᵀ of rows A."""
    transposed = rows.T.tocsr() if isinstance(rows, sp.csr_matrix) else rows.T

    def scores(inputs: sp.csr_matrix) -> np.ndarray:
        scored = (inputs @ rows) @ transposed
        return scored.toarray() if isinstance(scored, sp.csr_matrix) else scored

    return scores


def _check_memory(items: int, plan: Plan) -> None:
    # weights, their gradient, Adam's two moments, the mask, and four of the kind that a step or a measurement makes
    needed = 9 * 4 * items * plan.dims
    need_memory(f"A table of {items} items × {plan.dims} dimensions", needed, "Leave out rare items.")

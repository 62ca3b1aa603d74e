"""The step's arithmetic on a GPU is that of the CPU: losses and gradients, of every form of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.tables.block import SparseRows

pytestmark = pytest.mark.gpu
FORMS: dict[str, dict[str, Any]] = {
    "free": {},
    "unit": {"row_norm": "unit"},
    "compact": {"compact_above": 100},
    "clipped": {"score_clip": 0.5},
    "strongest": {"user_entries": 20},
    "power": {"history_power": 0.25},
}


def problem(dtype: torch.dtype) -> tuple[SparseRows, Batch]:
    """Three hundred rows of up to 40 of 500 columns; 200 histories, one of them empty."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 41, 300)
    columns = np.concatenate([np.sort(rng.permutation(500)[:n]) for n in lengths])
    items = np.concatenate([[0], rng.integers(1, 50, 199)])
    positions = np.concatenate([rng.permutation(300)[:n] for n in items])
    rows = SparseRows(
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        columns=torch.from_numpy(columns),
        values=torch.from_numpy(rng.normal(size=len(columns))).to(dtype),
        gains=torch.from_numpy(rng.uniform(0.5, 1.5, 300)).to(dtype),
        dims=500,
    )
    batch = Batch(
        torch.arange(300), torch.from_numpy(np.concatenate([[0], items.cumsum()])), torch.from_numpy(positions)
    )
    return rows, batch


def solve(device: str, dtype: torch.dtype, form: str, collect: int) -> list[torch.Tensor]:
    settings = ModelSettings(**FORMS[form])
    rows, batch = problem(dtype)
    values = rows.values.to(device).requires_grad_()
    gains = rows.gains.to(device).requires_grad_() if settings.row_norm == "free" else None
    rows = replace(rows, offsets=rows.offsets.to(device), columns=rows.columns.to(device), values=values, gains=gains)
    loss, _ = Autoencoder(settings).loss(rows, batch.to(torch.device(device)), None, collect=collect)
    loss.backward()
    leaves = [values] if gains is None else [values, gains]
    return [loss.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("collect", [0, 64])
@pytest.mark.parametrize("form", FORMS)
def test_cuda_equals_cpu(form, collect, dtype):
    tight = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-6}
    for got, want in zip(solve("cuda", dtype, form, collect), solve("cpu", torch.float64, form, collect), strict=True):
        torch.testing.assert_close(got, want.to(dtype), **tight)

"""Live entries of chunks: compiled and plain against a loop, there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hse_dist.native.library import library
from hse_dist.tables import live
from hse_dist.tables.live import live_entries

DIMS = 50


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(live, "compiled", lambda tensor: False)
    elif library() is None:
        pytest.skip("the kernels were not built")
    return request.param


@pytest.mark.parametrize("chunks", [0, 1, 37])
@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_live_entries_equal_a_loop(chunks, width, share):
    rng = np.random.default_rng(chunks + width)
    columns = rng.integers(0, DIMS, (chunks, width))
    columns[rng.random((chunks, width)) >= share] = DIMS
    values = torch.from_numpy(rng.standard_normal((chunks, width)).astype(np.float32)).requires_grad_()
    got, got_columns, ends = live_entries(values, torch.from_numpy(columns.astype(np.float32)), DIMS)
    expected = [(c, s) for c in range(chunks) for s in range(width) if columns[c, s] < DIMS]
    assert got.tolist() == [values[place].item() for place in expected]
    assert got_columns.tolist() == [columns[place] for place in expected] and got_columns.dtype == torch.int64
    assert ends.tolist() == [sum(c < chunk for c, _ in expected) for chunk in range(chunks + 1)]
    slopes = torch.arange(1.0, len(expected) + 1)
    (got * slopes).sum().backward()
    grad = torch.zeros(chunks, width)
    for place, slope in zip(expected, slopes, strict=True):
        grad[place] = slope
    assert torch.equal(values.grad, grad)

"""The compiled sweep against the plain path in float64: loss, gradients, and what it keeps for the growth scores."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model import fused
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.block import Block
from hse_dist.model.fused import available
from hse_dist.model.histories import Histories
from hse_dist.native import library as native
from hse_dist.tables.block import SparseRows

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels were not built")


def make_case(seed: int, candidates: int, dims: int, users: int, dtype: torch.dtype) -> tuple[SparseRows, Histories]:
    """Rows and histories of different lengths, some of them empty; the same numbers in every type."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, min(dims, 40) + 1, candidates)
    columns = [rng.permutation(dims)[:n] for n in lengths]
    values = rng.normal(size=lengths.sum()).astype(np.float32)
    gains = rng.normal(size=candidates).astype(np.float32)
    rows = SparseRows(
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        columns=torch.from_numpy(np.concatenate(columns).astype(np.int64)),
        values=torch.from_numpy(values).to(dtype).requires_grad_(),
        gains=torch.from_numpy(gains).to(dtype).requires_grad_(),
        dims=dims,
    )
    histories = [rng.permutation(candidates)[: rng.integers(0, candidates // 2)] for _ in range(users)]
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    positions = torch.from_numpy(np.concatenate(histories).astype(np.int64))
    shown = torch.from_numpy(rng.random(len(positions)) < 0.7) if seed % 2 else None
    shares = torch.from_numpy(rng.random(users) * [len(history) > 0 for history in histories])
    return rows, Histories(torch.from_numpy(offsets), positions, shown, shares / max(float(shares.sum()), 1e-9))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    # float32 sums in another order; measured against the largest, as a small one may be a difference of large ones
    got, want = got.detach(), want.detach()
    torch.testing.assert_close(got.double(), want, atol=2e-5 * float(want.abs().max()) + 5e-6, rtol=2e-4)


@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("clip", [None, 3.0])
@pytest.mark.parametrize("compact_above", [1, 100_000])
@pytest.mark.parametrize("widest", [0, 10_000])  # blocks of 16 and of 64 users
@given(
    seed=st.integers(0, 1_000),
    users=st.sampled_from([1, 16, 63, 64, 65, 150]),
    threads=st.sampled_from([1, 2, 3]),
    collect=st.sampled_from([1, 20, 64, 1000]),
)
@example(seed=973, users=1, threads=1, collect=1)  # a batch without a history
@settings(max_examples=6, deadline=None)
def test_the_sweep_equals_the_plain_path(norm, clip, compact_above, widest, seed, users, threads, collect):
    model = Autoencoder(ModelSettings(row_norm=norm, score_clip=clip, compact_above=compact_above))
    rows, histories = make_case(seed, 30, 70, users, torch.float32)
    before, before_columns = torch.get_num_threads(), fused.CACHED_COLUMNS
    torch.set_num_threads(threads)
    fused.CACHED_COLUMNS = widest
    try:
        loss, kept = model.fused_loss(model.block(rows), histories, collect=collect)
        (3.0 * loss).backward()
    finally:
        torch.set_num_threads(before)
        fused.CACHED_COLUMNS = before_columns
    exact, same = make_case(seed, 30, 70, users, torch.float64)
    expected, blocks = model.plain_loss(model.block(exact), same, collect=collect)
    expected.backward()
    close(loss, expected)
    close(rows.values.grad, 3.0 * exact.values.grad)
    close(rows.gains.grad, 3.0 * exact.gains.grad)
    assert kept.users == blocks.users == min(users, collect) and kept.scale == blocks.scale >= 1.0
    for name in ("users", "grad_users", "grad_scores"):
        got, want = getattr(kept.matrices(), name), getattr(blocks.matrices(), name)
        assert got.shape == want.shape == (len(want), kept.users)
        close(got, want)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 4]])
def test_first_users_without_a_history_leave_growth_scores_finite(lengths):
    rows, _ = make_case(3, 12, 20, 1, torch.float32)
    ends = torch.tensor([0, *np.cumsum(lengths)])
    batch = Batch(torch.arange(12), ends, torch.arange(int(ends[-1])))
    model = Autoencoder(ModelSettings())
    for path in (model.fused_loss, model.plain_loss):
        histories = Histories(batch.offsets, batch.positions, None, model._shares(ends.diff()))
        loss, kept = path(model.block(rows), histories, collect=1)
        loss.backward()
        assert kept.scale == 1.0 and not kept.matrices().grad_scores.any()


def test_loss_takes_the_sweep_for_float32_and_the_plain_path_for_others():
    model = Autoencoder(ModelSettings())
    for dtype, swept in ((torch.float32, True), (torch.float64, False)):
        rows, histories = make_case(0, 20, 30, 5, dtype)
        batch = Batch(torch.arange(20), histories.offsets, histories.positions)
        _, activations = model.loss(rows, batch, None, collect=5)
        assert (activations.kept is not None) == swept == available(rows.values)


def test_equal_numbers_of_threads_give_equal_bits():
    found = []
    for _ in range(2):
        rows, histories = make_case(7, 200, 90, 300, torch.float32)
        loss, _ = Autoencoder(ModelSettings()).fused_loss(Block(rows, False), histories, collect=0)
        loss.backward()
        found.append((loss.detach(), rows.values.grad, rows.gains.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_value_that_is_no_number_is_seen_in_the_loss():
    rows, histories = make_case(1, 20, 30, 5, torch.float32)
    with torch.no_grad():
        rows.values[3] = float("nan")
    loss, _ = Autoencoder(ModelSettings()).fused_loss(Block(rows, False), histories, collect=0)
    assert torch.isnan(loss)


def test_without_the_library_the_plain_path_takes_over(monkeypatch, tmp_path, caplog):
    uncached = native.library.__wrapped__
    monkeypatch.setattr(fused, "library", uncached)
    values = torch.zeros(3)
    monkeypatch.setenv("HSE_NATIVE", "0")
    assert not available(values)
    monkeypatch.setenv("HSE_NATIVE", "1")
    assert available(values)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "library.py"))
    with caplog.at_level(logging.WARNING):
        assert not available(values)
    (tmp_path / "_kernels.so").write_bytes(b"no library")
    with caplog.at_level(logging.WARNING):
        assert not available(values)
    assert "not built" in caplog.text and "cannot be loaded" in caplog.text

"""The strongest entries of user vectors: in the loss, its gradients, at evaluation, and in what an export answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch

from hse_dist.config import ModelSettings, parse_config
from hse_dist.data.batch import Batch
from hse_dist.errors import ConfigError, ExportError
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.recommender import Recommender
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.kernels import Strongest
from hse_dist.tables.block import SparseRows

CANDIDATES, DIMS = 12, 20


def slowly(u: torch.Tensor, count: int) -> torch.Tensor:
    """One user's vector; equal ones by column."""
    order = sorted(range(len(u)), key=lambda d: (-abs(float(u[d])), d))
    kept = torch.zeros_like(u)
    for d in order[:count]:
        kept[d] = u[d]
    return kept


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, SparseRows, Batch]:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(CANDIDATES, DIMS)) * (rng.random((CANDIDATES, DIMS)) < 0.4)
    live = dense != 0
    values, gains = torch.tensor(dense[live]).requires_grad_(), torch.tensor(rng.normal(size=CANDIDATES))
    offsets = torch.tensor(np.concatenate([[0], live.sum(1).cumsum()]))
    rows = SparseRows(offsets, torch.tensor(np.nonzero(live)[1]), values, gains.requires_grad_(), DIMS)
    histories = [rng.permutation(CANDIDATES)[:n] for n in (3, 0, 5, 1)]
    ends = torch.tensor(np.concatenate([[0], np.cumsum([len(h) for h in histories])]))
    batch = Batch(torch.arange(CANDIDATES), ends, torch.tensor(np.concatenate(histories).astype(np.int64)))
    matrix = torch.zeros(CANDIDATES, DIMS, dtype=torch.float64)
    return matrix.index_put(tuple(torch.tensor(part) for part in np.nonzero(live)), values), gains, rows, batch


@pytest.mark.parametrize("count", [1, 2, 5, DIMS, 99])
def test_the_strongest_stay_and_equal_ones_go_by_column(count):
    u = torch.tensor(np.random.default_rng(count).integers(-3, 4, (DIMS, 30)).astype(np.float64))
    for found, user in zip(Strongest.apply(u, count).t(), u.t(), strict=True):
        torch.testing.assert_close(found, slowly(user, count), rtol=0, atol=0)


@pytest.mark.parametrize("compact_above", [1, 1000])
@pytest.mark.parametrize("count", [1, 4, 99])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_equal_a_loop_over_users(seed, count, compact_above):
    matrix, gains, rows, batch = case(seed)
    model = Autoencoder(ModelSettings(row_norm="free", user_entries=count, compact_above=compact_above))
    loss, activations = model.loss(rows, batch, None, collect=4)
    losses = []
    for b in range(4):
        history = batch.positions[batch.offsets[b] : batch.offsets[b + 1]]
        if len(history):
            u = matrix[history].sum(0)
            u = u + (slowly(u.detach(), count) - u).detach()  # the strongest, with the gradient of all
            x = torch.zeros(CANDIDATES, dtype=torch.float64)
            x[history] = 1
            score = gains * (matrix @ u) - x * gains * matrix.square().sum(1)
            losses.append(2 - 2 * torch.cosine_similarity(score, x, dim=0))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [rows.values, rows.gains])
    loss.backward()
    for got, want in zip((rows.values.grad, rows.gains.grad), wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert int((activations.matrices().users != 0).sum(0).max()) <= count


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("count", [None, 1, 4])
def test_an_export_answers_what_evaluation_ranks(tmp_path: Path, count, kernels):
    matrix, gains, rows, batch = case(7)
    csr = sp.csr_matrix(matrix.detach().numpy().astype(np.float32))
    block = RowBlock(csr.indptr.astype(np.int64), csr.indices.astype(np.int64), csr.data, gains.detach().numpy())
    write_export(tmp_path / "e", [block], item_ids=pa.array(range(CANDIDATES)), dims=DIMS, row_norm="free",
                 user_entries=count)  # fmt: skip
    answer = Recommender(load_export(tmp_path / "e"), kernels=kernels)
    top, scores = answer.recommend_rows(batch.offsets.numpy(), batch.positions.numpy(), 6)
    model = Autoencoder(ModelSettings(row_norm="free", user_entries=count))
    u_kb, _ = model.encode(rows, batch)
    ours = model.score_items(u_kb, None, rows, batch).t().detach()
    for b in range(4):
        history = batch.positions[batch.offsets[b] : batch.offsets[b + 1]]
        ours[b, history] = -np.inf
        if len(history):
            best = ours[b].argsort(descending=True)[:6]
            assert top[b].tolist() == best.tolist()
            np.testing.assert_allclose(scores[b], ours[b, best], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, "3", 1.5, True])
def test_a_manifest_with_another_kind_of_number_is_refused(tmp_path: Path, count):
    block = RowBlock(np.array([0, 1]), np.array([0]), np.ones(1, np.float32), np.ones(1, np.float32))
    write_export(tmp_path / "e", [block], item_ids=pa.array([1]), dims=2, row_norm="free", user_entries=count)
    with pytest.raises(ExportError, match="user_entries"):
        load_export(tmp_path / "e")


def test_a_dense_table_has_dense_user_vectors():
    raw = {
        "tables": {"item": {"kind": "dense", "dims": 8}},
        "sparsity": {"start": "random"},
        "model": {"row_norm": "unit", "user_entries": 4},
    }
    with pytest.raises(ConfigError, match=r"leave out model\.user_entries"):
        parse_config(raw, "x")

"""Error feedback: nothing is lost but what belonged to a column that moved; compiled and plain alike."""

from __future__ import annotations

import pytest
import torch

from hse_dist.native.library import library
from hse_dist.tables import feedback
from hse_dist.tables.codecs import StrongestGradients
from hse_dist.tables.feedback import FeedBack, Residuals

CHUNKS, WIDTH, DIMS = 50, 16, 1000
CPU = torch.device("cpu")


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(feedback, "compiled", lambda tensor: False)
    elif library() is None:
        pytest.skip("the kernels were not built")
    return request.param


def residuals(sent: int = 4, dtype: str = "bfloat16", chunks: int = CHUNKS, ranks: int = 2) -> Residuals:
    return Residuals(StrongestGradients(WIDTH, sent, dtype), chunks, 1, ranks, CPU)


def table_columns() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(DIMS, generator=generator)[:WIDTH] for _ in range(CHUNKS)]).float()


def looked_up(round_: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [N] and gradients [N, w] of a lookup."""
    generator = torch.Generator().manual_seed(round_)
    ids = torch.randperm(CHUNKS, generator=generator)[:30]
    return ids, torch.randn(30, WIDTH, generator=generator) * 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sent", [1, 4, 16])
def test_what_was_sent_and_what_is_owed_add_up_to_the_gradients(path, sent, dtype):
    owed, columns = residuals(sent, dtype), table_columns()
    given, arrived = (torch.zeros(CHUNKS, WIDTH, dtype=torch.float64) for _ in range(2))
    for round_ in range(20):
        ids, grad = looked_up(round_)
        got = owed.send(grad, ids, columns[ids])
        assert int((got != 0).sum(1).max()) <= sent
        given[ids] += grad.double()
        arrived[ids] += got.double()
    torch.testing.assert_close(arrived + owed.values.double(), given, rtol=0, atol=1e-8)
    # the codec that comes after it finds nothing left to leave out or to round
    assert torch.equal(owed.codec.decode(owed.codec.encode(got)).view_as(got), got)
    assert bool(owed.values.any()) == (sent < WIDTH or dtype != "float32")


def test_a_residual_whose_column_moved_counts_for_nothing(path):
    owed, columns = residuals(sent=1), table_columns()
    ids, grad = looked_up(0)
    owed.send(grad, ids, columns[ids])
    before = owed.values[ids].clone()
    moved = columns[ids].clone()
    moved[:, ::2] = DIMS  # freed
    sent = owed.send(torch.zeros_like(grad), ids, moved)
    rest = before.clone()
    rest[:, ::2] = 0.0
    torch.testing.assert_close(sent + owed.values[ids], rest, rtol=0, atol=1e-9)


def test_chunks_beyond_the_memory_lose_what_they_leave(path):
    owed = residuals(sent=2, chunks=2**40)
    assert owed.kept == 2**20 // (8 * WIDTH)
    ids = torch.tensor([owed.kept + 5, owed.kept - 1])
    grad = torch.arange(2 * WIDTH).view(2, WIDTH) + 1.0
    columns = torch.arange(2.0 * WIDTH).view(2, WIDTH)
    sent = owed.send(grad, ids, columns)
    assert sent[0].nonzero().flatten().tolist() == [14, 15] and not owed.values[:-1].any()
    assert owed.values[-1, :14].all() and not owed.values[-1, 14:].any()


@pytest.mark.skipif(library() is None, reason="the kernels were not built")
def test_both_paths_are_equal_bit_for_bit(monkeypatch):
    found = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(feedback, "compiled", lambda tensor: False)
        owed, columns = residuals(), table_columns()
        sent = [owed.send(grad, ids, columns[ids]) for ids, grad in map(looked_up, range(6))]
        found.append([*sent, owed.values, owed.columns])
    assert all(map(torch.equal, *found))


def test_a_rank_takes_over_what_others_owe():
    columns, first, second = table_columns(), residuals(), residuals()
    for round_, owed in enumerate((first, second)):
        ids, grad = looked_up(round_)
        owed.send(grad, ids, columns[ids])
    same = residuals()
    same.load_state_dict(first.state_dict())
    assert torch.equal(same.values, first.values)
    # owners divide by the number of ranks, so a debt to two is worth twice as much to four
    joined = residuals(ranks=4)
    for owed in (first, second):
        joined.load_state_dict(owed.state_dict())
    torch.testing.assert_close(joined.values, 2 * (first.values + second.values))


def test_it_is_the_identity_on_the_way_out():
    owed, columns = residuals(), table_columns()
    ids, grad = looked_up(0)
    values = torch.randn(30, WIDTH, requires_grad=True)
    out = FeedBack.apply(values, ids, columns[ids], owed)
    assert torch.equal(out, values)
    out.backward(grad)
    assert torch.equal(values.grad, residuals().send(grad, ids, columns[ids]))

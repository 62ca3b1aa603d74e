from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hse_dist.evaluate.topk as topk_module
from hse_dist.errors import NumericError
from hse_dist.evaluate.topk import TopK, mask
from hse_dist.export.topk import top_k

# few distinct values, so that most comparisons are ties; -0 and +0 are the same score
SCORES = st.sampled_from([-np.inf, -3.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, 0.5000001, 3e38])


def slow(scores: np.ndarray, k: int) -> np.ndarray:
    """Sorting in Python: by falling score, then by row."""
    lists = []
    for line in scores.tolist():
        order = [j for j in sorted(range(len(line)), key=lambda j: (-line[j], j)) if line[j] > -np.inf][:k]
        lists.append(order + [-1] * (k - len(order)))
    return np.array(lists, np.int64).reshape(len(scores), k)


@st.composite
def scored_blocks(draw: st.DrawFn) -> tuple[np.ndarray, list[int], int]:
    users, items = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    scores = draw(st.lists(SCORES, min_size=users * items, max_size=users * items))
    cuts = draw(st.sets(st.integers(1, items), max_size=5))
    return np.array(scores, np.float32).reshape(users, items), sorted({0, items} | cuts), draw(st.integers(1, 35))


@settings(max_examples=150, deadline=None)
@given(scored_blocks(), st.randoms())
def test_equals_sorting_whatever_the_blocks_and_their_order(case, random) -> None:
    scores, cuts, k = case
    blocks = list(itertools.pairwise(cuts))
    random.shuffle(blocks)
    top = TopK(len(scores), k)
    for first, last in blocks:
        top.update(torch.from_numpy(scores[:, first:last]), first)
    expected = slow(scores, k)
    np.testing.assert_array_equal(top.result().numpy(), expected)
    # serving has its own top k without torch, of the same rule
    shown = expected[:, : scores.shape[1]]
    rows, found = top_k(scores, shown.shape[1])
    np.testing.assert_array_equal(rows, shown)
    np.testing.assert_array_equal(found, np.where(shown >= 0, np.take_along_axis(scores, shown, axis=1), -np.inf))


def test_users_are_taken_in_pieces_that_do_not_show(monkeypatch) -> None:
    scores = torch.randint(0, 7, (9, 50)).float()
    monkeypatch.setattr(topk_module, "KEYS_AT_A_TIME", 100)
    top = TopK(9, 10)
    top.update(scores[:, :35], 0)
    top.update(scores[:, 35:], 35)
    np.testing.assert_array_equal(top.result().numpy(), slow(scores.numpy(), 10))


def test_large_row_numbers_survive() -> None:
    top = TopK(1, 3)
    top.update(torch.tensor([[1.0, 2.0, 2.0]]), 2**32 - 3)
    assert top.result().tolist() == [[2**32 - 2, 2**32 - 1, 2**32 - 3]]


def test_mask_hides_what_a_user_has_seen_in_the_block_only() -> None:
    scores = torch.zeros(3, 4)
    mask(scores, 10, torch.tensor([0, 3, 3, 5]), torch.tensor([9, 10, 13, 14, 12]))
    inf = -np.inf
    assert scores.tolist() == [[inf, 0, 0, inf], [0, 0, 0, 0], [0, 0, inf, 0]]


def test_no_users() -> None:
    top = TopK(0, 5)
    mask(torch.zeros(0, 4), 0, torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    top.update(torch.zeros(0, 4), 0)
    assert top.result().shape == (0, 5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_refused_with_its_row(sign: float) -> None:
    scores = torch.zeros(2, 3)
    scores[1, 2] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    with pytest.raises(NumericError, match="item row 42 is NaN"):
        TopK(2, 2).update(scores, 40)


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-50, 50, (300, 20_000), generator=generator).float() / 7
    tops = []
    for device, size in (("cpu", 20_000), ("cuda", 4096)):
        top = TopK(300, 100, device)
        for first in range(0, 20_000, size):
            block = scores[:, first : first + size].to(device)
            mask(block, first, torch.arange(0, 601, 2, device=device), torch.arange(600, device=device))
            top.update(block, first)
        tops.append(top.result().cpu())
    assert torch.equal(*tops)

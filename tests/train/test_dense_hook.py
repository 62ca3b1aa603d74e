"""Top-k gradients of dense parameters, on real ranks, against a slow reference that plays all ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hse_dist.errors import RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.testing.ranks import run_ranks
from hse_dist.train.dense_hook import TopKState, data_parallel, top_k_hook

STEPS, RATE = 5, 0.3
ONE, EACH = 25.0, 1e-5
"""Bucket sizes: all parameters in one, or each in its own."""
States = list[dict[str, np.ndarray]]


def make_tower(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 5)).to(dtype)
    tower[0].bias.requires_grad_(False)
    return tower


def loss_of(tower: nn.Module, rank: int, step: int, dtype: torch.dtype) -> Tensor:
    rng = np.random.default_rng([rank, step])
    given = torch.from_numpy(rng.normal(size=(6, 7))).to(dtype)
    return (tower(given) - torch.from_numpy(rng.normal(size=(6, 5))).to(dtype)).square().sum()


def descend(tower: nn.Module) -> None:
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.grad is not None:
                parameter -= RATE / 100 * parameter.grad
                parameter.grad = None


def train(
    ranks: Ranks, share: float, bucket_mb: float, dtype: torch.dtype, states: States, first: int = 0
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], dict[str, np.ndarray]]:
    """(parameters at the end, mean gradients of every step, what is left)"""
    tower = make_tower(dtype)
    wrapped, state = data_parallel(tower, share, bucket_mb=bucket_mb)
    for own in states[ranks.rank :: ranks.size]:
        assert state is not None
        state.load_state_dict(own)
    gradients = []
    for step in range(first, first + STEPS):
        loss_of(wrapped, ranks.rank, step, dtype).backward()
        gradients.append({name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None})
        descend(tower)
    return dict(tower.state_dict()), gradients, state.state_dict() if state else {}


def train_plain(ranks: Ranks, dtype: torch.dtype) -> dict[str, Tensor]:
    tower = make_tower(dtype)
    wrapped = DistributedDataParallel(tower)
    for step in range(STEPS):
        loss_of(wrapped, ranks.rank, step, dtype).backward()
        descend(tower)
    return dict(tower.state_dict())


def train_all_through_the_hook(ranks: Ranks, dtype: torch.dtype) -> dict[str, Tensor]:
    """As `data_parallel` with a share of 1, but by the hook."""
    tower = make_tower(dtype)
    wrapped = DistributedDataParallel(tower)
    state = TopKState(tower, 1.0)
    wrapped.register_comm_hook(state, top_k_hook)
    for step in range(STEPS):
        loss_of(wrapped, ranks.rank, step, dtype).backward()
        descend(tower)
    assert all((left == 0).all() for left in state.state_dict().values())
    return dict(tower.state_dict())


def slow(ranks: int, share: float, *, one_bucket: bool) -> tuple[list[dict[str, Tensor]], States]:
    """With one bucket, or one a parameter, in float64: (mean gradients of every step, what is left on each rank as a
    part of the mean)."""
    tower, left, means = make_tower(torch.float64), [{} for _ in range(ranks)], []
    for step in range(STEPS):
        mean: dict[str, Tensor] = {}
        for rank in range(ranks):
            loss_of(tower, rank, step, torch.float64).backward()
            own = {name: p.grad + left[rank].get(name, 0) for name, p in tower.named_parameters() if p.requires_grad}
            tower.zero_grad()
            # DDP has one bucket until it has seen in which order gradients come
            for names in [list(own)] if one_bucket or step == 0 else [[name] for name in own]:
                entries = torch.cat([own[name].abs().flatten() for name in names]).sort(descending=True).values
                weakest = entries[math.ceil(share * len(entries)) - 1]
                for name in names:
                    kept = own[name].abs() >= weakest
                    mean[name] = mean.get(name, 0) + torch.where(kept, own[name], 0.0) / ranks
                    left[rank][name] = torch.where(kept, 0.0, own[name])
        means.append(mean)
        with torch.no_grad():
            for name, parameter in tower.named_parameters():
                if name in mean:
                    parameter -= RATE / 100 * mean[name]
    return means, [{name: (part / ranks).numpy() for name, part in own.items()} for own in left]


def same_everywhere(answers: list[Any]) -> Any:
    for other in answers[1:]:
        assert all(torch.equal(answers[0][name], other[name]) for name in answers[0])
    return answers[0]


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("bucket_mb", [ONE, EACH])
def test_like_the_slow_reference(ranks: int, share: float, bucket_mb: float) -> None:
    answers = run_ranks(train, ranks, share, bucket_mb, torch.float64, [])
    means, left = slow(ranks, share, one_bucket=bucket_mb == ONE)
    same_everywhere([weights for weights, _, _ in answers])
    for _, gradients, _ in answers:
        for found, mean in zip(gradients, means, strict=True):
            assert found.keys() == mean.keys()
            assert all(torch.allclose(found[name], mean[name], rtol=1e-9, atol=1e-12) for name in mean)
    for (_, _, found), own in zip(answers, left, strict=True):
        assert found.keys() == own.keys()
        assert all(np.allclose(found[name], own[name], rtol=1e-5, atol=1e-7) for name in own)
    sizes = [p.numel() for p in make_tower(torch.float64).parameters() if p.requires_grad]
    for step, found in enumerate(answers[0][1]):
        buckets = [sum(sizes)] if bucket_mb == ONE or step == 0 else sizes
        most = ranks * sum(math.ceil(share * size) for size in buckets)
        assert 0 < sum(int((part != 0).sum()) for part in found.values()) <= most


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_share_of_one_is_plain_ddp(ranks: int) -> None:
    plain = same_everywhere(run_ranks(train_plain, ranks, torch.float32))
    default = same_everywhere([weights for weights, _, _ in run_ranks(train, ranks, 1.0, ONE, torch.float32, [])])
    hooked = same_everywhere(run_ranks(train_all_through_the_hook, ranks, torch.float32))
    start = make_tower(torch.float32).state_dict()
    assert not torch.equal(start["0.weight"], plain["0.weight"])
    for name in plain:
        assert torch.equal(plain[name], default[name])
        # two numbers have one sum; with more the order of summing counts
        assert torch.equal(plain[name], hooked[name]) or ranks > 2
        assert torch.allclose(plain[name], hooked[name], rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_lost(dtype: torch.dtype) -> None:
    answers = run_ranks(sums, 2, 0.05, dtype)
    for name in answers[0][0]:
        true = sum(given[name] for given, _, _ in answers) / 2
        applied, left = answers[0][1][name], sum(left[name] for _, _, left in answers)
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        np.testing.assert_allclose(applied + left, true, rtol=tolerance, atol=tolerance * np.abs(true).max())
        assert np.abs(left).max() > 0.1 * np.abs(true).max()


def sums(ranks: Ranks, share: float, dtype: torch.dtype) -> tuple[dict[str, np.ndarray], ...]:
    """(own gradients, applied mean gradients, what is left), the first two summed over steps; the model stays."""
    tower, alone = make_tower(dtype), make_tower(dtype)
    wrapped, state = data_parallel(tower, share)
    assert state is not None
    given: dict[str, Any] = {}
    applied: dict[str, Any] = {}
    for step in range(STEPS):
        for model, totals in ((alone, given), (wrapped, applied)):
            model.zero_grad()
            loss_of(model, ranks.rank, step, dtype).backward()
            for name, parameter in (alone if model is alone else tower).named_parameters():
                if parameter.grad is not None:
                    totals[name] = totals.get(name, 0) + parameter.grad.double().numpy()
    return given, applied, state.state_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_is_left_goes_on_with_any_number_of_ranks(ranks: int) -> None:
    answers = run_ranks(train, 2, 0.1, ONE, torch.float32, [])
    states = [left for _, _, left in answers]
    taken = run_ranks(take_up, ranks, states)
    for name in states[0]:
        whole = sum(state[name] for state in states)
        np.testing.assert_allclose(sum(state[name] for state in taken), whole, rtol=1e-6)
        assert np.abs(whole).max() > 0


def take_up(ranks: Ranks, states: States) -> dict[str, np.ndarray]:
    state = TopKState(make_tower(torch.float32), 0.1)
    for own in states[ranks.rank :: ranks.size]:
        state.load_state_dict(own)
    return state.state_dict()


@pytest.mark.distributed
def test_a_resumed_run_is_bit_equal_in_one_bucket() -> None:
    straight = run_ranks(two_halves, 2, False)
    broken = run_ranks(two_halves, 2, True)
    for (one, left), (other, found) in zip(straight, broken, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(np.array_equal(left[name], found[name]) for name in left)


def two_halves(ranks: Ranks, interrupted: bool) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    tower = make_tower(torch.float32)
    wrapped, state = data_parallel(tower, 0.1)
    for step in range(2 * STEPS):
        if interrupted and step == STEPS:
            assert state is not None
            weights, left = tower.state_dict(), state.state_dict()
            tower = make_tower(torch.float32)
            tower.load_state_dict(weights)
            wrapped, state = data_parallel(tower, 0.1)
            assert state is not None
            state.load_state_dict(left)
        loss_of(wrapped, ranks.rank, step, torch.float32).backward()
        descend(tower)
    assert state is not None
    return dict(tower.state_dict()), state.state_dict()


def not_a_number(ranks: Ranks) -> list[bool]:
    tower = make_tower(torch.float32)
    wrapped, _ = data_parallel(tower, 0.01)
    loss = loss_of(wrapped, ranks.rank, 0, torch.float32)
    (loss * (math.nan if ranks.rank else 1.0)).backward()
    return [bool(p.grad.isnan().any()) for p in tower.parameters() if p.grad is not None]


@pytest.mark.distributed
def test_a_gradient_that_is_not_a_number_shows_on_all_ranks() -> None:
    one, other = run_ranks(not_a_number, 2)
    assert one == other and any(one)


def refuse(ranks: Ranks) -> None:
    state = TopKState(make_tower(torch.float32), 0.5)
    good = state.state_dict()
    for wrong in ({}, {**good, "more": np.zeros(1)}, {**good, "0.weight": np.zeros((7, 11))}):
        with pytest.raises(RunFolderError, match="another model's parameters"):
            state.load_state_dict(wrong)
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            TopKState(make_tower(torch.float32), share)


def test_wrong_states_and_shares_are_refused() -> None:
    run_ranks(refuse, 1)

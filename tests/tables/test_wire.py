"""Tables on real gloo ranks under the settings of the wire: what arrives, what is owed, what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import TrainSettings, WireSettings
from hse_dist.ranks import Ranks
from hse_dist.tables import sharded
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all

ROWS, DIMS, WIDTH = 40, 60, 8
CONTENT = Content.random(3, ROWS, DIMS, WIDTH, longest=20, long_rows={7: 40})
RATE, WARM, STEPS = 0.1, 0.5, 3
WIRES = {
    "as it is": WireSettings(),
    "bfloat16": WireSettings(gradients="bfloat16"),
    "strongest": WireSettings(gradient_slots=2, gradients="bfloat16"),
    "forgetful": WireSettings(gradient_slots=2, feedback=False),
}
PLACES = [(2, "row_wise"), (2, "table_wise"), (4, "row_wise")]


def make_table(ranks: Ranks, sharding: str, wire: WireSettings) -> PackedTable:
    settings = TrainSettings(learning_rate=RATE, warm_accumulator=WARM)
    table = PackedTable(CONTENT.layout, DIMS, ranks, settings, sharding, with_gains=True, wire=wire)
    table.set_gains(lambda first, last: CONTENT.gains[first:last])
    table.put_back(CONTENT.owned(*table.row_ranges[ranks.rank]))
    return table


def chosen_rows(rank: int, step: int) -> np.ndarray:
    return np.random.default_rng([rank, step]).permutation(ROWS)[:25]


def gradient(rank: int, step: int) -> np.ndarray:
    """Of every slot of the table, as this rank sees it; float32 [chunks, w]."""
    return np.random.default_rng([7, rank, step]).standard_normal((CONTENT.layout.chunks, WIDTH)).astype(np.float32)


def chunks_of(rows: np.ndarray) -> np.ndarray:
    offsets = CONTENT.layout.offsets.numpy()
    return np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])


def live_slots() -> np.ndarray:
    return CONTENT.owned(0, ROWS).live.reshape(-1, WIDTH)


def train(ranks: Ranks, sharding: str, wire: WireSettings) -> tuple[np.ndarray, dict[str, int], list[Any]]:
    """Steps with the gradients of `gradient`; the values after them, what was sent, and the shards."""
    table, before = make_table(ranks, sharding, wire), dict(ranks.meter.sent)
    for step in range(STEPS):
        rows = chosen_rows(ranks.rank, step)
        block = table.lookup(torch.from_numpy(rows))
        chunks = chunks_of(rows)
        slopes = gradient(ranks.rank, step)[chunks][live_slots()[chunks]]
        (block.values * torch.from_numpy(slopes)).sum().backward()
    sent = ranks.meter.since(before)
    return read_all(table).values.numpy(), sent, table.ranges


def reference(ranks: int, wire: WireSettings) -> np.ndarray:
    """The same, chunk by chunk, in float64 but for what the wire rounds."""
    live = live_slots()
    values = CONTENT.owned(0, ROWS).values.reshape(-1, WIDTH).astype(np.float64)
    accumulator, owed = np.full(len(values), WARM), np.zeros((ranks, *values.shape), np.float32)
    for step in range(STEPS):
        total = np.zeros_like(values)
        for rank in range(ranks):
            chunks = chunks_of(chosen_rows(rank, step))
            wanted = np.where(live, gradient(rank, step), 0)[chunks].astype(np.float32)
            if wire.feedback:
                wanted += owed[rank, chunks]
            sent = np.zeros_like(wanted)
            for row, numbers in enumerate(wanted):
                order = np.argsort(-np.abs(numbers), kind="stable")[: wire.gradient_slots or WIDTH]
                sent[row, order] = numbers[order]
            if wire.gradients == "bfloat16":
                sent = torch.from_numpy(sent).bfloat16().float().numpy()
            owed[rank, chunks] = wanted - sent
            total[chunks] += sent / ranks
        accumulator += (total**2).mean(1)
        values -= RATE * total / (np.sqrt(accumulator)[:, None] + 1e-8)
    return values[live]


@pytest.mark.distributed
@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_steps_equal_the_slow_reference(ranks, sharding, name):
    expected = reference(ranks, WIRES[name])
    for values, _, _ in run_ranks(train, ranks, sharding, WIRES[name]):
        np.testing.assert_allclose(values, expected, atol=2e-6)
    # the settings matter, or this would prove nothing
    if name != "as it is":
        assert np.abs(expected - reference(ranks, WIRES["as it is"])).max() > 1e-4


def without_codecs(ranks: Ranks, sharding: str) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "registry", lambda forward, backward: None)
        return train(ranks, sharding, WireSettings())[0]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_all_slots_in_float32_are_bit_equal_to_no_codec(ranks, sharding):
    plain, packed = run_ranks(without_codecs, ranks, sharding), run_ranks(train, ranks, sharding, WireSettings())
    for values, (others, _, _) in zip(plain, packed, strict=True):
        assert np.array_equal(values, others)


def remote(ids: np.ndarray, ranges: list[tuple[int, int]], rank: int) -> int:
    first, last = ranges[rank]
    return int(((ids < first) | (ids >= last)).sum())


@pytest.mark.distributed
@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_the_meter_counts_what_goes_to_other_ranks(ranks, sharding, name):
    answers = run_ranks(train, ranks, sharding, WIRES[name])
    chunk_bytes = {"as it is": 4 * WIDTH, "bfloat16": 2 * WIDTH, "strongest": 1 + 2 * 2, "forgetful": 1 + 2 * 4}[name]
    ranges = answers[0][2]
    asked = sum(remote(chunks_of(chosen_rows(r, s)), ranges, r) for r in range(ranks) for s in range(STEPS))
    sent = {kind: sum(answer[1][kind] for answer in answers) for kind in answers[0][1]}
    assert sent["columns"] == asked * 2 * WIDTH and sent["values"] == asked * 4 * WIDTH
    assert sent["gradients"] == asked * chunk_bytes and sent["rewire"] == 0
    # the ids of gains are those of rows, and their rows are float32 [4] there and back
    gains = sent["gains"] // (2 * 16)
    assert sent["gains"] % (2 * 16) == 0 and sent["ids"] == 4 * (asked + gains) and gains > 0


def look_up_halves(ranks: Ranks) -> tuple[np.ndarray, int, np.ndarray, int]:
    """Values as a step sees them and as a reader does, and the bytes that each way took."""
    table = make_table(ranks, "row_wise", WireSettings(values="float16"))
    before = dict(ranks.meter.sent)
    trained = table.lookup(torch.arange(ROWS)).values.detach().numpy()
    between = dict(ranks.meter.sent)
    read = read_all(table).values.numpy()
    after = ranks.meter.sent
    return trained, between["values"] - before["values"], read, after["values"] - between["values"]


@pytest.mark.distributed
def test_values_may_travel_as_halves_while_they_are_trained():
    whole = np.concatenate(CONTENT.values)
    for trained, half_bytes, read, bytes_ in run_ranks(look_up_halves, 2):
        assert np.array_equal(trained, whole.astype(np.float16).astype(np.float32))
        assert np.array_equal(read, whole) and bytes_ == 2 * half_bytes > 0


def many_columns(ranks: Ranks, dims: int) -> bool:
    """Whether columns of three bytes arrive as they were, free slots among them."""
    layout = RowLayout.from_lengths(np.full(ROWS, 5), WIDTH)
    content = Content.random(0, ROWS, dims, WIDTH, longest=5, long_rows={})
    table = PackedTable(layout, dims, ranks, TrainSettings(), "row_wise", with_gains=False)
    table.put_back(content.owned(*table.row_ranges[ranks.rank]))
    return bool(np.array_equal(read_all(table).columns.numpy(), np.concatenate(content.columns)))


@pytest.mark.distributed
@pytest.mark.parametrize("dims", [65_535, 65_536, 1_000_000])
def test_columns_arrive_exactly(dims):
    assert run_ranks(many_columns, 2, dims) == [True, True]


def hand_over(ranks: Ranks, states: list[Any]) -> tuple[list[dict[str, np.ndarray]], np.ndarray, Any]:
    """What ranks owe after training (or took over from `states`), and the values after a step without gradients."""
    wire = WireSettings(gradient_slots=2)
    table = make_table(ranks, "row_wise", wire)
    for state in states[ranks.rank :: ranks.size]:
        table.load_residuals(state)
    before = read_all(table).values.numpy().copy()
    if not states:
        block = table.lookup(torch.arange(ROWS))
        slopes = gradient(ranks.rank, 0)[live_slots()]
        (block.values * torch.from_numpy(slopes)).sum().backward()
        return table.residuals_state(), before, None
    for _ in range(WIDTH):
        (table.lookup(torch.arange(ROWS)).values * 0.0).sum().backward()
    return table.residuals_state(), before, read_all(table).values.numpy()


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_is_owed_outlives_a_change_of_ranks(ranks):
    states = [state for state, _, _ in run_ranks(hand_over, 2, [])]
    assert all(len(state["residual_ids"]) for state in states)
    answers = run_ranks(hand_over, ranks, states)
    owed = np.zeros((CONTENT.layout.chunks, WIDTH))
    for state in states:
        owed[state["residual_ids"]] += state["residual_values"] / 2
    owed = owed[live_slots()]
    clear = np.abs(owed) > 1e-3
    for state, before, after in answers:
        # all of it arrived: nothing is owed any more, and every value has moved against its residual
        assert not len(state["residual_ids"])
        assert (np.sign(after - before)[clear] == -np.sign(owed)[clear]).all()


def dense_bytes(ranks: Ranks) -> dict[str, int]:
    table = DenseTable(ROWS, 12, ranks, TrainSettings(), "row_wise")
    table.lookup(torch.from_numpy(chosen_rows(ranks.rank, 0))).values.sum().backward()
    return ranks.meter.sent


@pytest.mark.distributed
def test_the_meter_counts_dense_rows_too():
    asked = sum(remote(chosen_rows(rank, 0), [(0, 20), (20, 40)], rank) for rank in range(2))
    answers = run_ranks(dense_bytes, 2)
    sent = {kind: sum(answer[kind] for answer in answers) for kind in answers[0]}
    assert sent == {
        "ids": 4 * asked,
        "values": 48 * asked,
        "gradients": 48 * asked,
        "columns": 0,
        "gains": 0,
        "rewire": 0,
    }

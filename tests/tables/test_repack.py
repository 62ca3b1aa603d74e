"""A repack on real gloo ranks: the same rows in fewer chunks, whatever straddles a shard's border."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import TrainSettings, WireSettings
from hse_dist.ranks import Ranks
from hse_dist.tables import repack
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.sharded import PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all

ROWS, DIMS, WIDTH, WARM = 40, 90, 8, 0.3
# rows of up to eleven chunks: some lie on both sides of a shard's border, before and after
CONTENT = Content.random(3, ROWS, DIMS, WIDTH, longest=30, long_rows={5: 88, 11: 60, 12: 72, 30: 70})
PLACES = [(1, "row_wise"), (2, "row_wise"), (4, "row_wise"), (2, "table_wise")]
CASES = {"chunk": "rowwise_adagrad", "slot": "adagrad"}


def make_table(ranks: Ranks, sharding: str, optimizer: str, wire: WireSettings | None = None) -> PackedTable:
    """A table with an accumulator for every chunk or slot and gain of its own, and only every third entry left."""
    train = TrainSettings(optimizer=optimizer, warm_accumulator=WARM)
    table = PackedTable(CONTENT.layout, DIMS, ranks, train, sharding, with_gains=True, wire=wire)
    table.set_gains(lambda first, last: CONTENT.gains[first:last])
    owned = CONTENT.owned(*table.row_ranges[ranks.rank])
    gone = (owned.columns + owned.slot_rows()) % 3 != 0
    gone[owned.offsets[:-1]] = False  # a row keeps an entry
    owned.values[gone], owned.columns[gone] = 0.0, DIMS
    table.put_back(owned)
    for name, (first, _) in (("values", table.ranges[ranks.rank]), ("gains", (table.gain_shards()[1], 0))):
        for shard in table.accumulators(name):
            of_one = shard[:1].numel()
            numbers = torch.arange(first * of_one, (first + len(shard)) * of_one)
            shard.copy_(1.0 + numbers.view(shard.shape) % 97)
    return table


def facts(table: PackedTable) -> dict[str, np.ndarray]:
    rows, owned = read_all(table), table.owned()
    parts = table.accumulators("values")
    (kept,) = (table.gather_chunks(part).numpy() for part in parts)
    first = owned.offsets[0]
    return {
        "offsets": rows.offsets.numpy(),
        "columns": rows.columns.numpy(),
        "values": rows.values.numpy(),
        "gains": rows.gains.numpy(),
        "owned": np.array([owned.first, owned.last, first]),
        "slot_columns": owned.columns,
        "bounds": owned.offsets,
        "kept": kept,
        "gain_accumulators": table.gain_shards()[0][1].numpy().copy(),
    }


def repack_and_read(ranks: Ranks, sharding: str, optimizer: str, slack: float, block: int) -> Any:
    table = make_table(ranks, sharding, optimizer)
    before, slots = facts(table), table.layout.slots
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repack, "BLOCK_ROWS", block)
        layout = repack.packed_layout(table, slack)
        contents = repack.take_out(table)
        del table
        table = repack.put_in(contents, layout)
    assert not table.local_values()[table.local_columns() == DIMS].count_nonzero()
    return before, facts(table), slots, table.layout.slots, table.layout.offsets.numpy()


@pytest.mark.distributed
@pytest.mark.parametrize("slack", [0.0, 0.6])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_rows_are_the_same_in_fewer_chunks(ranks, sharding, case, slack):
    answers = run_ranks(repack_and_read, ranks, sharding, CASES[case], slack, 7)
    for before, after, slots, fewer, offsets in answers:
        for name in ("offsets", "columns", "values", "gains"):
            assert before[name].tobytes() == after[name].tobytes(), name
        lengths = np.ceil(np.diff(before["offsets"]) * (1.0 + slack)).astype(int)
        assert np.array_equal(offsets, RowLayout.from_lengths(lengths, WIDTH).offsets.numpy())
        assert fewer == offsets[-1] * WIDTH < slots
    joined = [np.concatenate([answer[moment]["gain_accumulators"].ravel() for answer in answers]) for moment in (0, 1)]
    assert np.array_equal(*joined)
    check_accumulators(answers, case)


def check_accumulators(answers: list[Any], case: str) -> None:
    """Against a slow walk over rows: what each new chunk or slot should have of the old ones."""

    def by_row(moment: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for answer in answers:
            own = answer[moment]
            for row in range(*own["owned"][:2]):
                begin, end = own["bounds"][row - own["owned"][0] :][:2]
                kept = own["kept"][begin // WIDTH : end // WIDTH].reshape(-1)
                found[row] = own["slot_columns"][begin:end], kept
        return found

    before, after = by_row(0), by_row(1)
    assert sorted(before) == sorted(after) == list(range(ROWS))
    for row, (columns, kept) in after.items():
        old_columns, old = before[row]
        live_old = old_columns < DIMS
        of_column = dict(
            zip(old_columns[live_old], np.repeat(old, len(old_columns) // len(old))[live_old], strict=True)
        )
        for chunk in range(len(columns) // WIDTH):
            mine = columns[chunk * WIDTH : (chunk + 1) * WIDTH]
            if case == "slot":
                expected = [of_column.get(column, np.float32(WARM)) for column in mine]
                assert np.array_equal(kept[chunk * WIDTH : (chunk + 1) * WIDTH], np.array(expected, np.float32))
                continue
            entries = [of_column[column] for column in mine[mine < DIMS]] or list(of_column.values())
            assert kept[chunk] == pytest.approx(np.mean(entries), rel=1e-6)


def test_a_chunk_that_moves_whole_keeps_its_number_to_the_bit():
    numbers = np.repeat(np.array([0.1, 1 / 3, 1e-7], np.float32), [7, 8, 3])
    chunks = np.repeat([0, 1, 2], [7, 8, 3])
    assert repack._means(numbers, chunks, np.zeros(18, np.int64), np.zeros(3, np.int64), 0.0).tobytes() == (
        np.array([0.1, 1 / 3, 1e-7], np.float32).tobytes()
    )


def owe_and_repack(ranks: Ranks) -> Any:
    wire = WireSettings(gradient_slots=2, gradients="float32")
    table = make_table(ranks, "row_wise", "rowwise_adagrad", wire)
    rng = np.random.default_rng(ranks.rank)
    ids = np.sort(rng.choice(table.layout.chunks, 20, replace=False))
    held = np.zeros((20, WIDTH), np.float32)
    columns = np.concatenate([part.slot_columns for part in ranks.gather(Slots(table))]).reshape(-1, WIDTH)[ids]
    held[columns < DIMS] = rng.normal(size=int((columns < DIMS).sum()))
    stale = held.copy()
    columns = columns.astype(np.float32)
    columns[0, 0], stale[0, 0] = 89.0, 5.0  # of a column that is not live any more
    state = {"residual_ids": ids, "residual_values": stale, "residual_columns": columns}
    table.load_residuals({**state, "residual_ranks": np.array(ranks.size)})
    before = owed(table)
    contents, layout = repack.take_out(table), repack.packed_layout(table, 0.0)
    live = read_all(table)
    there = set(zip(np.repeat(np.arange(ROWS), np.diff(live.offsets)).tolist(), live.columns.tolist(), strict=True))
    return before, owed(repack.put_in(contents, layout)), there


class Slots:
    """The columns of a rank's slots."""

    def __init__(self, table: PackedTable) -> None:
        self.slot_columns = table.owned().columns


def owed(table: PackedTable) -> dict[tuple[int, int], float]:
    rows, columns, values = repack._owed(table)
    return dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), values.tolist(), strict=True))


@pytest.mark.distributed
def test_what_a_rank_owes_follows_its_entries():
    for before, after, there in run_ranks(owe_and_repack, 2):
        kept = {place: value for place, value in before.items() if place in there}
        assert 0 < len(kept) < len(before) and after == kept

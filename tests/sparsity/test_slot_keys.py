"""Keys by blocks are those of the whole table, kept or made again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hse_dist.config import TrainSettings
from hse_dist.ranks import Ranks
from hse_dist.sparsity import slot_keys
from hse_dist.sparsity.selection import Query, RadixSelection, histogram, select
from hse_dist.sparsity.slot_keys import SlotKeys, count_live
from hse_dist.sparsity.slots import drop_keys
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all

# few different values: ties on both sides of every block's border
CONTENT = Content.random(5, rows=40, dims=60, width=4, longest=11, long_rows={7: 40, 30: 25}, ties=True)


@pytest.fixture(params=["kept", "made again"])
def keys(request, monkeypatch) -> SlotKeys:
    monkeypatch.setattr(slot_keys, "BLOCK_SLOTS", 32)
    monkeypatch.setattr(slot_keys, "KEPT_SLOTS", 10**6 if request.param == "kept" else 0)
    return SlotKeys(CONTENT.owned(0, 40), CONTENT.gains)


def whole(keys: SlotKeys) -> np.ndarray:
    return np.concatenate(list(keys.parts()))


def test_blocks_cover_the_table(keys):
    expected, live = drop_keys(keys.owned, CONTENT.gains)
    assert np.array_equal(whole(keys), expected) and np.array_equal(keys.live, live)
    blocks = [block for _, block in keys.blocks()]
    assert len(blocks) > 5 and blocks[0].first == 0 and blocks[-1].last == 40
    assert all(block.rows.first == block.first for block in blocks)
    assert count_live(keys.owned) == CONTENT.lengths.sum()


def test_what_is_crossed_out_stays_so(keys):
    expected = whole(keys).copy()

    def every_third(block) -> None:
        block.keys[::3] = 0

    left = keys.narrow(every_third)
    ends = np.cumsum([0] + [len(part) for part in keys.parts()])
    for begin, end in pairwise(ends):
        expected[begin:end][::3] = 0
    assert np.array_equal(whole(keys), expected) and left == np.count_nonzero(expected)
    bits = np.concatenate([np.unpackbits(part) for part in keys.marks()])
    assert np.count_nonzero(bits) == left


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("count", [0, 1, 57, 200, 10**6])
def test_selection_by_blocks_is_that_of_the_whole(keys, count, largest):
    keys.narrow(lambda block: None)
    before = whole(keys).copy()
    server = RadixSelection(count, largest)
    answer = server.query
    while isinstance(answer, Query):
        answer = server.feed(sum(histogram(part, answer) for part in keys.parts())[None])
    counts = keys.take(answer, largest=largest)
    # in canonical order: by row, then column
    order = np.lexsort((keys.owned.columns, keys.owned.slot_rows()))
    order = order[before[order] != 0]
    (mask,) = select([before[order]], count, largest)
    expected = np.zeros_like(before)
    expected[order[mask]] = before[order[mask]]
    assert np.array_equal(whole(keys), expected)
    assert np.array_equal(counts, np.bincount(keys.owned.slot_rows()[expected != 0], minlength=40))


def borrow_and_return(ranks: Ranks, width: int, optimizer: str):
    content = Content.random(6, rows=16, dims=60, width=width, longest=width, long_rows={}, ties=False)
    table = content.table(ranks, "row_wise", TrainSettings(optimizer=optimizer), with_gains=False)
    owned = table.owned(borrow=True)
    borrowed = bool(np.shares_memory(owned.values, table.local_values().numpy()))
    copied = owned.columns.dtype == np.int32 and int((owned.columns < 60).sum())
    changed = owned.live
    owned.values[changed] *= 2.0
    owned.columns[changed] = 59 - owned.columns[changed]
    table.put_back(owned)
    rows = read_all(table)
    return borrowed, copied, rows.columns.numpy(), rows.values.numpy(), content


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "optimizer", "lent"), [(1, "rowwise_adagrad", True), (2, "rowwise_adagrad", True), (2, "adagrad", False)]
)
def test_rows_are_borrowed_where_they_can_be(ranks, optimizer, lent):
    answers = run_ranks(borrow_and_return, ranks, 8, optimizer)
    assert sum(answer[1] for answer in answers) == answers[0][4].lengths.sum()
    for borrowed, _, columns, values, content in answers:
        assert borrowed == lent
        assert np.array_equal(columns, 59 - np.concatenate(content.columns))
        assert np.array_equal(values, 2 * np.concatenate(content.values))

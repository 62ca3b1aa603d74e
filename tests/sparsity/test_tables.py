"""A table is filled shard by shard, whatever the shards' borders cut through."""

from __future__ import annotations

import numpy as np
import pytest

from hse_dist.config import TrainSettings
from hse_dist.ranks import Ranks
from hse_dist.sparsity import tables
from hse_dist.tables.sharded import PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all

# rows of up to nine chunks, so that some lie on both sides of a shard's border at any number of ranks
CONTENT = Content.random(3, rows=23, dims=50, width=4, longest=6, long_rows={5: 34, 11: 30, 12: 36, 17: 21})


class Start:
    """As much of a start folder as filling asks for."""

    def entries(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        offsets = np.concatenate([[0], np.cumsum(CONTENT.lengths[first:last])])
        columns, values = (np.concatenate(parts[first:last]) for parts in (CONTENT.columns, CONTENT.values))
        return offsets, columns, values


def fill_and_read(ranks: Ranks, sharding: str, range_rows: int):
    table = PackedTable(CONTENT.layout, CONTENT.dims, ranks, TrainSettings(), sharding, with_gains=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "RANGE_ROWS", range_rows)
        tables.fill(table, Start())
    rows = read_all(table)
    free = table.local_values()[table.local_columns() == CONTENT.dims]
    return rows.offsets.numpy(), rows.columns.numpy(), rows.values.numpy(), int(free.count_nonzero())


@pytest.mark.distributed
@pytest.mark.parametrize("range_rows", [1, 5, 100])
@pytest.mark.parametrize(("ranks", "sharding"), [(1, "row_wise"), (2, "row_wise"), (4, "row_wise"), (2, "table_wise")])
def test_table_holds_its_start_on_every_number_of_ranks(ranks, sharding, range_rows):
    for offsets, columns, values, strange in run_ranks(fill_and_read, ranks, sharding, range_rows):
        assert np.array_equal(np.diff(offsets), CONTENT.lengths) and strange == 0
        assert np.array_equal(columns, np.concatenate(CONTENT.columns))
        assert np.array_equal(values, np.concatenate(CONTENT.values))

"""Column numbers of blocks: stored, sent, and read as the columns that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hse_dist.tables.numbers as numbers
from hse_dist.config import StructureSettings, TrainSettings
from hse_dist.ranks import Ranks
from hse_dist.tables.codecs import Columns
from hse_dist.tables.numbers import columns_of, padded, stored_numbers
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all


@pytest.mark.parametrize(("width", "block", "stored"), [(16, 1, 16), (16, 4, 4), (32, 8, 4), (16, 8, 4), (32, 16, 4)])
def test_numbers_stand_for_adjacent_columns(width: int, block: int, stored: int, monkeypatch) -> None:
    assert stored_numbers(width, block) == stored
    given = torch.randint(0, 90, (7, width // block)).float()
    found = columns_of(padded(given, stored, 90), width, block)
    assert torch.equal(found, (given[:, :, None] * block + torch.arange(block)).view(7, width))
    monkeypatch.setattr(numbers, "library", lambda: None)
    assert torch.equal(columns_of(padded(given, stored, 90), width, block), found)


@pytest.mark.parametrize("dims", [90, 70_000])
def test_the_wire_leaves_out_what_only_fills_up(dims: int) -> None:
    codec = Columns(dims, stored=4, sent=2)
    given = padded(torch.randint(0, dims + 1, (9, 2)).float(), 4, dims).view(-1)
    sent = codec.encode(given)
    assert sent.numel() == codec.bytes_of(given.numel()) == 9 * 2 * codec.width
    assert torch.equal(codec.decode(sent), given)


CONTENT = Content.random(
    3, 40, 96, 16, longest=40, long_rows={7: 90}, structure=StructureSettings(kind="block", block=8)
)


def read(ranks: Ranks, optimizer: str) -> dict[str, object]:
    """What two ranks read of each other's rows, and the table put back and taken out again."""
    table = CONTENT.table(ranks, "row_wise", TrainSettings(optimizer=optimizer), with_gains=True)
    rows = read_all(table)
    again = table.owned()
    table.put_back(again)
    sent = ranks.meter.sent["columns"]
    return {
        "rows": rows,
        "live": table.live_entries(),
        "sent": sent,
        "same": torch.equal(read_all(table).columns, rows.columns),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_rows_of_blocks_are_read_on_two_ranks(optimizer: str) -> None:
    for answer in run_ranks(read, 2, optimizer):
        rows = answer["rows"]
        assert answer["live"] == CONTENT.lengths.sum() == len(rows.columns) and answer["same"]
        assert np.array_equal(rows.columns.numpy(), np.concatenate(CONTENT.columns))
        assert np.array_equal(rows.values.numpy(), np.concatenate(CONTENT.values))
        assert np.array_equal(rows.offsets.diff().numpy(), CONTENT.lengths)

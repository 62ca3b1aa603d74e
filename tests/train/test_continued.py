"""A run goes on from another one of fewer items: old rows stay, new ones are there and train."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.config import Config, parse_config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.synthetic import interactions
from hse_dist.errors import ConfigError, RunFolderError
from hse_dist.evaluate.driver import evaluate
from hse_dist.export.format import load_export
from hse_dist.export.writer import export
from hse_dist.ranks import Ranks
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import SMALL, changed, journal_of, read_checkpoint, store_of
from hse_dist.testing.tables import read_all
from hse_dist.train.continued import continued_table
from hse_dist.train.driver import train

ITEMS, DAYS = 120, 2


def write_days(folder: Path) -> None:
    """Day d knows only items of number below 80 + 40 · d."""
    settings = parse_config({"data": {"source": "synthetic", "synthetic": {"users": 300, "items": ITEMS}}}, "").data
    assert settings.synthetic is not None
    users, items, times = (np.concatenate(part) for part in zip(*interactions(settings.synthetic, 0), strict=True))
    items = items * 7 % ITEMS
    for day in range(DAYS):
        here = (items < 80 + 40 * day) & ((users + times // 3600) % DAYS == day)
        path = folder / f"day={day}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": users[here], "item_id": items[here], "timestamp": times[here]}), path)


def config_of(place: Path, run: str, data: str, continues: str | None = None, **changes: Any) -> Config:
    raw = json.loads(json.dumps(SMALL))
    raw["run"] = {"folder": str(place / run), "continues": None if continues is None else str(place / continues)}
    raw["data"] = {
        "source": str(place / "log"),
        "folder": str(place / data),
        "extendable": True,
        "users_per_row_group": 32,
    }
    raw["data"]["columns"] = {"timestamp": "timestamp"}
    raw["tables"]["item"]["slack"] = 0.4
    return changed(raw, **changes)


def two_days(place: Path, **changes: Any) -> tuple[Config, Config]:
    """A trained first day; a second one, prepared."""
    write_days(place / "days")
    shutil.copytree(place / "days" / "day=0", place / "log" / "day=0")
    first, second = (config_of(place, f"run-{day}", f"data-{day}", **changes) for day in range(2))
    prepare(first)
    train(first)
    shutil.copytree(place / "days" / "day=1", place / "log" / "day=1")
    prepare(second, extend=first.data.folder)
    return first, config_of(place, "run-1", "data-1", "run-0", **changes)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Config]:
    return two_days(tmp_path_factory.mktemp("days"))


def rows_of(table: Any) -> list[dict[int, float]]:
    found = read_all(table)
    columns, values, bounds = found.columns.tolist(), found.values.tolist(), found.offsets.tolist()
    return [dict(zip(columns[a:b], values[a:b], strict=True)) for a, b in pairwise(bounds)]


def continue_here(ranks: Ranks, second: Config) -> Any:
    table, _ = continued_table(second, Prepared(second.data.folder), ranks)
    return rows_of(table), table.layout.offsets.tolist(), table.dims, _accumulators(table)


def _accumulators(table: Any) -> list[float]:
    parts = table.ranks.gather([part.flatten().tolist() for part in table.accumulators("values")])
    return [number for part in parts for one in part for number in one]


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_columns_and_the_optimizer_stay_and_new_rows_follow(days, ranks):
    first, second = days
    old, new = Prepared(first.data.folder).items, Prepared(second.data.folder).items
    assert new > old
    newest = store_of(first).latest()
    assert newest is not None

    def before(one: Ranks) -> Any:
        return read_checkpoint(one, first, newest, old)

    (kept,) = run_ranks(before, 1)
    for rows, offsets, dims, accumulators in run_ranks(continue_here, ranks, second):
        assert len(rows) == new and dims == 48
        chunks, width = np.diff(offsets), first.tables.item.chunk_width
        values, columns = (one for name, one in kept.items() if name.endswith("weight"))
        values, columns = (values, columns) if columns.max() == dims else (columns, values)
        held = sorted(zip(columns[columns < dims].tolist(), values[columns < dims].tolist(), strict=True))
        assert sorted(entry for row in rows[:old] for entry in row.items()) == held
        assert all(1 <= len(row) <= min(width, 6) for row in rows[old:])
        assert (chunks[old:] == 1).all()
        for row, count in zip(rows[:old], chunks[:old], strict=True):
            room = min(len(row) + 1, first.sparsity.budget.ceiling)  # a row that was full has room to grow
            assert count * width >= len(row) and count <= -(-max(room, int(np.ceil(len(row) * 1.4))) // width)
        # chunks that did not meet others have the numbers of before, those of new rows begin anew
        (state,) = (one.flatten() for name, one in kept.items() if ":" in name)
        assert np.isin(state, accumulators).mean() > 0.5 and state.max() > 0.11
        assert accumulators[int(offsets[old]) :] == pytest.approx([0.1] * int(chunks[old:].sum()))


def test_the_number_of_ranks_does_not_change_what_is_folded_in(days):
    found = [run_ranks(continue_here, ranks, days[1])[0] for ranks in (1, 2)]
    assert found[0][1] == found[1][1]
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert one.keys() == two.keys() and list(one.values()) == pytest.approx([two[key] for key in one], abs=1e-6)


def test_a_run_goes_on_is_evaluated_and_exported_and_resumes(days, tmp_path):
    first, second = days
    summary = train(second)
    assert summary["resumed_from"] is None and summary["steps"] > 0
    journal = journal_of(second)
    assert journal[0]["start"] == "continued" and len({entry["live"] for entry in journal}) == 1
    assert evaluate(second)["users"] > 0
    folder = export(second)["folder"]
    made, prepared = load_export(folder), Prepared(second.data.folder)
    assert made.item_ids == prepared.item_ids() and made.matrix.shape == (prepared.items, 48)
    shutil.move(first.run.folder, tmp_path / "away")  # it is not needed any more
    try:
        assert train(second)["resumed_from"] == summary["steps"]
    finally:
        shutil.move(tmp_path / "away", first.run.folder)


def test_new_rows_have_spare_columns_until_there_are_none(tmp_path):
    changes = {"tables__item__dims": "items", "tables__item__spare_columns": 10, "model__loss": "softmax"}
    first, second = two_days(tmp_path, **changes)
    old = Prepared(first.data.folder).items
    (rows, _, dims, _), *_ = run_ranks(continue_here, 1, second)
    assert dims == old + 10 and len(rows) > dims
    for row in range(old, dims):
        assert row in rows[row] and all(row not in rows[other] for other in range(old, dims) if other != row)
    assert max(column for row in rows for column in row) < dims
    assert train(second)["steps"] > 0
    # the trained temperature goes on, too
    begun = config_of(tmp_path, "run-2", "data-1", "run-0", **changes, train__epochs=0)
    train(begun)
    before, after = (store_of(one).load_shared(store_of(one).latest()) for one in (first, begun))
    for name in ("dense_parameters", "dense_squares"):
        assert before[name].tobytes() == after[name].tobytes()
    assert before["dense_parameters"] != np.float32(np.log(second.model.temperature))


@pytest.mark.parametrize("norm", ["unit", pytest.param("free", marks=pytest.mark.slow)])
def test_a_row_that_another_item_has_now_forgets_the_one_of_before(tmp_path, norm):
    changes = {"data__evict_after_days": 10.0, "model__row_norm": norm}
    first, second = (config_of(tmp_path, f"run-{day}", f"data-{day}", **changes) for day in range(2))
    rng, day = np.random.default_rng(0), 86_400
    for number, (low, high) in enumerate([(0, 60), (20, 90)]):  # the first 20 items are not taken any more
        path = tmp_path / "log" / f"day={number}" / "part.parquet"
        path.parent.mkdir(parents=True)
        users, items = rng.integers(0, 150, 2000), rng.integers(low, high, 2000)
        times = np.full(2000, 20 * number * day) + rng.integers(0, day, 2000)
        pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
        if number == 0:
            prepare(first)
            train(first)
    before = Prepared(first.data.folder).item_ids().to_pylist()
    result = prepare(second, extend=first.data.folder)
    prepared = Prepared(second.data.folder)
    after, generations = prepared.item_ids().to_pylist(), prepared.generations()
    assert result["new_items"] == 30 and result["evicted_rows"] == 0 and len(after) == 70
    stayed = [row for row in range(60) if before[row] >= 20]
    assert [after[row] for row in stayed] == [before[row] for row in stayed]
    assert (generations.since[:60] == 0).tolist() == [row in stayed for row in range(60)]

    second = config_of(tmp_path, "run-1", "data-1", "run-0", **changes)
    newest = store_of(first).latest()
    assert newest is not None
    (kept,) = run_ranks(lambda ranks: read_checkpoint(ranks, first, newest, 60), 1)
    chunks = np.diff(np.concatenate([[0], np.cumsum(store_of(first).load_shared(newest)["chunks_of_rows"])]))
    owner = np.repeat(np.arange(60), chunks)
    for ranks in (1, 2) if norm == "unit" else (1,):
        (rows, offsets, dims, accumulators), *_ = run_ranks(continue_here, ranks, second)
        values, columns = (one for name, one in kept.items() if "gains" not in name and name.endswith("weight"))
        values, columns = (values, columns) if columns.max() == dims else (columns, values)
        for row in range(60):
            live = columns[owner == row] < dims
            old = dict(zip(columns[owner == row][live].tolist(), values[owner == row][live].tolist(), strict=True))
            assert (rows[row] == old) == (row in stayed)
        reused = [number for row in range(60) if row not in stayed for number in range(offsets[row], offsets[row + 1])]
        assert [accumulators[chunk] for chunk in reused] == pytest.approx([0.1] * len(reused))
    assert train(second)["steps"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables__item__chunk_width": 16}, r"tables\.item\.chunk_width = 16 here, 8 there"),
        ({"model__row_norm": "free"}, r"model\.row_norm = 'free' here"),
        ({"run__continues": "nowhere"}, "There is no run in nowhere"),
        ({"data__folder": "others"}, "do not extend"),
    ],
)
def test_what_cannot_be_continued_is_refused_before_workers_start(days, tmp_path, changes, message):
    first, _ = days
    place = Path(first.run.folder).parent
    if "data__folder" in changes:
        changes = {"data__folder": str(tmp_path / "others"), "data__users_per_row_group": 64}
    config = config_of(place, "refused", "data-1", "run-0", **changes)
    config = parse_config(
        {**config.model_dump(mode="json"), "run": {**config.run.model_dump(), "folder": str(tmp_path / "run")}}, ""
    )
    with pytest.raises(RunFolderError, match=message):
        train(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity__schedule__kind": "one_shot", "sparsity__schedule__live_start": 10},
        {"sparsity__structure": {"kind": "block", "block": 4}},
        {"tables__item__spare_columns": 3, "run__continues": None},
        {"run__continues": "run", "run__folder": "run"},
    ],
)
def test_settings_that_contradict_each_other(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"run\.continues|spare_columns"):
        config_of(tmp_path, "run", "data", "other", **changes)

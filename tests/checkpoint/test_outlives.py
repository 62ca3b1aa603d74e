"""A checkpoint outlives its job: more rows, fewer entries. Ranks and sharding are in test_store.py."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.checkpoint.enlarge import NewRows, append_rows, replace_rows
from hse_dist.checkpoint.repack import cut_globally
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.cli.main import main
from hse_dist.config import Config, ModelSettings, TrainSettings
from hse_dist.data.batch import Batch
from hse_dist.data.prepare import prepare
from hse_dist.errors import ConfigError
from hse_dist.evaluate.driver import evaluate
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.tables.sharded import PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import small_config
from hse_dist.testing.tables import Content, read_all
from hse_dist.train.driver import train

ROWS, DIMS, MORE = 30, 50, 7
CONTENT = Content.random(0, ROWS, DIMS, 8, longest=25, long_rows={3: 50})
SETTINGS = TrainSettings(learning_rate=0.1, warm_accumulator=0.25)
NEW = NewRows(
    np.array([0, 0, 3, 3, 12, 12, 12, 13]),
    np.array([4, 55, 56, *range(40, 49), 0]),
    np.arange(1, 14, dtype=np.float32),
    np.linspace(-2, 2, MORE).astype(np.float32),
)


def rows_of(table: PackedTable) -> list[tuple[dict[int, float], float]]:
    """Every row's entries, and its gain; a collective call."""
    found = read_all(table)
    bounds, gains = found.offsets.tolist(), found.gains
    assert gains is not None
    return [
        (dict(zip(found.columns[a:b].tolist(), found.values[a:b].tolist(), strict=True)), float(gains[row]))
        for row, (a, b) in enumerate(pairwise(bounds))
    ]


def train_a_step(table: PackedTable, ranks: Ranks) -> float:
    batch = Batch(
        torch.arange(table.rows), torch.tensor([0, 3, 5]), torch.tensor([ranks.rank, 7, 9, 20, table.rows - 1])
    )
    loss, _ = Autoencoder(ModelSettings()).loss(table.lookup(batch.candidates), batch, None)
    loss.backward()
    return float(loss.detach())


def enlarge(ranks: Ranks, folder: str, sharding: str, dims: int) -> Any:
    table = CONTENT.table(ranks, sharding, SETTINGS, with_gains=True)
    train_a_step(table, ranks)
    before = rows_of(table)
    table = append_rows(table, NEW, dims)
    after = rows_of(table)
    store = CheckpointStore(folder, 2)
    store.save(table.state_dict(), {"own": np.ones(1)}, {"step": 1, "metric": None}, ranks)
    other = append_rows(CONTENT.table(ranks, sharding, SETTINGS, with_gains=True), NewRows.empty(MORE), dims)
    empty = rows_of(other)
    if [len(entries) for entries, _ in empty[:ROWS]] != CONTENT.lengths.tolist():
        raise AssertionError("rows of before changed")
    loss = train_a_step(other, ranks)
    # of the same capacities as the table that was saved, but for the one row of nine entries
    found = store.open_latest(ranks)
    assert found is not None
    again = append_rows(CONTENT.table(ranks, sharding, SETTINGS, with_gains=True), NEW, dims)
    store.load(found, again.state_dict())
    return before, after, empty[ROWS:], loss, rows_of(again), table.dims


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "sharding"), [(1, "row_wise"), (2, "row_wise"), (2, "table_wise")])
def test_rows_are_appended_and_the_others_stay(tmp_path, ranks, sharding):
    for before, after, empty, loss, loaded, dims in run_ranks(enlarge, ranks, str(tmp_path), sharding, DIMS + MORE):
        assert after[:ROWS] == before and loaded == after and dims == DIMS + MORE
        for row, (entries, gain) in enumerate(after[ROWS:]):
            here = slice(NEW.offsets[row], NEW.offsets[row + 1])
            assert entries == dict(zip(NEW.columns[here].tolist(), NEW.values[here].tolist(), strict=True))
            assert abs(gain) == pytest.approx(max(abs(NEW.gains[row]), 1e-3)) and (gain < 0) == (NEW.gains[row] < 0)
        assert empty == [({}, 1.0)] * MORE and np.isfinite(loss)


def test_a_replaced_row_of_too_few_slots_keeps_its_own_column_and_the_strongest_entries():
    def work(ranks: Ranks) -> Any:
        table, row = CONTENT.table(ranks, "row_wise", SETTINGS, with_gains=True), 7
        slots = int(table.layout.capacities(row, row + 1)[0])
        columns = np.arange(slots + 4)
        values = np.linspace(1.0, 2.0, len(columns), dtype=np.float32) * (-1) ** columns
        values[row] = 0.5  # the weakest one
        new = NewRows(np.array([0, len(columns)]), columns, values.astype(np.float32), np.ones(1, np.float32))
        replace_rows(table, np.array([row]), new)
        return slots, rows_of(table)[row][0], dict(zip(columns.tolist(), values.tolist(), strict=True))

    ((slots, found, given),) = run_ranks(work, 1)
    kept = sorted(set(given) - {7})[-(slots - 1) :]
    assert len(found) == slots > 3
    assert found == pytest.approx({column: given[column] for column in (7, *kept)})


def test_columns_beyond_the_new_table_are_refused():
    def work(ranks: Ranks) -> None:
        table = CONTENT.table(ranks, "row_wise", SETTINGS, with_gains=True)
        for dims in (DIMS - 1, DIMS):
            with pytest.raises(ConfigError, match="50 columns"):
                append_rows(table, NEW, dims)

    run_ranks(work, 1)


def cut(ranks: Ranks, live: int) -> tuple[list[Any], int]:
    table = cut_globally(CONTENT.table(ranks, "row_wise", SETTINGS, with_gains=True), live, unit=False, slack=0.0)
    return rows_of(table), table.layout.chunks


@pytest.mark.distributed
@pytest.mark.parametrize("live", [ROWS, 4 * ROWS, int(CONTENT.lengths.sum()) - 1])
def test_the_strongest_of_all_rows_stay(live):
    scores = sorted(
        (-abs(value) * np.sqrt(abs(max(abs(gain), 1e-3))), row, column)
        for row, (columns, values, gain) in enumerate(zip(CONTENT.columns, CONTENT.values, CONTENT.gains, strict=True))
        for column, value in zip(columns.tolist(), values.tolist(), strict=True)
    )
    first = {}
    for _, row, column in scores:
        first.setdefault(row, column)
    kept = set(first.items())
    kept |= set([(row, column) for _, row, column in scores if (row, column) not in kept][: live - ROWS])
    for ranks in (1, 2):
        for rows, chunks in run_ranks(cut, ranks, live):
            assert {(row, column) for row, (entries, _) in enumerate(rows) for column in entries} == kept
            assert all(
                value == dict(zip(CONTENT.columns[row].tolist(), CONTENT.values[row].tolist(), strict=True))[column]
                for row, (entries, _) in enumerate(rows)
                for column, value in entries.items()
            )
            assert chunks == sum(-(-max(len(entries), 1) // 8) for entries, _ in rows)


def shared_arrays(config: Config, step: int) -> dict[str, np.ndarray]:
    """What all ranks share in the checkpoint of a step."""
    store = CheckpointStore.of(config)
    (found,) = [checkpoint for checkpoint in store.all() if checkpoint.step == step]
    return store.load_shared(found)


@pytest.mark.parametrize(
    ("structure", "live", "loss"),
    [({}, 3, "softmax"), ({"kind": "block", "block": 4}, 4, "cosine")],  # softmax has a temperature, a dense parameter
    ids=["single", "block"],
)
def test_repack_makes_a_run_that_evaluates_and_trains_on(tmp_path, capfd, structure, live, loss):
    def config_of(name: str, live: int) -> Config:
        item = {"dims": 48, "live": live, "chunk_width": 8}
        budget = {"ceiling": 24}
        more = {"train__epochs": 2, "train__checkpoint_every": 7, "sparsity__budget": budget, "model__loss": loss}
        more |= {"sparsity__structure": structure} if structure else {}
        return small_config(tmp_path / name, tmp_path / "data", tables__item=item, **more)

    config, run = config_of("run", 12), tmp_path / "run"
    prepare(config)
    train(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["repack", str(run), "--live", str(live), "--to", str(tmp_path / "small")]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert answer["live_entries"] == live * answer["rows"] < answer["live_before"]
    assert answer["chunks_after"] < answer["chunks_before"] and Path(answer["checkpoint"]).exists()
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    small = config_of("small", live)
    shared, kept = (shared_arrays(one, answer["step"]) for one in (config, small))
    for name in ("dense_parameters", "dense_squares"):
        assert (name in shared) == (loss == "softmax") and np.array_equal(shared.get(name), kept.get(name))
    found = evaluate(small, "valid")
    assert found["live_entries"] == answer["live_entries"] and found["ndcg@100"] > 0.05
    summary = train(small)
    assert summary["live_entries"] == answer["live_entries"] and summary["resumed_from"] == answer["step"]
    for words in (["--live", str(live), "--to", str(tmp_path / "small")], ["--live", "30"]):
        assert main(["repack", str(run), *words]) == 2
    assert main(["repack", str(tmp_path / "nothing"), "--live", "3"]) == 2

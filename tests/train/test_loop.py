"""Whole runs, small and without Ray: what training does, and that an interruption leaves no trace."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import NumericError, ProtocolError, RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.start import StartFolder
from hse_dist.tables.layout import RowLayout
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import journal_of, metrics_of, read_checkpoint, small_config, store_of
from hse_dist.testing.training import begin, stopped, train_on
from hse_dist.train.driver import train
from hse_dist.train.step import Trainer
from hse_dist.train.worker import train_worker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared histories of some 400 users over 150 items."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


def items_of(config: Config) -> int:
    return Prepared(config.data.folder).items


def final(config: Config, ranks: int = 1, *, best: bool = False) -> list[dict[str, np.ndarray]]:
    """Weights and optimizer state of the newest (best) checkpoint, by rank."""
    store = store_of(config)
    checkpoint = store.best() if best else store.latest()
    return run_ranks(read_checkpoint, ranks, config, checkpoint, items_of(config))


def part(state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The one tensor of a collection's weights."""
    (found,) = (value for key, value in state.items() if key.startswith(f"{name}.") and ":" not in key)
    return found


CASES: dict[str, dict[str, Any]] = {
    "unit, random, gradient": {},
    "unit, random, random": {"sparsity__grow__kind": "random"},
    "unit, hse, by row": {
        "sparsity__start": "hse",
        "tables__item__dims": "items",
        "sparsity__budget__kind": "row",
    },
    "free, local inverse": {
        "sparsity__start": "local_inverse",
        "model__row_norm": "free",
        "tables__item__dims": "items",
        "train__learning_rate": 0.002,
        "train__optimizer": "adagrad",
        "model__input_dropout": 0.1,
    },
    "unit, random, strongest of users": {"model__user_entries": 12},
    "unit, random, compacted": {"model__compact_above": 1, "tables__item__sharding": "table_wise"},
}


@pytest.mark.parametrize("case", CASES)
def test_training_moves_values_and_columns_and_keeps_the_live_count(tmp_path, data, case):
    config = small_config(tmp_path / "run", data, **CASES[case])
    summary = train(config)
    items, steps, start = items_of(config), summary["steps"], StartFolder(RunFolder(config).start)
    live = start.live_entries
    assert 5.8 * items <= live <= 6 * items  # a factor's first rows are short, and the budget of a row stays with it
    assert steps >= 30 and summary["resumed_from"] is None and summary["live_entries"] == live
    journal = journal_of(config)
    assert [entry["version"] for entry in journal] == list(range(len(journal)))
    assert [entry["step"] for entry in journal] == [0, *range(6, int(0.75 * steps) + 1, 6)]
    assert {entry["live"] for entry in journal} == {live}
    assert all(entry["dropped"] == entry["grown"] + entry["restored"] for entry in journal[1:])
    assert sum(entry["grown"] for entry in journal[1:]) > 50
    lines = metrics_of(config)
    rewires = [line for line in lines if line["kind"] == "rewire"]
    assert [line["step"] for line in rewires] == [entry["step"] for entry in journal[1:]]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    if "unit" in case:  # a closed form is hardly improved in so few steps
        assert losses[-1] < losses[0] - 0.005
    # against the start, entry by entry
    (state,) = final(config)
    columns, values = part(state, "columns"), part(state, "values")
    live_slots = columns < start.dims
    assert live_slots.sum() == live and (values[~live_slots] == 0).all()
    capacities = RowLayout.from_lengths(start.live(), 8).capacities(0, items)
    rows = np.repeat(np.arange(items), capacities)[live_slots.ravel()]
    offsets, start_columns, start_values = start.entries()
    now = rows * start.dims + columns[live_slots].astype(np.int64)
    then = np.repeat(np.arange(items), np.diff(offsets)) * start.dims + start_columns
    assert len(np.unique(now)) == live, "a column occurs twice in a row"
    assert np.isin(then, now).mean() < 0.9, "columns stayed where they were"
    assert np.isin(values[live_slots], start_values).mean() < 0.2, "values are those of the start"


def test_the_result_never_ends_below_its_start_on_validation(tmp_path, data):
    # a rate that ruins the table: the start is the best checkpoint
    config = small_config(
        tmp_path / "bad",
        data,
        **CASES["free, local inverse"] | {"train__learning_rate": 20.0, "train__gain_learning_rate": 1.0},
    )
    summary = train(config)
    assert summary["best_step"] == 0 and summary["best_valid"] == summary["start_valid"]
    validations = [line["ndcg@100"] for line in metrics_of(config) if line["kind"] == "validate"]
    assert max(validations[1:]) < validations[0], "this rate was meant to do harm"
    good = small_config(tmp_path / "good", data, train__better_by=0.0)
    summary = train(good)
    assert summary["best_step"] > 0 and summary["best_valid"] > summary["start_valid"] + 0.05
    validations = {line["step"]: line["ndcg@100"] for line in metrics_of(good) if line["kind"] == "validate"}
    assert summary["best_valid"] == max(validations.values()) == validations[summary["best_step"]]
    assert summary["start_valid"] == validations[0]
    assert store_of(good).best().step == summary["best_step"]


INTERRUPTIONS = {
    # stopped in this step, goes on from that one; windows of 3 steps end with rewires at 6, 12, 18, …
    "in a window": (18, 16, {"train__checkpoint_every": 4}),
    "after a rewire": (13, 12, {"train__checkpoint_every": 4, "train__log_every": 5}),
    "before the first checkpoint": (3, 0, {"train__checkpoint_every": 7}),
    "with free rows": (23, 20, {"train__checkpoint_every": 5, **CASES["free, local inverse"]}),
    "with a memory": (
        23,
        22,
        {
            "train__checkpoint_every": 11,
            "sparsity__grow__kind": "momentum",
            "sparsity__drop__kind": "movement",
            "sparsity__drop__popularity_power": 0.5,
        },
    ),
    "with random growth": (23, 20, {"train__checkpoint_every": 5, "sparsity__grow__kind": "random"}),
}


def check_equal_runs(one: Config, other: Config, ranks: int = 1) -> None:
    assert store_of(one).latest().facts == store_of(other).latest().facts
    assert store_of(one).best().step == store_of(other).best().step
    states = list(zip(final(one, ranks), final(other, ranks), strict=True))
    assert any(":" in name for a, _ in states for name in a), "there is no optimizer state"
    for a, b in states:
        assert a.keys() == b.keys()
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert journal_of(one) == journal_of(other)
    assert metrics_of(one) == metrics_of(other)


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, data, case):
    after, since, changes = INTERRUPTIONS[case]
    straight = small_config(tmp_path / "straight", data, **changes)
    broken = small_config(tmp_path / "broken", data, **changes)
    whole = train(straight)
    stopped(broken, after)
    summary = train(broken)
    assert summary["resumed_from"] == since
    same = ("steps", "best_step", "best_valid", "start_valid", "live_entries")
    assert [summary[name] for name in same] == [whole[name] for name in same]
    check_equal_runs(straight, broken)


def test_interrupted_again_and_again(tmp_path, data):
    changes = {"train__checkpoint_every": 3, "train__epochs": 2}
    straight, broken = (small_config(tmp_path / name, data, **changes) for name in ("straight", "broken"))
    train(straight)
    for after in (1, 5, 11, 17):
        stopped(broken, after)
    train(broken)
    check_equal_runs(straight, broken)


def train_step_by_step(ranks: Ranks, config: Config, state: dict[str, Any]) -> dict[str, Any]:
    """Train without a look at the next batch: its ids travel when its step begins."""
    step = Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda self, batch, number, following: step(self, batch, number))
        return train_worker(ranks, {"config": config, "server": None, "server_state": state})


@pytest.mark.distributed
def test_ids_that_travel_ahead_change_nothing(tmp_path, data):
    ahead, late = (small_config(tmp_path / name, data) for name in ("a", "b"))
    run_ranks(train_on, 2, ahead, begin(ahead), None)
    run_ranks(train_step_by_step, 2, late, begin(late))
    check_equal_runs(ahead, late, ranks=2)


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", [pytest.param("table_wise", marks=pytest.mark.slow), "row_wise"])
def test_two_ranks_resume_bit_equal_and_four_take_over(tmp_path, data, sharding):
    wire = {"gradient_slots": 2, "gradients": "bfloat16"} if sharding == "row_wise" else {}
    changes = {"train__checkpoint_every": 4, "tables__item__sharding": sharding, "train__epochs": 8}
    changes |= {f"tables__item__wire__{name}": value for name, value in wire.items()}
    straight, broken, other = (small_config(tmp_path / name, data, **changes) for name in ("a", "b", "c"))
    state = begin(straight), begin(broken)
    (whole, _) = run_ranks(train_on, 2, straight, state[0], None)
    # from step 8; the second time from 16, in the window of the rewire after 18
    assert run_ranks(train_on, 2, broken, state[1], 11) == ["interrupted"] * 2
    shutil.copytree(RunFolder(broken).path, RunFolder(other).path)
    assert run_ranks(train_on, 2, broken, state[1], 17) == ["interrupted"] * 2
    (summary, _) = run_ranks(train_on, 2, broken, state[1], None)
    assert summary["resumed_from"] == 16 and summary["steps"] == whole["steps"] >= 20
    check_equal_runs(straight, broken, ranks=2)
    lines = [line["wire_bytes"] for line in metrics_of(broken) if line["kind"] == "train"]
    for kind in ("ids", "columns", "values", "gradients", "rewire"):
        sent = [line[kind] for line in lines]
        assert sent == sorted(sent) and sent[-1] > 0
    assert summary["wire_bytes"] == whole["wire_bytes"]
    # four ranks give other sums, but the run goes on where it was and keeps its promises
    (taken, *_) = run_ranks(train_on, 4, other, state[1], None)
    assert taken["resumed_from"] == 8 and taken["live_entries"] == whole["live_entries"]
    journal = journal_of(other)
    assert journal[:2] == journal_of(straight)[:2] and len(journal) > 2
    assert {entry["live"] for entry in journal} == {whole["live_entries"]}


def test_a_run_folder_of_other_settings_is_refused_by_name(tmp_path, data):
    train(small_config(tmp_path / "run", data, train__epochs=0))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(RunFolderError) as caught:
        train(small_config(tmp_path / "run", data, train__epochs=0, train__learning_rate=0.5, run__seed=3))
    assert "train.learning_rate = 0.5 here, 0.3 there" in str(caught.value)
    assert "run.seed = 3 here, 0 there" in str(caught.value)
    assert "train.batch_size" not in str(caught.value)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    # what does not change the result may differ
    train(small_config(tmp_path / "run", data, train__epochs=0, train__log_every=9, evaluate__users=7))


def test_resume_must_and_never(tmp_path, data):
    with pytest.raises(RunFolderError, match=r"has no checkpoint.*run.resume = 'must'"):
        train(small_config(tmp_path / "run", data, train__epochs=0, run__resume="must"))
    train(small_config(tmp_path / "run", data, train__epochs=0, run__resume="never"))
    with pytest.raises(RunFolderError, match=r"already has a checkpoint of step 0.*run.resume = 'never'"):
        train(small_config(tmp_path / "run", data, train__epochs=0, run__resume="never"))
    assert train(small_config(tmp_path / "run", data, train__epochs=0, run__resume="must"))["resumed_from"] == 0


def test_a_finished_run_stays_as_it_is(tmp_path, data):
    config = small_config(tmp_path / "run", data, train__epochs=1)
    first = train(config)
    (before,), lines = final(config), metrics_of(config)
    again = train(config)
    assert again["resumed_from"] == again["steps"] == first["steps"] and again["best_valid"] == first["best_valid"]
    assert again["start_valid"] == first["start_valid"]
    (after,) = final(config)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before) and metrics_of(config) == lines


def test_without_epochs_the_start_is_the_result(tmp_path, data):
    config = small_config(tmp_path / "run", data, train__epochs=0)
    summary = train(config)
    assert summary["steps"] == summary["best_step"] == 0 and summary["best_valid"] == summary["start_valid"] > 0
    (state,) = final(config)
    columns, values = part(state, "columns"), part(state, "values")
    _, start_columns, start_values = StartFolder(RunFolder(config).start).entries()
    assert np.array_equal(columns[columns < 48], start_columns) and np.array_equal(values[columns < 48], start_values)


def test_patience_ends_a_run_that_gets_worse(tmp_path, data):
    changes = CASES["free, local inverse"] | {"train__learning_rate": 20.0, "train__gain_learning_rate": 1.0}
    config = small_config(tmp_path / "run", data, **changes, train__epochs=8, train__patience=2)
    train(config)
    validations = [line["ndcg@100"] for line in metrics_of(config) if line["kind"] == "validate"]
    best = int(np.argmax(validations))
    assert len(validations) == best + 3 < 9


def test_a_dense_table_trains_without_start_and_rewires(tmp_path, data):
    config = small_config(tmp_path / "run", data, tables__item__kind="dense", tables__item__dims=16)
    summary = train(config)
    assert summary["best_valid"] > summary["start_valid"] + 0.05
    assert summary["live_entries"] == 16 * items_of(config)
    assert not RunFolder(config).start.exists() and {line["kind"] for line in metrics_of(config)} == {
        "train",
        "validate",
    }


def test_a_log_without_validation_users_trains_to_the_end(tmp_path):
    config = small_config(tmp_path / "run", tmp_path / "data", data__split={"valid": 0.0}, train__epochs=2)
    summary = train(config)
    assert summary["steps"] > 10 and summary["best_step"] == summary["steps"]
    assert summary["best_valid"] is None and summary["start_valid"] is None
    assert {line["kind"] for line in metrics_of(config)} == {"train", "rewire"}


def test_divergence_is_named_and_leaves_the_last_checkpoint(tmp_path, data, monkeypatch):
    config = small_config(tmp_path / "run", data, train__checkpoint_every=4)
    lookup = Trainer.step

    def spoil(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        if number == 6:
            self.table.local_values()[:, 0] = np.nan
        return lookup(self, batch, number, *following)

    monkeypatch.setattr(Trainer, "step", spoil)
    with pytest.raises(
        NumericError,
        match=r"In step 6 the loss of rank 0 is nan by the values of row 0, 1, 2.*train.learning_rate = 0.3",
    ):
        train(config)
    assert store_of(config).latest().step == 4


def test_a_crash_before_the_first_checkpoint_leaves_no_double_lines(tmp_path, data):
    config = small_config(tmp_path / "run", data, train__epochs=0)
    RunFolder(config).claim()
    RunFolder(config).metrics.write_text('{"kind": "validate", "ndcg@100": 0.0, "step": 0}\n{"kind": "tr')
    train(config)
    (line,) = metrics_of(config)
    assert line["step"] == 0 and line["ndcg@100"] > 0


def test_workers_whose_run_another_job_has_taken_over_write_no_checkpoint(tmp_path, data, monkeypatch):
    config, step = small_config(tmp_path / "run", data, train__checkpoint_every=4), Trainer.step

    def overtaken(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        if number == 7:
            until = time.monotonic() + 30
            while store_of(config).latest().step < 4 and time.monotonic() < until:  # a thread writes it
                time.sleep(0.01)
            RunFolder(config).take_over("another job")
        return step(self, batch, number, *following)

    monkeypatch.setattr(Trainer, "step", overtaken)
    with pytest.raises(ProtocolError, match="Another job has taken over the run"):
        train(config)
    assert store_of(config).latest().step == 4


def test_a_kill_between_a_checkpoint_and_its_journal_loses_no_line_of_it(tmp_path, data):
    config = small_config(tmp_path / "run", data, train__epochs=1)
    train(config)
    journal, path = journal_of(config), RunFolder(config).journal
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    train(config)
    assert journal_of(config) == journal and len(journal) > 1

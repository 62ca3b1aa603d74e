"""Whole runs in which the number of live entries falls: exact counts, fewer chunks, and no trace of an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.evaluate.driver import evaluate
from hse_dist.export.writer import export
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.budget import row_numbers, rows_compete
from hse_dist.sparsity.schedule import LiveCounts, live_after
from hse_dist.sparsity.start import StartFolder
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import journal_of, metrics_of, read_checkpoint, small_config, store_of
from hse_dist.testing.training import begin, stopped, train_on
from hse_dist.train.driver import train
from hse_dist.train.step import Trainer

LIVE, START = 6, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


def falling(folder: Path, data: Path, kind: str, **changes: Any) -> Config:
    """A run of some 32 steps that begins with five times the entries that it ends with, by step 19."""
    schedule = {"interval": 6, "kind": kind, "live_start": START, "fall_end": 0.6, "repack_ratio": 1.1}
    given = {"sparsity__budget": {"ceiling": 40}, "train__checkpoint_every": 4}
    given |= {f"sparsity__schedule__{name}": value for name, value in schedule.items()}
    return small_config(folder, data, **given | changes)


def final(config: Config, ranks: int = 1) -> list[dict[str, np.ndarray]]:
    """Weights and optimizer state of the newest checkpoint, by rank."""
    items = Prepared(config.data.folder).items
    return run_ranks(read_checkpoint, ranks, config, store_of(config).latest(), items)


def part(state: dict[str, np.ndarray], name: str) -> np.ndarray:
    (found,) = (value for key, value in state.items() if key.startswith(f"{name}.") and ":" not in key)
    return found


def check_equal(one: Config, other: Config, ranks: int = 1) -> None:
    assert store_of(one).latest().facts == store_of(other).latest().facts
    for a, b in zip(final(one, ranks), final(other, ranks), strict=True):
        assert a.keys() == b.keys() and any(":" in name for name in a)
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert journal_of(one) == journal_of(other) and metrics_of(one) == metrics_of(other)


def check_counts(config: Config, steps: int) -> list[dict[str, Any]]:
    """Every count is the schedule's, exactly; the repacks."""
    journal = journal_of(config)
    counts = LiveCounts(journal[0]["live"], journal[0]["goal"])
    items = Prepared(config.data.folder).items
    assert counts.goal == LIVE * items < counts.start <= START * items
    assert [entry["version"] for entry in journal] == list(range(len(journal)))
    for entry in journal:
        assert entry["live"] == live_after(config.sparsity.schedule, counts, entry["step"], steps), entry
    assert journal[-1]["live"] == counts.goal
    rewires, grown = [entry for entry in journal if "note" in entry], 0
    for number, entry in enumerate(rewires, start=1):
        grown += entry["grown"]
        # in rewires: versions of repacks do not age an entry
        assert entry["mean_age"] == number if not grown else 0 <= entry["mean_age"] <= number
        assert entry["note"] is None or not entry["grown"]
    return [entry for entry in journal if entry.get("kind") == "repack"]


def check_rows(config: Config, columns: np.ndarray) -> None:
    """Each row ends with its own share of what it began with."""
    start, store = StartFolder(RunFolder(config).start), store_of(config)
    expected = start.live(0, start.rows)
    for entry in journal_of(config)[1:]:
        expected = row_numbers(np.bincount(expected), entry["live"], config.sparsity.budget.floor).of(expected)
    chunks = store.load_shared(store.latest())["chunks_of_rows"]
    firsts = np.cumsum(chunks) - chunks
    assert np.array_equal(np.add.reduceat((columns < start.dims).sum(1), firsts), expected)
    assert len(np.unique(expected)) > 1


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gradual": ("gradual", {}),
    "gradual, free, by row, adagrad": (
        "gradual",
        {
            "sparsity__start": "local_inverse",
            "sparsity__budget": {"kind": "row", "ceiling": 40},
            "sparsity__schedule__fall": "linear",
            "model__row_norm": "free",
            "tables__item__dims": "items",
            "train__learning_rate": 0.002,
            "train__optimizer": "adagrad",
        },
    ),
    "gradual, by popularity, sensitivity, momentum": (
        "gradual",
        {
            "sparsity__start": "local_inverse",
            "sparsity__budget": {"kind": "popularity", "power": 0.4, "ceiling": 40},
            "sparsity__drop": {"kind": "sensitivity", "popularity_power": 0.3},
            "sparsity__grow__kind": "momentum",
            "model__row_norm": "free",
            "train__learning_rate": 0.002,
            "tables__item__dims": "items",
        },
    ),
    "one shot, then static, nothing grows": (
        "one_shot",
        {"sparsity__schedule__after": "static", "sparsity__grow__kind": "none", "sparsity__drop__kind": "fisher"},
    ),
    "lottery": ("lottery", {"sparsity__schedule__rounds": 2, "sparsity__schedule__rewind": 0.1}),
}


SLOW = {"gradual, free, by row, adagrad", "gradual, by popularity, sensitivity, momentum"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_counts_are_exact_memory_falls_and_a_resumed_run_is_the_same(tmp_path, data, case):
    kind, changes = CASES[case]
    straight, broken = (falling(tmp_path / name, data, kind, **changes) for name in ("straight", "broken"))
    whole = train(straight)
    repacks = check_counts(straight, whole["steps"])
    assert repacks
    for entry in repacks:
        assert entry["chunks_after"] < entry["chunks_before"] and entry["bytes_after"] < entry["bytes_before"]
    (state,) = final(straight)
    columns = part(state, "columns")
    assert len(columns) == repacks[-1]["chunks_after"] < 0.5 * repacks[0]["chunks_before"]
    assert (columns < StartFolder(RunFolder(straight).start).dims).sum() == whole["live_entries"]
    if not rows_compete(straight.sparsity.budget):
        check_rows(straight, columns)
    # before the last fall, and after it
    for after in (14, 21):
        stopped(broken, after)
    summary = train(broken)
    assert summary["resumed_from"] == 20 and summary["best_step"] == whole["best_step"]
    check_equal(straight, broken)


def test_only_tables_within_the_budget_are_judged_and_come_out(tmp_path, data):
    config = falling(tmp_path / "run", data, "gradual")
    summary = train(config)
    best = store_of(config).best()
    assert best.step >= 0.6 * summary["steps"] and best.metric == summary["best_valid"]
    validations = [line["step"] for line in metrics_of(config) if line["kind"] == "validate"]
    assert min(validations) == 0 and summary["start_valid"] is not None
    metrics, items = evaluate(config), Prepared(config.data.folder).items
    assert metrics["live_entries"] == LIVE * items and metrics["bytes_per_item"] == 8 * LIVE
    assert metrics["step"] == best.step and metrics["slots_per_live"] < 2.2
    result = export(config)
    matrix = sp.load_npz(Path(result["folder"]) / "items.npz")
    assert matrix.nnz == LIVE * items


def test_a_lottery_goes_back_to_its_early_values(tmp_path, data):
    changes = {"sparsity__schedule__after": "static", "sparsity__schedule__rewind": 0.2, "model__row_norm": "free"}
    config = falling(tmp_path / "run", data, "lottery", **changes)
    kept: dict[str, Any] = {}
    rewind = Trainer.rewind

    def watch(self: Trainer, step: int) -> None:
        rewind(self, step)
        kept.update(owned=self.table.owned(), gains=self.table.gains(0, self.table.rows), step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "rewind", watch)
        summary = train(config)
    journal = journal_of(config)
    assert [entry.get("kind") for entry in journal[1:]] == ["remember", None, "rewind", "repack"]
    early = StartFolder(RunFolder(config).early)
    assert early.manifest["step"] == journal[1]["step"] == journal[3]["to"] == int(0.2 * summary["steps"])
    assert kept["step"] == journal[2]["step"] == int(0.6 * summary["steps"])
    offsets, columns, values = early.entries()
    matrix = sp.csr_matrix((values, columns, offsets), (early.rows, early.dims)).toarray()
    owned, live = kept["owned"], kept["owned"].live
    assert live.sum() == journal[0]["goal"] < early.live_entries == journal[0]["live"]
    assert np.array_equal(owned.values[live], matrix[owned.slot_rows()[live], owned.columns[live]])
    assert (owned.values[live] != 0).all() and np.array_equal(kept["gains"], early.gains())
    # they are not those of the start
    offsets, columns, values = StartFolder(RunFolder(config).start).entries()
    start = sp.csr_matrix((values, columns, offsets), (early.rows, early.dims)).toarray()
    assert (start[owned.slot_rows()[live], owned.columns[live]] != owned.values[live]).mean() > 0.5


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [pytest.param("gradual", marks=pytest.mark.slow), "lottery"])
def test_two_ranks_fall_repack_and_resume_bit_equal_and_one_takes_over(tmp_path, data, kind):
    wire = {"tables__item__wire__gradient_slots": 2, "sparsity__schedule__rewind": 0.1, "train__epochs": 6}
    straight, broken = (falling(tmp_path / name, data, kind, **wire) for name in ("a", "b"))
    state = begin(straight), begin(broken)
    (whole, _) = run_ranks(train_on, 2, straight, state[0], None)
    assert check_counts(straight, whole["steps"])
    # after the first repack, before the last
    assert run_ranks(train_on, 2, broken, state[1], 17) == ["interrupted"] * 2
    run_ranks(train_on, 2, broken, state[1], None)
    check_equal(straight, broken, ranks=2)
    # one rank takes over what two had packed
    other = falling(tmp_path / "c", data, kind, **wire)
    assert run_ranks(train_on, 2, other, begin(other), 14) == ["interrupted"] * 2
    (taken,) = run_ranks(train_on, 1, other, begin(other), None)
    assert taken["live_entries"] == whole["live_entries"] == journal_of(other)[-1]["live"]

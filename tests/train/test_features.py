"""Whole runs of several tables: one budget, dense parameters, resuming, and any number of ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import Config
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import NumericError
from hse_dist.evaluate.driver import evaluate
from hse_dist.files import write_json
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.schedule import live_counts
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import StartFolder, make_start, open_start
from hse_dist.sparsity.start.features import live_of_features, make_feature_start
from hse_dist.testing.features import write_log
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import SMALL, changed, journal_of, metrics_of, read_checkpoint, store_of
from hse_dist.testing.training import stopped
from hse_dist.train.driver import train
from hse_dist.train.step import Trainer
from hse_dist.train.worker import train_worker

TABLES = {name: {"live": 4} for name in ("team", "noise", "self", "shelf")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The section `data` of prepared histories of 400 users in six groups."""
    section = write_log(tmp_path_factory.mktemp("features"))
    prepare(changed({"data": copy.deepcopy(section)}))
    return section


def run_of(folder: Path, data: dict[str, Any], **changes: Any) -> Config:
    """A small run with all features."""
    raw = copy.deepcopy(SMALL)
    raw["run"], raw["data"] = {"folder": str(folder)}, copy.deepcopy(data)
    raw["tables"]["features"] = copy.deepcopy(TABLES)
    raw["tables"]["item"] |= {"slack": 1.0}
    raw["model"] |= {"kind": "two_tower", "input_dropout": 0.5}
    return changed(raw, **changes)


def states(config: Config, ranks: int = 1) -> list[dict[str, np.ndarray]]:
    rows = FeatureRows.of(Prepared(config.data.folder), config.tables.features).rows
    return run_ranks(read_checkpoint, ranks, config, store_of(config).latest(), rows)


def dense(config: Config) -> dict[str, np.ndarray]:
    shared = store_of(config).load_shared(store_of(config).latest())
    return {name: shared[name] for name in ("dense_parameters", "dense_squares")}


def check_equal(one: Config, other: Config, ranks: int = 1) -> None:
    for a, b in zip(states(one, ranks), states(other, ranks), strict=True):
        assert a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert all(dense(one)[name].tobytes() == dense(other)[name].tobytes() for name in dense(one))
    assert journal_of(one) == journal_of(other) and metrics_of(one) == metrics_of(other)


def test_the_budget_moves_from_a_useless_table_to_a_useful_one(tmp_path: Path, data: dict[str, Any]) -> None:
    tables = {"tables__features": {"team": {"live": 8}, "noise": {"live": 8}}}
    changes = {"train__epochs": 8, "train__weight_learning_rate": 0.2, "sparsity__schedule__drop_fraction": 0.3}
    config = run_of(tmp_path / "run", data, **tables, **changes)
    summary = train(config)
    lines = [line["tables"] for line in journal_of(config) if "tables" in line]
    live = {name: [line[name]["live"] for line in lines] for name in ("item", "team", "noise")}
    assert {sum(line[name]["live"] for name in live) for line in lines} == {summary["live_entries"]}
    assert live["team"][-1] > 1.5 * 6 * 8 and live["noise"][-1] < 0.75 * 6 * 8
    weights = [line["parameters"] for line in metrics_of(config) if "parameters" in line][-1]
    assert weights["team"] > 3 * abs(weights["noise"])
    alone = train(run_of(tmp_path / "alone", data, model__kind="autoencoder", tables__features={}, **changes))
    assert summary["best_valid"] > 1.1 * alone["best_valid"]


@pytest.mark.parametrize(
    "loss", ["softmax", *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("cosine", "bpr"))]
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, data: dict[str, Any], loss: str) -> None:
    changes = {"train__checkpoint_every": 4, "train__epochs": 1, "model__loss": loss}
    straight, broken = (run_of(tmp_path / name, data, **changes) for name in ("straight", "broken"))
    whole = train(straight)
    stopped(broken, 9)
    assert train(broken)["resumed_from"] == 8
    check_equal(straight, broken)
    assert evaluate(broken)["ndcg@100"] == evaluate(straight)["ndcg@100"] > 0
    assert whole["live_entries"] == store_start(straight).live_entries


@pytest.mark.parametrize("on_nan", ["skip", "stop"])
def test_dense_gradients_that_are_no_numbers_move_nothing(tmp_path: Path, data: dict[str, Any], on_nan: str) -> None:
    config = run_of(tmp_path / "run", data, train__epochs=1, train__on_nan=on_nan, model__loss="softmax")
    step, seen = Trainer.step, []

    def spoilt(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        hooks = [part.register_hook(lambda grad: grad * torch.inf) for part in self.parameters.trained if number == 5]
        before = self.table.local_values().numpy().tobytes(), self.parameters.arrays()["dense_parameters"].tobytes()
        result = step(self, batch, number, *following)
        after = self.table.local_values().numpy().tobytes(), self.parameters.arrays()["dense_parameters"].tobytes()
        seen.append((before[0] != after[0], before[1] != after[1]))
        for hook in hooks:
            hook.remove()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", spoilt)
        if on_nan == "stop":
            with pytest.raises(NumericError, match=r"In step 5 the gradient of rank 0 .* in the dense parameters"):
                train(config)
            return
        assert train(config)["skipped"] == 1
    assert seen[4] == (False, False) and set(seen[:4] + seen[6:]) == {(True, True)}


def store_start(config: Config) -> Any:
    return open_start(config, RunFolder(config).start)


def begin(config: Config) -> dict[str, Any]:
    """What the driver does before the workers; the server's state."""
    folder, prepared = RunFolder(config), Prepared(config.data.folder)
    folder.claim()
    server, features = SparsityServer(config.sparsity, 0, 1), FeatureRows.of(prepared, config.tables.features)
    start = make_start(config, prepared, folder.start, server.new_cut)
    more = make_feature_start(config, prepared, features, start, folder.start_of_features).live_entries
    counts = live_counts(config, start.live_entries + more, start.rows, live_of_features(config, features))
    server.record_start(config.sparsity.start, counts)
    return server.state_dict()


def test_a_start_of_other_rows_is_made_again(tmp_path: Path, data: dict[str, Any]) -> None:
    config = run_of(tmp_path / "run", data)
    begin(config)
    folder = RunFolder(config).start_of_features
    good, path = StartFolder(folder), folder / "manifest.json"
    for wrong in ({"rows": 10}, {"dims": 7}):
        write_json(path, {**good.manifest, **wrong})
        begin(config)
        again = StartFolder(folder)
        assert (again.rows, again.dims) == (good.rows, good.dims)
        assert all(np.array_equal(one, other) for one, other in zip(again.entries(), good.entries(), strict=True))


def work(ranks: Ranks, config: Config, state: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """The summary of a rank, and the dense parameters as it has them."""
    kept: list[Any] = []
    step = Trainer.step

    def watched(self: Trainer, *arguments: Any) -> Any:
        kept[:] = [self]
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        summary = train_worker(ranks, {"config": config, "server": None, "server_state": state})
    return summary, kept[0].parameters.arrays()["dense_parameters"]


@pytest.mark.distributed
def test_two_ranks_have_one_model(tmp_path: Path, data: dict[str, Any]) -> None:
    one, two = (run_of(tmp_path / name, data, model__loss="softmax") for name in ("one", "two"))
    ((alone, _),) = run_ranks(work, 1, one, begin(one))
    (first, mine), (second, other) = run_ranks(work, 2, two, begin(two))
    assert mine.tobytes() == other.tobytes() and not np.array_equal(
        mine, np.float32([1.0, 1.0, 1.0, 0.01, np.log(0.1)])
    )
    assert first["live_entries"] == second["live_entries"] == alone["live_entries"]
    assert first["best_valid"] == pytest.approx(alone["best_valid"], rel=0.25)

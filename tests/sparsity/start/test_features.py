"""The first rows of features against a dense sum over histories; ranges do not show."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.config import Config
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.sparsity.start import StartFolder, make_start
from hse_dist.sparsity.start import features as module
from hse_dist.sparsity.start import folder as files
from hse_dist.sparsity.start.features import make_feature_start
from hse_dist.testing.features import write_log
from hse_dist.testing.runs import SMALL, changed

LIVE = {"team": 5, "noise": 3, "self": 4, "shelf": 6}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("features")
    raw: dict[str, Any] = copy.deepcopy(SMALL) | {"data": write_log(folder, users=60), "run": {"folder": str(folder)}}
    raw["tables"]["features"] = {name: {"live": live} for name, live in LIVE.items()}
    raw["tables"]["features"]["noise"]["start"] = "random"
    raw["model"]["kind"] = "two_tower"
    made = changed(raw)
    prepare(made)
    return made


def start_of(config: Config, folder: Path) -> tuple[StartFolder, StartFolder, FeatureRows]:
    prepared = Prepared(config.data.folder)
    features = FeatureRows.of(prepared, config.tables.features)
    items = make_start(config, prepared, folder / "items")
    return items, make_feature_start(config, prepared, features, items, folder / "features"), features


def dense(start: StartFolder) -> np.ndarray:
    offsets, columns, values = start.entries()
    rows = np.zeros((start.rows, start.dims))
    rows[np.repeat(np.arange(start.rows), np.diff(offsets)), columns] = values
    return rows


def test_rows_are_the_strongest_columns_beside_which_a_value_stands(config: Config, tmp_path: Path) -> None:
    items, found, features = start_of(config, tmp_path)
    prepared, rows = Prepared(config.data.folder), dense(items)
    sums = np.zeros((features.rows, items.dims))
    for block in prepared.scan("train", features=features.users):
        offsets, context = features.context(block)
        for user in range(len(block)):
            history = block.rows[block.offsets[user] : block.offsets[user + 1]]
            values = context[offsets[user] : offsets[user + 1]]
            weights = 1 / np.sqrt(np.maximum(prepared.counts()[history], 1))
            # a value counts as one of the user's items in the length of a history, as a new item does
            sums[values] += (weights[:, None] * rows[history]).sum(0) / np.sqrt(len(history) + len(values))
    for item in range(features.items):
        _, sides = features.sides_of(np.array([item]))
        sums[sides] += rows[item] / np.sqrt(max(prepared.counts()[item], 1))
    live = np.repeat([LIVE[name] for name in features.names], np.diff(features.first))
    for row, got in enumerate(dense(found)):
        name = features.names[int(features.feature_of(np.array([row + features.items]))[0])]
        assert np.count_nonzero(got) == live[row] and np.linalg.norm(got) == pytest.approx(1.0, abs=1e-6)
        wanted = sums[row + features.items]
        if name == "noise" or not wanted.any():
            continue
        wanted[np.argsort(-np.abs(wanted))[live[row] :]] = 0
        np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_ranges_of_values_and_items_do_not_show(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = start_of(config, tmp_path / "whole")
    wanted = dense(whole)
    for one in (module, files):
        monkeypatch.setattr(one, "RANGE_ROWS", 4)
    monkeypatch.setattr(module, "RANGE_VALUES", 16)
    monkeypatch.setattr(module, "RANGE_ITEMS", 20)
    _, parts, _ = start_of(config, tmp_path / "parts")
    assert parts.live_entries == whole.live_entries
    np.testing.assert_allclose(dense(parts), wanted, atol=1e-6)

"""Checkpoints of every format since 3, as they were stored by the program that wrote them: two ranks, interrupted."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import TrainSettings
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import RunFolderError
from hse_dist.evaluate.driver import evaluate
from hse_dist.files import read_json, write_json
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.sharded import PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import journal_of, small_config
from hse_dist.train.driver import train

STORED = Path(__file__).parent / "stored"
FORMATS = (3, 4)
STEP, ROWS, WIDTH = 7, 14, 8


def copied(tmp_path: Path, number: int) -> Path:
    return Path(shutil.copytree(STORED / f"format-{number}" / f"step-{STEP:08d}", tmp_path / f"step-{STEP:08d}")).parent


def load(ranks: Ranks, folder: str, sharding: str) -> tuple[dict[tuple[str, int], np.ndarray], list[str], int]:
    store = CheckpointStore(folder, 2)
    found = store.open_latest(ranks)
    assert found is not None and found.checked
    layout = RowLayout.from_lengths(store.load_shared(found)["chunks_of_rows"].astype(np.int64) * WIDTH, WIDTH)
    table = PackedTable(layout, ROWS, ranks, TrainSettings(), sharding, with_gains=True)
    state = table.state_dict()
    store.load(found, state)
    tensors = {**state["model"]}
    for name, parts in state.get("optimizer", {}).items():
        tensors.update({f"{name}:{key}": tensor for key, tensor in parts.items()})
    shards = {
        (name, shard.metadata.shard_offsets[0]): shard.tensor.numpy().copy()
        for name, tensor in tensors.items()
        for shard in tensor.local_shards()
    }
    return shards, sorted({key for own in store.load_own(found, ranks) for key in own}), found.step


def check_loaded(answers: list[Any]) -> None:
    with np.load(STORED / "expected.npz") as expected:
        for name in expected.files:
            parts = {first: rows for shards, _, _ in answers for (key, first), rows in shards.items() if key == name}
            assert np.array_equal(np.concatenate([parts[first] for first in sorted(parts)]), expected[name]), name
    assert {step for _, _, step in answers} == {STEP} and all("totals" in names for _, names, _ in answers[:2])


@pytest.mark.parametrize("number", FORMATS)
def test_a_stored_checkpoint_loads_and_keeps_its_files(tmp_path, caplog, number):
    folder = copied(tmp_path, number)
    before = {path.name: path.read_bytes() for path in (folder / "step-00000007").iterdir()}
    for turn in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hse_dist"):
            check_loaded(run_ranks(load, 1, str(folder), "row_wise"))
        said = [one for one in caplog.records if "was of format 3" in one.getMessage()]
        assert len(said) == (number == 3 and turn == 0)
    after = {path.name: path.read_bytes() for path in (folder / "step-00000007").iterdir()}
    assert {name: after[name] for name in before} == before and after.keys() - before.keys() <= {"manifest.json"}


def test_what_a_kill_left_of_a_migration_is_no_part_of_the_checkpoint(tmp_path):
    folder = copied(tmp_path, 3)
    (folder / "step-00000007" / ".manifest.json.tmp").write_bytes(b"half")
    for _ in range(2):
        check_loaded(run_ranks(load, 1, str(folder), "row_wise"))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("number", "ranks", "sharding"), [(3, 2, "row_wise"), (3, 4, "table_wise"), (4, 2, "row_wise")]
)
def test_a_stored_checkpoint_loads_on_other_ranks(tmp_path, number, ranks, sharding):
    check_loaded(run_ranks(load, ranks, str(copied(tmp_path, number)), sharding))


@pytest.mark.parametrize("number", FORMATS)
def test_a_stored_run_goes_on(tmp_path, number):
    stored = STORED / f"format-{number}"
    there = read_json(stored / "config.json", "stored configuration")
    changes = {
        f"{section}__{name}": there[section][name]
        for section in ("data", "train", "model", "sparsity", "tables")
        for name in there[section]
        if name != "folder"
    }
    config = small_config(tmp_path / "run", tmp_path / "data", **changes)
    prepare(config)
    folder = RunFolder(config)
    folder.path.mkdir()
    shutil.copy(stored / "config.json", folder.settings)
    folder.checkpoints.mkdir()
    copied(folder.checkpoints, number)
    folder.claim_data(_as_written(folder, config))
    summary = train(config)
    assert summary["resumed_from"] == STEP < summary["steps"] and summary["live_entries"] == 56
    journal = journal_of(config)
    assert [entry["step"] for entry in journal[:2]] == [0, 6] and len(journal) > 2


def _as_written(folder: RunFolder, config: Any) -> Any:
    """The data are made anew: another version of Parquet may write other bytes."""
    prepared = Prepared(config.data.folder)
    write_json(folder.data, {"fingerprint": prepared.fingerprint})
    return prepared


def test_a_run_whose_checkpoints_lie_in_a_store(tmp_path):
    where = {"folder": f"local://{tmp_path}/elsewhere", "schemes": ["local"]}
    config = small_config(tmp_path / "run", tmp_path / "data", train__epochs=1, checkpoint=where)
    prepare(config)
    first = train(config)
    assert not RunFolder(config).checkpoints.exists() and first["best_step"] == first["steps"]
    assert train(config)["resumed_from"] == first["steps"]
    assert evaluate(config, "valid")["ndcg@100"] == pytest.approx(first["best_valid"])
    with pytest.raises(RunFolderError, match=r"run\.seed = 3 here, 0 there"):
        train(small_config(tmp_path / "run", tmp_path / "data", train__epochs=1, checkpoint=where, run__seed=3))
    with pytest.raises(RunFolderError, match=r"one of a run with other settings than that in .*other"):
        train(small_config(tmp_path / "other", tmp_path / "data", train__epochs=2, checkpoint=where))
    with pytest.raises(RunFolderError, match=r"checkpoint\.folder = None here"):
        train(small_config(tmp_path / "run", tmp_path / "data", train__epochs=1))

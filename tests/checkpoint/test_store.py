"""Checkpoints: which stay, what half of one does, and that tables come back bit-equal on another number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.checkpoint.finding import Checkpoint
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import ModelSettings, TrainSettings
from hse_dist.data.batch import Batch
from hse_dist.errors import RunFolderError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content

ROWS = 30
CONTENT = Content.random(0, ROWS, 50, 8, longest=25, long_rows={3: 50})


def save(store: CheckpointStore, ranks: Ranks, step: int, metric: float | None = None, content: float = 0.0) -> Path:
    state = {"table": torch.full((3,), content)}
    return Path(store.save(state, {"own": np.array([step])}, {"step": step, "metric": metric}, ranks))


def table_of(store: CheckpointStore, checkpoint: Checkpoint) -> list[float]:
    state = {"table": torch.zeros(3)}
    store.load(checkpoint, state)
    return state["table"].tolist()


def steps_kept(ranks: Ranks, folder: str, keep: int, saves: list[tuple[int, float | None]], asynchronous: bool) -> Any:
    store = CheckpointStore(folder, keep, asynchronous=asynchronous)
    for step, metric in saves:
        save(store, ranks, step, metric)
    best, latest = store.best(), store.latest()
    return [one.step for one in store.all()], best and best.step, latest and latest.step


@pytest.mark.parametrize(
    ("keep", "saves", "expected"),
    [
        (2, [], ([], None, None)),
        (2, [(0, 0.1), (5, None), (7, None), (9, None)], ([0, 7, 9], 0, 9)),
        (1, [(0, 0.1), (5, 0.3), (10, 0.3), (15, 0.2)], ([5, 15], 5, 15)),  # of equal ones the earliest
        (1, [(0, -0.5), (5, -0.7)], ([0, 5], 0, 5)),
        (2, [(3, None), (5, None), (7, None)], ([5, 7], 7, 7)),  # without validation the newest
        (3, [(0, 0.1), (5, 0.2)], ([0, 5], 5, 5)),
        (1, [(99_999_999, None), (100_000_000, None)], ([100_000_000], 100_000_000, 100_000_000)),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_newest_and_the_best_stay(tmp_path, keep, saves, expected, asynchronous):
    assert run_ranks(steps_kept, 1, str(tmp_path / "checkpoints"), keep, saves, asynchronous)[0] == expected


def test_half_a_checkpoint_is_none_and_gives_way(tmp_path):
    store = CheckpointStore(tmp_path, 2)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        half = tmp_path / ".step-00000008.tmp"
        half.mkdir()
        (half / "__0_0.distcp").write_bytes(b"half")
        (half / "rubbish").write_bytes(b"half")
        assert [one.step for one in store.all()] == [4]
        path = save(store, ranks, 8, content=3.0)
        assert path.name == "step-00000008" and not half.exists() and not (path / "rubbish").exists()
        assert table_of(store, store.all()[1]) == [3.0] * 3

    run_ranks(work, 1)


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path):
    store = CheckpointStore(tmp_path, 2)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4, content=1.0)
        save(store, ranks, 4, metric=0.5, content=2.0)
        (only,) = store.all()
        assert only.metric == 0.5 and table_of(store, only) == [2.0] * 3

    run_ranks(work, 1)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("step", "kept"), [(8, [8]), (4, [4])])
def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_part_of_it(tmp_path, step, kept):
    store = CheckpointStore(tmp_path, 1)

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            (path / "facts.json").unlink()
            raise Killed

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4, content=1.0)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr("shutil.rmtree", killed)
            save(store, ranks, step, content=2.0)
        assert [one.step for one in store.all()] == kept
        assert table_of(store, store.all()[0]) == [2.0] * 3
        assert len(list(tmp_path.iterdir())) == 2, "nothing was left to be removed"
        save(store, ranks, 12)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]

    run_ranks(work, 1)


def test_state_that_does_not_fit_is_refused(tmp_path):
    store = CheckpointStore(tmp_path, 2)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        for other in ({"other": torch.zeros(3)}, {"table": torch.zeros(4)}):
            with pytest.raises(RunFolderError, match="step-00000004"):
                store.load(store.all()[0], other)

    run_ranks(work, 1)


def make_table(ranks: Ranks, kind: str) -> PackedTable | DenseTable:
    settings = TrainSettings(learning_rate=0.1)
    if kind == "dense":
        table = DenseTable(ROWS, 8, ranks, settings, "row_wise")
        table.local_values().normal_(generator=torch.Generator().manual_seed(ranks.rank))
        return table
    return CONTENT.table(ranks, kind, settings, with_gains=True)


def train_and_save(ranks: Ranks, folder: str, kind: str) -> list[dict[str, Any]]:
    """One step, so that the optimizer has a state, and a checkpoint."""
    table = make_table(ranks, kind)
    batch = Batch(torch.arange(ROWS), torch.tensor([0, 3, 5]), torch.tensor([ranks.rank, 7, 9, 20, 29]))
    loss, _ = Autoencoder(ModelSettings()).loss(table.lookup(batch.candidates), batch, None)
    loss.backward()
    own = {"own": np.full(3, ranks.rank)}
    CheckpointStore(folder, 2).save(table.state_dict(), own, {"step": 1, "metric": None}, ranks)
    return contents(table)


def load(ranks: Ranks, folder: str, kind: str) -> tuple[list[dict[str, Any]], list[int]]:
    store, table = CheckpointStore(folder, 2), make_table(ranks, kind)
    checkpoint = store.open_latest(ranks)
    assert checkpoint is not None
    store.load(checkpoint, table.state_dict())
    return contents(table), [int(own["own"][0]) for own in store.load_own(checkpoint, ranks)]


def contents(table: PackedTable | DenseTable) -> list[dict[str, Any]]:
    """(name, first row, rows) of every local shard of weights and optimizer state."""
    state = table.state_dict()
    tensors = {**state["model"]}
    for name, parts in state.get("optimizer", {}).items():
        tensors |= {f"{name}:{key}": tensor for key, tensor in parts.items()}
    return [
        {"name": name, "first": shard.metadata.shard_offsets[0], "rows": shard.tensor.numpy().copy()}
        for name, tensor in tensors.items()
        for shard in tensor.local_shards()
    ]


def assemble(answers: list[list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    """Whole tensors of the ranks' shards."""
    shards = sorted((shard for answer in answers for shard in answer), key=lambda shard: shard["first"])
    names = {shard["name"] for shard in shards}
    return {name: np.concatenate([shard["rows"] for shard in shards if shard["name"] == name]) for name in names}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "later"),
    [("row_wise", "row_wise"), ("row_wise", "table_wise"), ("table_wise", "row_wise"), ("dense", "dense")],
)
def test_two_ranks_save_what_one_two_and_four_load_bit_equal(tmp_path, kind, later):
    before = assemble(run_ranks(train_and_save, 2, str(tmp_path), kind))
    assert any(name.endswith("momentum1") and (values > 0).any() for name, values in before.items()), before.keys()
    for ranks in (1, 2, 4):
        answers = run_ranks(load, ranks, str(tmp_path), later)
        after = assemble([content for content, _ in answers])
        assert before.keys() == after.keys()
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)
        assert sorted(own for _, owns in answers for own in owns) == [0, 1]

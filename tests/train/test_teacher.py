"""A run that learns from another one: that it does, on any number of ranks, and that it goes on as it began."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import Config
from hse_dist.data.batch import make_batch
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import ConfigError, RunFolderError
from hse_dist.evaluate.driver import evaluate
from hse_dist.model.histories import Histories
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import journal_of, metrics_of, read_checkpoint, small_config, store_of
from hse_dist.testing.training import begin, stopped, train_on
from hse_dist.train.driver import train
from hse_dist.train.teacher import TeacherTable

FREE: dict[str, Any] = {
    "sparsity__start": "local_inverse",
    "model__row_norm": "free",
    "tables__item__dims": "items",
    "train__learning_rate": 0.05,
    "train__warm_accumulator": 0.001,
    "train__negatives": 1000,  # all items
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A start of 24 entries a row."""
    place = tmp_path_factory.mktemp("wide")
    config = small_config(
        place / "run", place / "data", **FREE, train__epochs=0, tables__item__live=24, sparsity__budget__ceiling=64
    )
    prepare(config)
    train(config)
    return config


def narrow(place: Path, wide: Config, **changes: Any) -> Config:
    return small_config(place, Path(wide.data.folder), **FREE | {"train__teacher": wide.run.folder} | changes)


def losses_of(config: Config) -> list[float]:
    return [line["loss"] for line in metrics_of(config) if line["kind"] == "train"]


def test_a_narrow_table_comes_nearer_to_a_wide_one(tmp_path: Path, wide: Config) -> None:
    config = narrow(tmp_path / "run", wide, train__epochs=6)
    summary, losses = train(config), losses_of(config)
    assert losses[-1] < 0.7 * losses[0]
    assert {entry["live"] for entry in journal_of(config)} == {summary["live_entries"]}
    assert sum(entry.get("grown", 0) for entry in journal_of(config)) > 20, "what grows learns from the teacher, too"
    assert evaluate(config)["bytes_per_item"] < 49 < evaluate(wide)["bytes_per_item"]


def taught_on(ranks: Ranks, config: Config) -> np.ndarray:
    """The teacher's scores for the same users on every rank, whose candidates are all items, or some."""
    prepared = Prepared(config.data.folder)
    teacher = TeacherTable.of(config, prepared, ranks)
    assert teacher is not None
    users = next(prepared.scan("train")).slice(0, 20)
    batch = make_batch(users, rows=prepared.items, negatives=config.train.negatives, seed=0, step=1, rank=0)
    shares = torch.full((len(users),), 1 / len(users), dtype=torch.float64)
    histories = Histories(batch.offsets, batch.positions, None, shares)
    scores = teacher.answer(batch).scores(histories)
    sent = dict(ranks.meter.sent)
    assert torch.equal(teacher.answer(batch).scores(histories), scores)
    assert (ranks.meter.sent == sent) == (teacher.always_all or ranks.size == 1), "all items are looked up once"
    assert not scores.requires_grad and scores.abs().sum() > 0
    return scores.numpy()


def learn_on(ranks: Ranks, config: Config, some: Config, state: dict[str, Any]) -> Any:
    """Those scores, of all and of some candidates; and of several ranks the summary of the run."""
    scores = taught_on(ranks, config), taught_on(ranks, some)
    return scores, train_on(ranks, config, state) if ranks.size > 1 else None


@pytest.mark.distributed
def test_two_ranks_have_the_same_teacher_and_learn_from_it(tmp_path: Path, wide: Config) -> None:
    config = narrow(tmp_path / "run", wide, train__epochs=3, train__log_every=1)
    some = narrow(tmp_path / "run", wide, train__negatives=30)
    state = begin(config)
    (one,), (two, too) = (run_ranks(learn_on, ranks, config, some, state) for ranks in (1, 2))
    for number in range(2):
        assert one[0][number].tobytes() == two[0][number].tobytes() == too[0][number].tobytes()
    summary = two[1]
    losses = losses_of(config)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert summary["wire_bytes"]["gradients"] > 0


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, wide: Config) -> None:
    changes: dict[str, Any] = {"train__checkpoint_every": 4, "train__epochs": 1, "model__input_dropout": 0.2}
    straight, broken = (narrow(tmp_path / name, wide, **changes) for name in ("straight", "broken"))
    train(straight)
    stopped(broken, 9)
    assert train(broken)["resumed_from"] == 8
    assert journal_of(straight) == journal_of(broken) and metrics_of(straight) == metrics_of(broken)
    states = [run_ranks(read_checkpoint, 1, run, store_of(run).latest(), 150)[0] for run in (straight, broken)]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_who_cannot_teach_is_refused_before_anything_starts(tmp_path: Path, wide: Config) -> None:
    with pytest.raises(RunFolderError, match=r"There is no run in .*nobody.*train\.teacher"):
        train(narrow(tmp_path / "a", wide, train__teacher=str(tmp_path / "nobody")))
    empty = tmp_path / "empty"
    shutil.copytree(wide.run.folder, empty, ignore=shutil.ignore_patterns("checkpoints", "topology.jsonl"))
    with pytest.raises(RunFolderError, match=r"has no checkpoint.*Train it first.*train.teacher"):
        train(narrow(tmp_path / "b", wide, train__teacher=str(empty)))
    others = small_config(tmp_path / "run", tmp_path / "data", train__teacher=wide.run.folder, data__min_user_count=4)
    with pytest.raises(RunFolderError, match=r"was trained on other data"):
        train(others)
    for name, changes in {
        'train.teacher = "runs/w" gives scores for model.loss = "cosine"': {"model__loss": "softmax"},
        "cannot be together with model.score_clip": {"model__score_clip": 1.0},
        "is run.folder itself": {"run__folder": "runs/w"},
    }.items():
        with pytest.raises(ConfigError, match=name):
            narrow(tmp_path / "c", wide, train__teacher="runs/w", **changes)


def test_a_run_goes_on_with_the_teacher_it_began_with(tmp_path: Path, wide: Config) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(wide.run.folder, teacher)
    config = narrow(tmp_path / "run", wide, train__teacher=str(teacher), train__epochs=1)
    train(config)
    assert train(config)["resumed_from"] > 0
    record = RunFolder(config).teacher
    record.write_text(record.read_text().replace('"step": 0', '"step": 7'))
    with pytest.raises(RunFolderError, match=r"is that of step 0 now, and was that of 7"):
        train(config)
    record.write_text('{"step": 0, "run": "another"}')
    with pytest.raises(RunFolderError, match="is one of other settings than it was"):
        train(config)


def test_no_other_checkpoint_stands_in_for_a_damaged_one(tmp_path: Path, wide: Config) -> None:
    teacher = narrow(tmp_path / "teacher", wide, train__teacher=None, train__epochs=2, checkpoint__keep=3)
    train(teacher)
    best = store_of(teacher).best()
    assert best is not None and len(store_of(teacher).all()) > 1
    shard = tmp_path / "teacher/checkpoints" / best.name / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    config = narrow(tmp_path / "run", wide, train__teacher=teacher.run.folder)
    with pytest.raises(RunFolderError, match=rf"and was that of {best.step}\. .*damaged"):
        train(config)
    assert not RunFolder(config).started
    assert train(narrow(tmp_path / "run", wide, train__teacher=teacher.run.folder, train__epochs=0))["steps"] == 0


def test_a_teacher_from_a_gpu_teaches_on_a_cpu(tmp_path: Path, wide: Config) -> None:
    shutil.copytree(wide.run.folder, tmp_path / "teacher")
    settings = tmp_path / "teacher/config.json"
    there = json.loads(settings.read_text())
    there["cluster"]["device"], there["tables"]["item"]["kernel"] = "cuda", "fused_uvm"
    settings.write_text(json.dumps(there))
    config = narrow(tmp_path / "run", wide, train__teacher=str(tmp_path / "teacher"), train__epochs=1)
    assert train(config)["steps"] > 0


def test_a_run_is_not_its_own_teacher_in_other_words(tmp_path: Path, wide: Config) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for words in (f"{tmp_path}/./run/", str(tmp_path / "link")):
        with pytest.raises(RunFolderError, match="cannot teach itself"):
            train(narrow(tmp_path / "run", wide, train__teacher=words))

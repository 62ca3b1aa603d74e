"""What is read of a table with rows of features, on real ranks, and that its export answers what evaluation ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hse_dist.checkpoint.repack import repack
from hse_dist.config import Config, ModelSettings, TrainSettings, parse_config
from hse_dist.data.batch import item_batch, make_batch
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.errors import ConfigError
from hse_dist.evaluate.driver import Opened, open_best
from hse_dist.evaluate.ranking import top_items
from hse_dist.export import writer
from hse_dist.export.format import write_export
from hse_dist.export.recommender import Recommender
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.parameters import DenseParameters
from hse_dist.ranks import Ranks
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import SMALL
from hse_dist.testing.tables import Content
from hse_dist.train.driver import train

ITEMS, DIMS = 60, 50
VALUES = {"age": pa.array([18, 24, 33]), "user": pa.array(["u0", "u1", "u2", "u3", "u4"])}
GENRES = 4
HISTORIES = [[3, 9, 40], [], [7], [], [0, 1]]
KNOWN: list[dict[str, list[int]]] = [{"age": [1], "user": [0, 4]}, {"user": [2]}, {}, {}, {"age": [0, 2]}]


def lists(given: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, given)]), np.array([one for part in given for one in part], np.int64)


def feature_rows() -> FeatureRows:
    rng = np.random.default_rng(3)
    first = ITEMS + np.cumsum([0, 3, 5, GENRES])
    ends, genres = lists([sorted(rng.permutation(GENRES)[: rng.integers(0, 3)]) for _ in range(ITEMS)])
    return FeatureRows(ITEMS, ("age", "user"), ("genre",), first, (ends, genres + first[2]))


def both(ranks: Ranks, folder: Path, settings: dict[str, Any], form: Any) -> tuple[list, list] | None:
    """Write the export; and what evaluation finds, items [B, 100] and scores [B, items]."""
    features, model_settings = feature_rows(), ModelSettings(kind="two_tower", **settings)
    content = Content.random(2, features.rows, DIMS, 8, longest=12, long_rows={2: 30})
    table = content.table(ranks, "row_wise", TrainSettings(), with_gains=model_settings.row_norm == "free")
    run = Opened(table, Autoencoder(model_settings, DenseParameters((0.5, 0.3, 0.7))), features, 0)
    given = {name: lists([user.get(name, []) for user in KNOWN]) for name in features.users}
    block = HistoryBlock(*lists(HISTORIES), features=given)
    with torch.no_grad():
        top = top_items(table, run.model, block, 25, features)
        asking = make_batch(block, rows=ITEMS, negatives=0, seed=0, step=0, rank=0, features=features)
        u_kb, kept = run.model.encode(table.lookup(asking.candidates), asking)
        some = item_batch(0, ITEMS, features)
        scores = run.model.score_items(u_kb, kept, table.lookup(some.candidates), some).t()
    reader = ranks.rank == 0
    blocks = writer.read_items(run, reader=reader)
    read = {name: writer.read_feature(run, name, reader=reader) for name in features.users}
    if not reader:
        for part in (blocks, *read.values()):
            assert not any(len(one.columns) for one in part)
        return None
    write_export(
        folder, blocks, item_ids=pa.array(range(1000, 1000 + ITEMS)), dims=DIMS, row_norm=model_settings.row_norm,
        user_entries=model_settings.user_entries, form=form,
        features={name: (VALUES[name], rows) for name, rows in read.items()},
    )  # fmt: skip
    return top.tolist(), scores.tolist()


def in_small_blocks(ranks: Ranks, *arguments: Any) -> tuple[list, list] | None:
    """`both`, with blocks that end within the items and within a feature."""
    before = writer.BLOCK_ROWS, writer.BLOCK_COMPOSED
    writer.BLOCK_ROWS, writer.BLOCK_COMPOSED = 2, 17
    try:
        return both(ranks, *arguments)
    finally:
        writer.BLOCK_ROWS, writer.BLOCK_COMPOSED = before


@pytest.mark.parametrize(
    ("ranks", "settings", "form"),
    [
        pytest.param(2, {"row_norm": "unit"}, "csr", marks=pytest.mark.distributed),
        (1, {"row_norm": "free"}, "mapped"),
        (1, {"row_norm": "unit", "user_entries": 6, "compact_above": 10}, "parquet"),
    ],
)
def test_an_export_answers_what_evaluation_ranks(
    tmp_path: Path, ranks: int, settings: dict[str, Any], form: str
) -> None:
    found = run_ranks(in_small_blocks, ranks, tmp_path / "e", settings, form)[0]
    top, scores = found
    known = [{name: [VALUES[name][row].as_py() for row in rows] for name, rows in user.items()} for user in KNOWN]
    histories = [[1000 + item for item in history] for history in HISTORIES]
    for kernels in (True, False):
        recommender = Recommender(writer.load_export(tmp_path / "e"), kernels=kernels)
        for user, answer in enumerate(recommender.recommend_batch(histories, ITEMS, features=known)):
            wanted = [item for item in top[user] if item >= 0] if HISTORIES[user] or known[user] else []
            found_here, judged = [item - 1000 for item in answer.items], np.array(scores[user])
            assert sorted(found_here) == sorted(wanted)
            # items whose scores are equal but for rounding may change places: sums have another order there
            np.testing.assert_allclose(judged[found_here], judged[wanted], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(answer.scores, judged[found_here], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["unit", "free"])
def test_the_job_writes_what_evaluation_ranks_of_a_trained_run(tmp_path: Path, norm: str) -> None:
    config = trained(tmp_path, norm)
    writer.export(config)
    recommender = Recommender.load(tmp_path / "run/export")
    assert recommender.features == ("age", "own", "paid", "tags")
    users, same = run_ranks(compared, 1, config, recommender)[0]
    assert users == same > 20
    with pytest.raises(ConfigError, match=r"A run with features has no delta.*setting tables\.features"):
        writer.export(config, since=str(tmp_path / "run/export"))
    with pytest.raises(ConfigError, match=r"cannot be cut yet.*setting tables\.features"):
        repack(str(tmp_path / "run"), 2)


def trained(folder: Path, norm: str) -> Config:
    """A run of one epoch, with features of users in each type, and of items."""
    rng, users, items, lines = np.random.default_rng(0), 300, 80, 5000
    taken = {"user": rng.integers(0, users, lines), "item": [f"i{one}" for one in rng.zipf(1.3, lines) % items]}
    tags = [[f"t{one}" for one in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(users)]
    of_users = {"user": range(users), "age": rng.integers(18, 30, users), "tags": tags, "paid": rng.random(users) < 0.5}
    genres = [[f"g{one}" for one in rng.integers(0, 5, rng.integers(0, 3))] for _ in range(items)]
    of_items = {"item": [f"i{one}" for one in range(items)], "genre": genres}
    for name, columns in {"log": taken, "users": of_users, "items": of_items}.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    features = {name: {"of": "user", "column": name} for name in ("age", "tags", "paid")}
    features = {name: {**one, "source": str(folder / "users.parquet")} for name, one in features.items()}
    features["genre"] = {"of": "item", "column": "genre", "source": str(folder / "items.parquet")}
    features["own"] = {"of": "user"}
    raw: dict[str, Any] = {**copy.deepcopy(SMALL), "run": {"folder": str(folder / "run")}}
    raw["data"] = {
        "source": str(folder / "log.parquet"),
        "folder": str(folder / "data"),
        "columns": {"user": "user", "item": "item"},
        "split": {"kind": "within_users"},
        "features": features,
    }
    raw["tables"]["features"] = {name: {"live": 4, "weight": 0.5} for name in features}
    raw["model"], raw["train"]["epochs"] = {"kind": "two_tower", "row_norm": norm}, 1
    config = parse_config(raw, "the test")
    prepare(config)
    train(config)
    return config


def compared(ranks: Ranks, config: Config, recommender: Recommender) -> tuple[int, int]:
    """Test users, and those whose answers by raw values are the items that evaluation ranks."""
    prepared = Prepared(config.data.folder)
    run, ids = open_best(config, prepared, ranks), prepared.item_ids()
    assert run.features is not None
    values, users, same = {name: prepared.feature_values(name) for name in run.features.users}, 0, 0
    for block in prepared.scan("test", ("rows",), 64, features=run.features.users):
        top = top_items(run.table, run.model, block, 30, run.features).numpy()
        histories = [ids.take(pa.array(part)).to_pylist() for part in parts(block.offsets, block.rows)]
        known: list[dict[str, Any]] = [{} for _ in histories]
        for name, has in block.features.items():
            for user, rows in zip(known, parts(*has), strict=True):
                user[name] = values[name].take(pa.array(rows)).to_pylist()
        for best, answer in zip(top, recommender.recommend_batch(histories, 100, features=known), strict=True):
            assert not answer.unknown and not answer.unknown_features
            users, same = users + 1, same + (answer.items == ids.take(pa.array(best[best >= 0])).to_pylist())
    return users, same


def parts(offsets: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    return np.split(members, offsets[1:-1])

"""Rankings on real ranks against one users × items matrix, a full sort and loops over users."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import EvaluateSettings, ModelSettings, TrainSettings
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import NumericError
from hse_dist.evaluate.ranking import rank_users
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import small_config
from hse_dist.testing.tables import Content

DIMS, DENSE_DIMS = 64, 8
# how the table is held, the norm of its rows, from how many columns on they are renumbered, entries of a user
CASES = {
    "packed, free": ("row_wise", "free", 1000, None),
    "packed, unit": ("table_wise", "unit", 1000, None),
    "packed, free, compacted": ("row_wise", "free", 1, None),
    "packed, free, strongest of users": ("row_wise", "free", 1000, 9),
    "dense": ("dense", "unit", 1000, None),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Some 150 items; 40 users a split, of which some have seen most of a block of items."""
    folder = tmp_path_factory.mktemp("ranking") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return Prepared(folder)


def content(items: int) -> Content:
    return Content.random(4, items, DIMS, 8, longest=20, long_rows={2: 60})


def dense_values(items: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(items, DENSE_DIMS)).astype(np.float32)


def make_table(ranks: Ranks, items: int, case: str) -> PackedTable | DenseTable:
    sharding, norm, *_ = CASES[case]
    if sharding != "dense":
        return content(items).table(ranks, sharding, TrainSettings(), with_gains=norm == "free")
    table = DenseTable(items, DENSE_DIMS, ranks, TrainSettings(), "row_wise")
    first, last = table.ranges[ranks.rank]
    table.local_values().copy_(torch.from_numpy(dense_values(items)[first:last]))
    return table


def rank(ranks: Ranks, prepared: Prepared, case: str, blocks: list[tuple[int, int]]) -> list[Any]:
    """(values of each user, result) for every size of blocks of users and items."""
    table = make_table(ranks, prepared.items, case)
    _, norm, compact_above, entries = CASES[case]
    model = Autoencoder(ModelSettings(row_norm=norm, compact_above=compact_above, user_entries=entries))
    answers = []
    for users, items in blocks:
        settings = EvaluateSettings(users=users, items=items)
        metrics = rank_users(table, model, prepared, "test", settings, ranks)
        answers.append((metrics.per_user(), metrics.result()))
    return answers


def reference(prepared: Prepared, case: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same from all scores at once, in float64, user by user."""
    items, (sharding, norm, _, entries) = prepared.items, CASES[case]
    if sharding == "dense":
        table = dense_values(items).astype(np.float64)
    else:
        rows, table = content(items), np.zeros((items, DIMS))
        for row in range(items):
            table[row, rows.columns[row]] = rows.values[row]
    if norm == "unit":
        table /= np.linalg.norm(table, axis=1, keepdims=True)
    gains = np.ones(items) if norm == "unit" else np.sign(rows.gains) * np.maximum(np.abs(rows.gains), 1e-3)
    history, target = (matrix.toarray() > 0 for matrix in (prepared.matrix("test"), prepared.targets("test")))
    users_ud = history @ table
    if entries is not None:
        weaker = np.argsort(-np.abs(users_ud), axis=1, kind="stable")[:, entries:]
        np.put_along_axis(users_ud, weaker, 0, axis=1)
    scores = (users_ud @ table.T) * gains
    top = [[i for i in np.argsort(-scores[u], kind="stable") if not history[u, i]][:100] for u in range(len(scores))]
    counts = prepared.counts()
    third = np.minimum(3 * (np.cumsum(counts) - counts) // counts.sum(), 2)
    groups = [np.ones(items, bool), *(third == t for t in range(3))]
    values = np.array([[user_metrics(top[u], target[u] & group) for u in range(len(top))] for group in groups])
    covered = np.isin(np.arange(items), [item for row in top for item in row])
    names = ("ndcg@100", "recall@20", "recall@50")
    users = {"user": np.arange(len(top)), **{name: values[0, :, m] for m, name in enumerate(names)}}
    means = [
        {
            **{name: np.nanmean(values[g, :, m]) for m, name in enumerate(names)},
            "coverage": covered[group].mean(),
            "users": (~np.isnan(values[g, :, 0])).sum(),
            "items": group.sum(),
        }
        for g, group in enumerate(groups)
    ]
    return users, {**means[0], "thirds": dict(zip(("head", "middle", "tail"), means[1:], strict=True))}


def user_metrics(top: list[int], target: np.ndarray) -> list[float]:
    wanted = int(target.sum())
    if not wanted:
        return [np.nan] * 3
    gain = sum(1 / np.log2(place + 2) for place, item in enumerate(top) if target[item])
    ideal = sum(1 / np.log2(place + 2) for place in range(min(100, wanted)))
    return [gain / ideal, *(sum(target[i] for i in top[:k]) / min(k, wanted) for k in (20, 50))]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_rankings_equal_those_of_the_whole_matrix(prepared, case):
    users, result = reference(prepared, case)
    assert len(users["user"]) > 30 and 0 < result["ndcg@100"] < 1
    blocks = [(512, 8192), (7, 50), (1, 150), (len(users["user"]), 1)]
    one = run_ranks(rank, 1, prepared, case, blocks)
    many = [*run_ranks(rank, 2, prepared, case, blocks[:2]), *run_ranks(rank, 4, prepared, case, blocks[1:2])]
    for got_users, got in [answer for answers in (*one, *many) for answer in answers]:
        assert np.array_equal(got_users["user"], users["user"])
        for name, values in users.items():
            np.testing.assert_allclose(got_users[name], values, rtol=1e-12)
        assert got == one[0][0][1], "results are not bit-equal"
    compare(one[0][0][1], result)


def compare(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            compare(got[name], value)
        else:
            assert got[name] == pytest.approx(value, rel=1e-12), name


def test_a_nan_is_refused_with_the_item_row(prepared):
    def work(ranks: Ranks) -> None:
        table = make_table(ranks, prepared.items, "packed, free")
        table.local_values()[int(table.layout.offsets[9]), 0] = np.nan
        model = Autoencoder(ModelSettings())
        with pytest.raises(NumericError, match=r"item row \d+ is NaN"):
            rank_users(table, model, prepared, "test", EvaluateSettings(), ranks)

    run_ranks(work, 1)

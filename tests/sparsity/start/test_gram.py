"""The lower triangle of the co-occurrence matrix, against the dense product."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.data.prepared import HistoryBlock
from hse_dist.sparsity.start import gram
from hse_dist.sparsity.start.gram import (
    CoOccurrence,
    Counting,
    Keep,
    lower_blocks,
    open_co_occurrence,
    write_co_occurrence,
)
from hse_dist.sparsity.start.local_inverse import Regularization, find_patterns, solve


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        for module in ("gram", "history_files", "local_inverse"):
            monkeypatch.setattr(f"hse_dist.sparsity.start.{module}.library", lambda: None)
    return request.param


def counted(histories, folder: Path, **how: object) -> CoOccurrence:
    write_co_occurrence(histories.scan("train"), histories.items, folder, **how)
    return open_co_occurrence(folder)


def triangle(pairs: CoOccurrence) -> np.ndarray:
    items = len(pairs.counts)
    whole = ss.csr_array((pairs.shared, pairs.columns, pairs.offsets), shape=(items, items))
    assert whole.has_canonical_format
    return whole.toarray()


@pytest.mark.parametrize("products", [1, 500, 10**9])
def test_blocks_add_up_to_the_triangle(histories, products: int) -> None:
    x = histories.matrix("train")
    blocks = list(lower_blocks(x, products))
    assert len(blocks) == {1: x.shape[1], 10**9: 1}.get(products, len(blocks))
    assert [first for first, _ in blocks] == np.cumsum([0, *(block.shape[0] for _, block in blocks)])[:-1].tolist()
    whole = ss.vstack([block for _, block in blocks])
    np.testing.assert_array_equal(whole.toarray(), np.tril((x.T @ x).toarray(), -1))
    assert whole.has_sorted_indices and whole.data.min() > 0


def test_all_pairs_are_counted(histories, tmp_path: Path, compiled: bool) -> None:
    dense = (histories.matrix("train").T @ histories.matrix("train")).toarray()
    pairs = counted(histories, tmp_path / "gram")
    np.testing.assert_array_equal(pairs.counts, np.diag(dense))
    np.testing.assert_array_equal(triangle(pairs), np.tril(dense, -1))
    assert pairs.sampled == 0


def test_users_have_weights(histories, tmp_path: Path, compiled: bool) -> None:
    x = histories.matrix("train").toarray()
    weights = 1 + x.sum(1) % 5
    pairs = counted(histories, tmp_path / "gram", weights_by_length=1 + np.arange(51) % 5)
    dense = (x.T * weights) @ x
    np.testing.assert_array_equal(pairs.counts, np.diag(dense))
    np.testing.assert_array_equal(triangle(pairs), np.tril(dense, -1))


@pytest.mark.parametrize("size", [1, 6, 50])
def test_only_pairs_of_patterns_are_kept_and_give_the_same_factor(
    histories, tmp_path: Path, compiled: bool, size: int
) -> None:
    whole = counted(histories, tmp_path / "whole")
    every = [Regularization(5.0), Regularization(300.0, dropout=0.5)]
    keep = Keep([one.diagonal for one in every], size)
    kept = counted(histories, tmp_path / "kept", keep=keep)
    wanted = np.zeros((50, 50), bool)
    for one in every:
        found = []
        for pairs in (whole, kept):
            patterns = find_patterns(pairs, 0, 50, diagonal=one.diagonal(pairs.counts), size=size)
            found.append(solve(pairs, patterns, one))
        for begin, end in pairwise(patterns.offsets):
            wanted[np.ix_(patterns.columns[begin:end], patterns.columns[begin:end])] = True
        for name in ("rows", "columns", "values"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    np.testing.assert_array_equal(triangle(kept), triangle(whole) * wanted)


def test_tasks_and_memory_do_not_change_a_bit(histories, tmp_path: Path, compiled: bool) -> None:
    keep = Keep([Regularization(5.0).diagonal], 6)
    for name, counting in [("one", Counting()), ("many", Counting(memory=600, at_a_time=5))]:
        counted(histories, tmp_path / name, counting=counting, keep=keep)
    one, many = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "many"))
    assert one == many and {"columns.bin", "shared.bin"} <= set(one)


def test_a_task_holds_no_more_pairs_than_its_memory_or_one_row(
    histories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, original = [], gram._pairs

    def noted(*arguments: object) -> object:
        for columns, shared, lengths in original(*arguments):
            sizes.append(len(columns))
            yield columns, shared, lengths

    if gram.library() is None:
        pytest.skip("the plain path is bounded by products")
    monkeypatch.setattr(gram, "_pairs", noted)
    pairs = counted(histories, tmp_path / "gram", counting=Counting(memory=8 * 60))
    assert max(sizes) <= 60 and sum(sizes) == len(pairs.columns) > 600


def test_items_that_share_no_users(tmp_path: Path, compiled: bool) -> None:
    write_co_occurrence([HistoryBlock(np.arange(4), np.arange(3))], 3, tmp_path / "gram")
    pairs = open_co_occurrence(tmp_path / "gram")
    assert len(pairs.columns) == len(pairs.shared) == 0 and pairs.counts.tolist() == [1, 1, 1]

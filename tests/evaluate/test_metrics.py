from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.data.popularity import thirds
from hse_dist.errors import DataError
from hse_dist.evaluate.metrics import DEPTH, METRICS, Metrics, read_users, write_users


def slow_user(top: list[int], targets: set[int]) -> dict[str, float]:
    """The definitions, read aloud."""
    dcg = sum(1 / math.log2(rank + 2) for rank, item in enumerate(top) if item in targets)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(100, len(targets))))
    recall = {k: len(targets & set(top[:k])) / min(k, len(targets)) for k in (20, 50)}
    return {"ndcg@100": dcg / ideal, "recall@20": recall[20], "recall@50": recall[50]}


def slow(tops: list[list[int]], targets: list[set[int]], group: set[int]) -> dict[str, object]:
    """Means over the users with a target in the group, and the coverage of the group."""
    values = [slow_user(top, t & group) for top, t in zip(tops, targets, strict=True) if t & group]
    means = {m: sum(v[m] for v in values) / len(values) if values else None for m in METRICS}
    shown = {item for top in tops for item in top}
    coverage = len(shown & group) / len(group) if group else None
    return {**means, "coverage": coverage, "users": len(values), "items": len(group)}


def make_case(seed: int, users: int, items: int) -> tuple[np.ndarray, list[list[int]], list[set[int]]]:
    generator = np.random.default_rng(seed)
    counts = np.sort(generator.zipf(1.6, items).clip(max=300))[::-1]
    tops = [generator.permutation(items)[: generator.integers(0, DEPTH + 1)].tolist() for _ in range(users)]
    targets = [set(generator.permutation(items)[: generator.integers(1, items)].tolist()) for _ in range(users)]
    return counts, tops, targets


def as_arrays(tops: list[list[int]], targets: list[set[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    padded = np.array([top + [-1] * (DEPTH - len(top)) for top in tops], np.int64).reshape(-1, DEPTH)
    offsets = np.cumsum([0, *(len(t) for t in targets)]).astype(np.int64)
    # targets in no order at all
    return padded, offsets, np.array([row for t in targets for row in t], np.int64)


def gather(third: np.ndarray, tops: list, targets: list, users: list[int]) -> Metrics:
    metrics = Metrics(third)
    top, offsets, rows = as_arrays([tops[u] for u in users], [targets[u] for u in users])
    metrics.add(top, offsets, rows, np.array(users, np.int64))
    return metrics


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() - {"thirds"} == expected.keys()
    for key, value in expected.items():
        assert (found[key] is None) == (value is None), key
        assert value is None or found[key] == pytest.approx(value, abs=1e-12), key


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(3, 400))
def test_equals_the_definitions_and_merges_bit_equal(seed: int, users: int, items: int) -> None:
    counts, tops, targets = make_case(seed, users, items)
    third = thirds(counts)
    whole = gather(third, tops, targets, list(range(users)))
    result = whole.result()
    assert_close(result, slow(tops, targets, set(range(items))))
    for t, name in enumerate(("head", "middle", "tail")):
        assert_close(result["thirds"][name], slow(tops, targets, set(np.flatnonzero(third == t).tolist())))
    merged = Metrics(third)
    for rank in (2, 0, 1):
        merged.merge(pickle.loads(pickle.dumps(gather(third, tops, targets, list(range(rank, users, 3))))))
    assert json.dumps(merged.result()) == json.dumps(result)
    for name, values in whole.per_user().items():
        np.testing.assert_array_equal(merged.per_user()[name], values)


def test_a_perfect_and_an_empty_list() -> None:
    metrics = gather(np.zeros(300, np.uint8), [list(range(100)), []], [set(range(150)), {7}], [0, 1])
    values = metrics.per_user()
    for name in METRICS:
        assert values[name].tolist() == [pytest.approx(1.0), 0.0]
    assert metrics.result()["coverage"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([4, 3, 2, 1, 1, 1], [0, 1, 1, 2, 2, 2]),  # a third is 4: 4 | 3 + 2 | 1 + 1 + 1
        ([5, 3, 2, 1, 1], [0, 1, 2, 2, 2]),  # the first item holds more than a third; 5 + 3 is two thirds
        ([3, 3, 3, 0], [0, 1, 2, 2]),  # items of held-out users only stand in the tail
        ([9, 1, 1], [0, 2, 2]),  # the head alone holds two thirds: no middle
        ([1, 1, 1, 1], [0, 0, 1, 2]),
    ],
)
def test_thirds_hold_a_third_of_the_interactions(counts: list[int], expected: list[int]) -> None:
    assert thirds(np.array(counts)).tolist() == expected


def test_users_without_targets_or_added_twice_or_absent_are_refused() -> None:
    third = np.zeros(5, np.uint8)
    with pytest.raises(DataError, match="position 8 has no target"):
        Metrics(third).add(np.full((2, DEPTH), -1), np.array([0, 1, 1]), np.array([3]), np.array([7, 8]))
    metrics = gather(third, [[1]], [{1}], [0])
    metrics.merge(gather(third, [[1]], [{1}], [0]))
    with pytest.raises(ValueError, match="twice"):
        metrics.result()
    empty = gather(third, [], [], [])
    with pytest.raises(DataError, match="no held-out users"):
        empty.result()
    with pytest.raises(ValueError, match="different items"):
        empty.merge(Metrics(np.zeros(6, np.uint8)))


def test_users_metrics_are_written_and_read_back(tmp_path) -> None:
    _, tops, targets = make_case(3, 4, 30)
    values = gather(np.zeros(30, np.uint8), tops, targets, [3, 1, 0, 2]).per_user()
    write_users(tmp_path / "a.parquet", values)
    write_users(tmp_path / "b.parquet", values, pa.array(["w", "x", "y", "z"]))
    for name, ids in (("a", [0, 1, 2, 3]), ("b", ["w", "x", "y", "z"])):
        users, found = read_users(tmp_path / f"{name}.parquet")
        assert users.to_pylist() == ids
        for metric in METRICS:
            np.testing.assert_array_equal(found[metric], values[metric])


def test_a_file_that_holds_no_users_metrics_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no file.*missing\.parquet"):
        read_users(tmp_path / "missing.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read"):
        read_users(tmp_path / "bad.parquet")

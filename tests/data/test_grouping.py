from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.data.grouping import Part, group
from hse_dist.data.hashing import BUCKET_SEED, hash_ids

TIMES: dict[str, Any] = {
    "small": st.integers(0, 5),
    # too far apart to stand beside a user's number in 64 bits
    "wide": st.sampled_from([-(2**63), -5, 0, 7, 2**62, 2**63 - 1]),
    "float": st.sampled_from([-1e300, -0.5, 0.0, 0.25, 1e18]),
}


def slow_group(rows: list[tuple[Any, Any, Any]], timed: bool) -> list[tuple[Any, list[Any]]]:
    """[(user, items in order)] with Python's own containers."""
    first: dict[Any, dict[Any, Any]] = {}
    for user, item, time in rows:
        items = first.setdefault(user, {})
        items[item] = min(time, items.get(item, time))
    ordered = sorted(first, key=lambda user: (int(hash_ids(pa.array([user]), BUCKET_SEED)[0]), user))
    return [(user, sorted(first[user], key=lambda item: (first[user][item] if timed else 0, item))) for user in ordered]


@given(data=st.data(), kind=st.sampled_from(sorted(TIMES)), strings=st.booleans(), timed=st.booleans())
@settings(max_examples=80, deadline=None)
def test_like_the_slow_reference(data: Any, kind: str, strings: bool, timed: bool) -> None:
    ids = st.sampled_from(["", "a", "b", "é", "zz"]) if strings else st.integers(-3, 3)
    rows = data.draw(st.lists(st.tuples(ids, ids, TIMES[kind]), max_size=40))
    user, item, time = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    id_type = pa.large_string() if strings else pa.int64()
    columns = {"user": pa.array(user, id_type), "item": pa.array(item, id_type)}
    columns["timestamp"] = pa.array(time, pa.float64() if kind == "float" else pa.int64())
    part = group(columns.__getitem__, timed=timed)
    users, items = part.users.to_pylist(), part.items.to_pylist()
    assert items == sorted(set(item))
    histories = [[items[code] for code in own] for own in np.split(part.codes, part.offsets[1:-1])] if users else []
    assert list(zip(users, histories, strict=True)) == slow_group(rows, timed)


@pytest.mark.parametrize("masked", [False, True])
def test_items_are_counted_in_pieces(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hse_dist.data.grouping.COUNTED", 3)
    codes = np.array([0, 2, 2, 1, 0, 2, 0, 0], np.int32)
    mask = codes != 0
    part = Part(pa.array([5, 6]), pa.array([7, 8, 9, 10]), np.array([0, 3, 8]), codes)
    assert part.count(mask if masked else None).tolist() == ([0, 1, 3, 0] if masked else [4, 1, 3, 0])
    assert part.of_entries(np.array([False, True])).tolist() == [False] * 3 + [True] * 5

"""Ids are found by their order as by looking through all of them."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.export.ids import PATIENCE, Ids

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
numbers = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(
    data=st.data(), kind=st.sampled_from([pa.string(), pa.large_string(), pa.int64(), pa.uint64()]), cut=st.booleans()
)
def test_rows_of_ids(data, kind, cut) -> None:
    one = texts if not pa.types.is_integer(kind) else numbers if kind == pa.int64() else st.integers(0, 2**64 - 1)
    names = data.draw(st.lists(one, min_size=30, max_size=60, unique=True))
    asked = data.draw(st.lists(st.one_of(st.none(), one, st.sampled_from(names)), max_size=1 if not cut else 40))
    known = pa.array(["" if not pa.types.is_integer(kind) else 0, *names], kind).slice(1)
    ids = Ids(known)
    expected = [names.index(item) if item in names else -1 for item in asked]
    assert ids.rows_of(pa.array(asked, kind)).tolist() == expected
    ids.prepare()
    assert ids.rows_of(pa.array(asked, kind)).tolist() == expected
    assert ids._by_order(pa.array(asked, kind), ids._order).tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.int32()])
def test_the_order_is_made_when_it_pays(kind) -> None:
    ids = Ids(pa.array(range(100)).cast(kind))
    asked = pa.array(["7", "100"]).cast(kind)
    for turn in range(PATIENCE + 2):
        assert ids.rows_of(asked).tolist() == [7, -1]
        assert (ids._order is not None) == (turn >= PATIENCE)

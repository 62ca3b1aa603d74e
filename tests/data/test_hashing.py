from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hse_dist.data.hashing import bucket_of, fraction_of, hash_ids

ONES = (1 << 64) - 1


def slow_mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & ONES
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & ONES
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & ONES
    return word ^ (word >> 31)


def slow_hash(value: int | str, seed: int) -> int:
    if isinstance(value, int):
        return slow_mix((value & ONES) ^ slow_mix(seed))
    text = value.encode()
    result = slow_mix(len(text) ^ slow_mix(seed))
    for first in range(0, len(text), 8):
        result = slow_mix(result ^ int.from_bytes(text[first : first + 8], "little"))
    return result


def test_splitmix64_of_the_published_generator() -> None:
    # first outputs of splitmix64 from state 0
    assert slow_mix(0) == 0xE220A8397B1DCDAF


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(0, 2**63))
def test_integers_like_the_slow_reference(ids: list[int], seed: int) -> None:
    assert hash_ids(pa.array(ids, pa.int64()), seed).tolist() == [slow_hash(value, seed) for value in ids]


@given(st.lists(st.text(max_size=30), min_size=1), st.integers(0, 2**63), st.integers(0, 5))
def test_strings_like_the_slow_reference(ids: list[str], seed: int, skipped: int) -> None:
    for kind in (pa.string(), pa.large_string()):
        column = pa.array(["an id before the slice"] * skipped + ids, kind).slice(skipped)
        assert hash_ids(column, seed).tolist() == [slow_hash(value, seed) for value in ids]


@given(st.integers(1, 300), st.integers(1, 20))
def test_finer_buckets_refine_coarser_ones_in_order(buckets: int, parts: int) -> None:
    hashes = hash_ids(pa.array(range(500)), 1)
    fine = bucket_of(hashes, buckets * parts)
    assert (fine // parts == bucket_of(hashes, buckets)).all()
    assert (np.diff(bucket_of(np.sort(hashes), buckets)) >= 0).all()


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_hashes_are_uniform_and_depend_on_the_seed(kind: str) -> None:
    ids = pa.array(range(20_000)) if kind == "integers" else pa.array([f"user-{i}" for i in range(20_000)])
    one, two = fraction_of(hash_ids(ids, 1)), fraction_of(hash_ids(ids, 2))
    counts = np.histogram(one, bins=20, range=(0, 1))[0]
    assert counts.sum() == 20_000 and abs(counts - 1000).max() < 160
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03

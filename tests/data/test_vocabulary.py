from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hse_dist.data import vocabulary
from hse_dist.data.vocabulary import positions, take_rows, write_ids

TEXTS = st.text("aé\U0001f600 z", max_size=4)


@given(known=st.sets(TEXTS | st.integers(-9, 9).map(str), max_size=20), wanted=st.sets(TEXTS, max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_are_found_by_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, known: set[str], wanted: set[str]
) -> None:
    check(tmp_path_factory.mktemp("ids"), sorted(known, key=str.encode), sorted(wanted, key=str.encode))


@given(known=st.sets(st.integers(-20, 20)), wanted=st.sets(st.integers(-25, 25)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_are_found(tmp_path_factory: pytest.TempPathFactory, known: set[int], wanted: set[int]) -> None:
    check(tmp_path_factory.mktemp("ids"), sorted(known), sorted(wanted))


def check(folder: Path, known: list, wanted: list) -> None:
    kind = pa.large_string() if any(isinstance(value, str) for value in [*known, *wanted]) else pa.int64()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "BLOCK_IDS", 3)
        write_ids(folder / "ids.arrow", pa.array(known, kind))
        found = positions(pa.array(wanted, kind), folder / "ids.arrow")
    assert found.dtype == np.int32
    assert found.tolist() == [known.index(value) if value in known else -1 for value in wanted]


def test_rows_are_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).permutation(50).astype(np.int32)
    np.save(tmp_path / "rows.npy", rows)
    loaded = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: loaded.append(path) or load(path, **options))
    monkeypatch.setattr(vocabulary, "MAPPED_ROWS", 10)
    places = np.array([-1, 0, 9, 10, -1, 11, 30, 49], np.int32)
    assert take_rows(tmp_path / "rows.npy", places).tolist() == [-1, *rows[[0, 9, 10]], -1, *rows[[11, 30, 49]]]
    assert len(loaded) == 4
    assert take_rows(tmp_path / "rows.npy", np.array([-1, -1])).tolist() == [-1, -1]

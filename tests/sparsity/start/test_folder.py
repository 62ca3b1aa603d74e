"""The reader of start folders: any range of rows, and damage that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hse_dist.errors import DataError
from hse_dist.files import write_json
from hse_dist.sparsity.start.folder import StartFolder, row_ranges, write_entries, write_rows


@pytest.fixture
def start(tmp_path: Path, small_ranges: int) -> StartFolder:
    """Row r of 16 has r % 3 + 1 entries; three ranges."""
    for index, (first, last) in enumerate(row_ranges(16)):
        live = np.arange(first, last) % 3 + 1
        rows = np.repeat(np.arange(first, last), live)
        columns = np.concatenate([np.arange(count) * 5 for count in live])
        write_entries(tmp_path, index, rows, columns, (rows + columns / 100).astype(np.float32))
        write_rows(tmp_path, index, live, (-np.arange(first, last)).astype(np.float32))
    write_json(tmp_path / "manifest.json", {"version": 1, "rows": 16, "dims": 20, "live_entries": 31})
    return StartFolder(tmp_path)


@pytest.mark.parametrize(("first", "last"), [(0, 16), (0, 7), (3, 15), (7, 7), (8, 9), (16, 16), (0, 0)])
def test_any_range_of_rows_is_read(start: StartFolder, first: int, last: int) -> None:
    rows = np.arange(first, last)
    np.testing.assert_array_equal(start.live(first, last), rows % 3 + 1)
    np.testing.assert_array_equal(start.gains(first, last), -rows.astype(np.float32))
    offsets, columns, values = start.entries(first, last)
    assert (offsets.dtype, columns.dtype, values.dtype) == (np.int64, np.int64, np.float32)
    np.testing.assert_array_equal(np.diff(offsets), rows % 3 + 1)
    of_row = np.repeat(rows, np.diff(offsets))
    np.testing.assert_array_equal(columns, 5 * (np.arange(len(columns)) - np.repeat(offsets[:-1], np.diff(offsets))))
    np.testing.assert_allclose(values, of_row + columns / 100, rtol=1e-6)


def test_a_folder_without_manifest_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest of the start"):
        StartFolder(tmp_path)


def test_another_version_is_refused(start: StartFolder) -> None:
    write_json(start.folder / "manifest.json", {**start.manifest, "version": 99})
    with pytest.raises(DataError, match="version 99"):
        StartFolder(start.folder)


@pytest.mark.parametrize("damage", ["missing", "cut off", "other columns"])
def test_a_damaged_file_is_named(start: StartFolder, damage: str) -> None:
    path = start.folder / "entries" / "range=00001.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:40])
    else:
        path.write_bytes((start.folder / "rows" / "range=00001.parquet").read_bytes())
    start.entries(0, 7)
    with pytest.raises(DataError, match=r"entries/range=00001\.parquet"):
        start.entries(5, 9)


def test_files_that_do_not_belong_together_are_refused(start: StartFolder) -> None:
    write_rows(start.folder, 1, np.full(7, 3), np.ones(7, np.float32))
    with pytest.raises(DataError, match="do not belong together"):
        start.entries(0, 16)

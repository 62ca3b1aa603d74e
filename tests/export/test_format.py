from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from hse_dist.errors import ExportError, NumericError
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.tables import column_type


def random_rows(seed: int, items: int, dims: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Rows of 0 … 8 entries, among them zeros that are live, and gains of both signs."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 9, items)
    columns = np.concatenate([np.sort(generator.permutation(dims)[:n]) for n in lengths])
    values = generator.normal(size=len(columns)).astype(np.float32)
    values[generator.random(len(columns)) < 0.1] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    gains = generator.normal(size=items).astype(np.float32)
    return sp.csr_matrix((values, columns, offsets), shape=(items, dims)), gains


def blocks_of(matrix: sp.csr_matrix, gains: np.ndarray, sizes: list[int], seed: int = 0) -> Iterator[RowBlock]:
    """The rows in blocks of these sizes; the entries of a row in no order, as in a packed table."""
    generator = np.random.default_rng(seed)
    first = 0
    for size in sizes:
        part = matrix[first : first + size]
        owner = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        order = np.lexsort((generator.random(part.nnz), owner))
        offsets = part.indptr.astype(np.int64)
        yield RowBlock(offsets, part.indices[order].astype(np.int64), part.data[order], gains[first : first + size])
        first += size


def assert_same(found: sp.csr_matrix, expected: sp.csr_matrix, dtype: type = np.float32) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    for name in ("indptr", "indices"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.data, expected.data.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("value_type", ["float32", "float16"])
@pytest.mark.parametrize("dims", [256, 257, 70_000])
@pytest.mark.parametrize("ids", [pa.array([f"item {i}" for i in range(40)]), pa.array(range(1000, 1040))])
def test_both_files_hold_the_rows(tmp_path: Path, value_type, dims: int, ids: pa.Array) -> None:
    matrix, gains = random_rows(1, 40, dims)
    blocks = blocks_of(matrix, gains, [7, 0, 33])
    summary = write_export(
        tmp_path / "e", blocks, item_ids=ids, dims=dims, row_norm="free", value_type=value_type, extra={"seed": 3}
    )
    export = load_export(tmp_path / "e")
    assert_same(export.matrix, matrix, value_type)
    assert_same(sp.load_npz(tmp_path / "e/items.npz"), matrix, value_type)
    np.testing.assert_array_equal(export.gains, gains)
    assert export.item_ids.equals(ids)
    assert export.manifest["model"] == {"seed": 3}
    assert export.manifest["live_entries"] == summary["live_entries"] == matrix.nnz
    assert export.manifest["negative_gains"] == (gains < 0).sum()
    assert summary["bytes"] == sum(file.stat().st_size for file in (tmp_path / "e").iterdir())
    assert {file.name for file in (tmp_path / "e").iterdir()} == {"items.npz", "items.parquet", "manifest.json"}
    table = pq.read_table(tmp_path / "e/items.parquet")
    assert table["columns"].type.value_type == column_type(dims)
    assert table["values"].type.value_type == {"float32": pa.float32(), "float16": pa.float16()}[value_type]


def test_column_types_are_the_smallest() -> None:
    types = [column_type(d) for d in (1, 256, 257, 65_536, 65_537, 2**24)]
    assert types == [pa.uint8(), pa.uint8(), pa.uint16(), pa.uint16(), pa.uint32(), pa.uint32()]


def test_bytes_do_not_depend_on_the_order_of_entries_or_the_day(tmp_path: Path, monkeypatch) -> None:
    matrix, gains = random_rows(2, 30, 500)
    ids = pa.array(range(30))
    for seed, name in ((1, "a"), (2, "b")):
        monkeypatch.setattr("time.time", lambda seed=seed: 1.7e9 + 1e8 * seed)
        write_export(tmp_path / name, blocks_of(matrix, gains, [10, 20], seed), item_ids=ids, dims=500, row_norm="free")
    for name in ("items.npz", "items.parquet", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_unit_rows_are_exported_at_length_one_without_gains(tmp_path: Path) -> None:
    matrix, gains = random_rows(3, 50, 100)
    write_export(
        tmp_path / "e", blocks_of(matrix, gains, [50]), item_ids=pa.array(range(50)), dims=100, row_norm="unit"
    )
    export = load_export(tmp_path / "e")
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1), np.float64).ravel())
    found = np.sqrt(np.asarray(export.matrix.multiply(export.matrix).sum(1)).ravel())
    np.testing.assert_allclose(found, np.where(length > 0, 1, 0), rtol=1e-6)
    np.testing.assert_array_equal(export.matrix.indices, matrix.indices)
    owner = np.repeat(np.arange(50), np.diff(matrix.indptr))
    np.testing.assert_allclose(export.matrix.data * length[owner], matrix.data, rtol=1e-5)
    assert (export.gains == 1).all()


ONE = {"item_ids": pa.array([5, 6]), "dims": 10, "row_norm": "free"}


def block(columns: list[int], values: list[float], gains: tuple[float, float] = (1.0, 1.0)) -> RowBlock:
    """Two rows: one entry, then the others."""
    offsets = np.array([0, 1, len(columns)])
    return RowBlock(offsets, np.array(columns), np.array(values, np.float32), np.array(gains, np.float32))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([block([1, 10], [1, 1])], ExportError, "Column 10 of item row 1 is out of range"),
        ([block([-1, 2], [1, 1])], ExportError, "Column -1 of item row 0"),
        ([block([3, 4, 3, 4], [1, 1, 1, 1])], ExportError, "Column 4 of item row 1 .* twice"),
        ([block([1, 2], [1, np.nan])], NumericError, "item row 1 is not finite"),
        ([block([1, 2], [1, 1], (np.inf, 1))], NumericError, "item row 0 is not finite"),
        ([], ExportError, "tables have 0 rows, the vocabulary has 2"),
        ([block([1, 2], [1, 1])] * 2, ExportError, "more rows than the vocabulary's 2"),
    ],
)
def test_unfit_rows_leave_nothing_behind(tmp_path: Path, rows, error, message: str) -> None:
    with pytest.raises(error, match=message):
        write_export(tmp_path / "e", rows, **ONE)
    assert list(tmp_path.iterdir()) == []


def test_equal_columns_of_two_rows_are_fine_and_float16_overflow_is_not(tmp_path: Path) -> None:
    write_export(tmp_path / "e", [block([3, 3], [1, 1e5])], **ONE)
    with pytest.raises(NumericError, match="row 1 is not finite as float16"):
        write_export(tmp_path / "e", [block([3, 3], [1, 1e5])], **ONE, value_type="float16")
    assert load_export(tmp_path / "e").matrix.data.tolist() == [1, 1e5]  # the older export is still whole


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    (tmp_path / "empty").mkdir()
    write_export(tmp_path / "empty", [block([1, 2], [1, 1])], **ONE)
    write_export(folder, [block([1, 2], [1, 1])], **ONE)
    write_export(folder, [block([1, 2], [1, 7])], **ONE)
    assert load_export(folder).matrix.data.tolist() == [1, 7]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="content that is no export"):
        write_export(tmp_path / "home", [block([1, 2], [1, 1])], **ONE)
    with pytest.raises(ExportError, match="is a file"):
        write_export(tmp_path / "home/thesis.txt", [block([1, 2], [1, 1])], **ONE)
    assert (tmp_path / "home/thesis.txt").read_text() == "years of work"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_export(tmp_path / "e", [block([1, 2], [1, 1])], **ONE)
    return tmp_path / "e"


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda e: (e / "manifest.json").unlink(), "no export at"),
        (lambda e: (e / "manifest.json").write_text('{"kind'), "manifest .* cannot be read"),
        (lambda e: (e / "manifest.json").write_text("[]"), "not the manifest of an export"),
        (lambda e: (e / "manifest.json").write_text('{"kind": "other", "files": {}}'), "not the manifest"),
        (lambda e: edit(e, version=1), "has version 1, this program reads version 2"),
        (lambda e: edit(e, files={}), r"items\.parquet is truncated or changed"),
        (lambda e: edit(e, dims=2), "does not fit its manifest"),
        (lambda e: edit(e, items=3), "does not fit its manifest"),
        (lambda e: edit(e, live_entries=3), "does not fit its manifest"),
        (lambda e: (e / "items.npz").unlink(), r"lacks items\.npz"),
        (lambda e: (e / "items.parquet").write_bytes((e / "items.parquet").read_bytes()[:-9]), "truncated or changed"),
        (lambda e: flip(e / "items.parquet"), r"items\.parquet is truncated or changed"),
    ],
)
def test_a_damaged_export_is_refused(export: Path, damage, message: str) -> None:
    load_export(export)
    damage(export)
    with pytest.raises(ExportError, match=message):
        load_export(export)


def test_the_npz_is_one_that_numpy_and_unzip_accept(export: Path) -> None:
    with zipfile.ZipFile(export / "items.npz") as archive:
        assert archive.testzip() is None
    with np.load(export / "items.npz") as arrays:
        assert arrays["indices"].dtype == arrays["indptr"].dtype == np.int32
        assert arrays["indptr"].tolist() == [0, 1, 2]

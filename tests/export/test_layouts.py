"""Every layout gives back the rows, takes the bytes that its formula says, and refuses what does not fit."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from hse_dist.errors import ExportError
from hse_dist.export.bits import pack, unpack
from hse_dist.export.compact import CompactWriter
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.npy import HEADER_BYTES
from hse_dist.export.recommender import Recommender
from hse_dist.export.sizes import LAYOUTS, WIDTHS, Facts, Storage, choose, n_of_m_bytes, ways


def rows_of(seed: int, rows: int, dims: int, density: float) -> sp.csr_matrix:
    """Columns of falling popularity, empty rows, zeros that are live, negative zeros."""
    rng = np.random.default_rng(seed)
    chance = density * dims * (1 / np.arange(1, dims + 1) ** 0.3) / np.sum(1 / np.arange(1, dims + 1) ** 0.3)
    live = rng.random((rows, dims)) < chance
    live[rng.random(rows) < 0.1] = False
    owner, columns = np.nonzero(live)
    values = rng.normal(size=len(columns)).astype(np.float32)
    values[rng.random(len(columns)) < 0.1] = 0
    values[rng.random(len(columns)) < 0.1] = -0.0
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=rows))])
    return sp.csr_matrix((values, columns, offsets), shape=(rows, dims))


def write(folder: Path, matrix: sp.csr_matrix, form: str, value_type: str = "float32", cut: int = 13) -> dict:
    rows = matrix.shape[0]
    gains = np.linspace(-1, 1, rows).astype(np.float32)
    parts = [matrix[:cut], matrix[cut:]]
    blocks = [
        RowBlock(part.indptr.astype(np.int64), part.indices.astype(np.int64), part.data, some)
        for part, some in zip(parts, (gains[:cut], gains[cut:]), strict=True)
    ]
    ids = pa.array([f"item {i}" for i in range(rows)])
    return write_export(
        folder, blocks, item_ids=ids, dims=matrix.shape[1], row_norm="free", value_type=value_type, form=form
    )


@pytest.mark.parametrize("value_type", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dims", "density"), [(255, 0.2), (256, 0.05), (1000, 0.002), (70_001, 0.0003), (5, 0.5), (40, 0.0)]
)
def test_rows_come_back_and_files_have_the_bytes_of_the_formula(tmp_path, layout, value_type, dims, density):
    matrix = rows_of(dims, 60, dims, density)
    summary = write(tmp_path / "e", matrix, layout, value_type)
    found = load_export(tmp_path / "e")
    assert summary["format"] == found.manifest["format"] == layout
    np.testing.assert_array_equal(found.matrix.indptr, matrix.indptr)
    np.testing.assert_array_equal(found.matrix.indices, matrix.indices)
    expected = matrix.data.astype(value_type).astype(np.float32) + np.float32(0)
    np.testing.assert_array_equal(found.matrix.data.view(np.uint32), expected.view(np.uint32))
    assert found.matrix.indices.dtype == np.int32
    files = list((tmp_path / "e").glob("*.npy"))
    storage = Storage(**{key: value for key, value in found.manifest["storage"].items() if key != "bytes"})
    assert sum(file.stat().st_size - HEADER_BYTES for file in files) == storage.bytes
    assert {file.name for file in files} | {"items.parquet"} == set(found.manifest["files"])
    for file in files:
        assert np.load(file, mmap_mode="r").nbytes == file.stat().st_size - HEADER_BYTES
    assert list((tmp_path / "e").glob(".*")) == []


def test_every_width_of_codes_and_blocks_takes_what_the_formula_says(tmp_path, monkeypatch):
    matrix = rows_of(3, 50, 300, 0.05)
    lengths, columns = np.diff(matrix.indptr).astype(np.int64), matrix.indices.astype(np.int64)
    tried = ways(Facts.of(300, lengths, columns), 2)
    assert len(tried) == 3 + 9 + len(WIDTHS)
    for number, way in enumerate(tried):
        monkeypatch.setattr("hse_dist.export.compact.choose", lambda *_, way=way: way)
        monkeypatch.setattr("hse_dist.export.compact.ENTRIES_AT_A_TIME", 1 + 37 * number)
        write(tmp_path / "e", matrix, "csr", "float16")
        sizes = [file.stat().st_size - HEADER_BYTES for file in (tmp_path / "e").glob("*.npy")]
        assert sum(sizes) == way.bytes, way
        np.testing.assert_array_equal(load_export(tmp_path / "e").matrix.indices, matrix.indices)


def test_facts_of_rows_are_those_of_their_parts():
    matrix = rows_of(4, 40, 500, 0.03)
    lengths, columns = np.diff(matrix.indptr).astype(np.int64), matrix.indices.astype(np.int64)
    cut = int(lengths[:17].sum())
    parts = Facts.of(500, lengths[:17], columns[:cut]) + Facts.of(500, lengths[17:], columns[cut:])
    assert parts == Facts.of(500, lengths, columns)
    # by the definitions, slowly
    rows = [row.indices.tolist() for row in matrix]
    gaps = [b - a - 1 for row in rows for a, b in pairwise([-1, *row])]
    assert parts.codes[2] == sum(1 + gap // 7 for gap in gaps)
    assert parts.blocks == tuple(sum(len({c // w for c in row}) for row in rows) for w in WIDTHS)
    assert parts.longest == lengths.max()


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_expected_facts_are_near_those_of_independent_positions(density):
    live = np.random.default_rng(5).random((300, 4000)) < density
    owner, columns = np.nonzero(live)
    found = Facts.of(4000, np.bincount(owner, minlength=300), columns)
    expected = Facts.expected(300, 4000, found.live, found.longest)
    sizes = {way.layout: way.bytes for way in ways(found, 4)}
    for way in ways(expected, 4):
        if way.layout not in ("delta", "block"):
            assert way.bytes == sizes[way.layout]
    for layout in LAYOUTS:
        assert choose(expected, 4, [layout]).bytes == pytest.approx(choose(found, 4, [layout]).bytes, rel=0.02)


@pytest.mark.parametrize(
    ("matrix", "layout"),
    [
        (rows_of(6, 60, 4000, 0.01), "delta"),
        (sp.csr_matrix(np.random.default_rng(1).random((60, 400)) < 0.5, dtype=np.float32), "bitmap"),
        (sp.csr_matrix(np.ones((60, 400), np.float32)), "block"),
        (sp.csr_matrix(np.eye(60, dtype=np.float32)), "ell"),
        (sp.csr_matrix((np.ones(3, np.float32), ([5] * 3, [0, 99, 254])), shape=(20, 255)), "delta"),
    ],
)
def test_the_smallest_is_the_smallest_of_all(tmp_path, matrix, layout):
    sizes = {}
    for form in LAYOUTS:
        write(tmp_path / form, matrix, form)
        sizes[form] = load_export(tmp_path / form).manifest["storage"]["bytes"]
    assert write(tmp_path / "e", matrix, "smallest")["format"] == layout == min(sizes, key=sizes.get)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (2, 8), (1, 16), (4, 64), (8, 512), (1, 512)])
@pytest.mark.parametrize("dims", [512, 4096])
def test_a_layout_for_n_of_m_columns_would_save_a_twentieth_at_most(dims, n, m, share):
    rng, rows = np.random.default_rng(0), 300
    live = np.zeros((rows, dims // m, m), bool)
    np.put_along_axis(live, rng.random(live.shape).argsort(2)[:, :, :n], values=True, axis=2)
    live &= rng.random(live.shape) < share
    columns = np.nonzero(live.reshape(rows, dims))[1]
    facts = Facts.of(dims, live.reshape(rows, dims).sum(1), columns)
    assert choose(facts, 4).bytes <= (1.05 if share == 1.0 else 1.0) * n_of_m_bytes(rows, dims, len(columns), n, m, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_those_of_the_parquet_files(tmp_path, layout):
    matrix = rows_of(8, 200, 300, 0.05)
    histories = np.array([0, 4, 4, 9]), np.array([3, 8, 100, 20, 1, 2, 150, 199, 7])
    write(tmp_path / "p", matrix, "parquet")
    write(tmp_path / "e", matrix, layout)
    expected = Recommender.load(tmp_path / "p").recommend_rows(*histories, 20)
    for ours, theirs in zip(Recommender.load(tmp_path / "e").recommend_rows(*histories, 20), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 8, 11, 12, 13, 17, 24, 25, 31, 32])
def test_packed_numbers_are_those_bits(bits):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, 48)
    packed = pack(numbers, bits)
    assert packed.dtype == np.uint8 and len(packed) == 6 * bits
    flat = np.unpackbits(packed, bitorder="little").reshape(48, bits)
    assert [sum(int(bit) << place for place, bit in enumerate(line)) for line in flat] == numbers.tolist()
    np.testing.assert_array_equal(unpack(packed, bits), numbers)


def resign(folder: Path) -> None:
    """A manifest for the files as they are: what only someone who means it can do."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_or_changed_file_is_named(tmp_path, layout):
    write(tmp_path / "e", rows_of(9, 40, 300, 0.05), layout)
    for path in sorted((tmp_path / "e").glob("*.npy")):
        content = path.read_bytes()
        for damaged in (content[:-1], content[:50], b"", content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            with pytest.raises(ExportError, match=f"{path.name} is truncated or changed"):
                load_export(tmp_path / "e")
        path.unlink()
        with pytest.raises(ExportError, match=f"lacks {path.name}"):
            load_export(tmp_path / "e")
        path.write_bytes(content)
    load_export(tmp_path / "e")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_were_signed_anew_are_refused_or_read_as_rows(tmp_path, layout):
    folder, rng = tmp_path / "e", np.random.default_rng(11)
    write(folder, rows_of(9, 40, 300, 0.05), layout)
    refused = 0
    for path in sorted(folder.glob("*.npy")):
        content = path.read_bytes()
        for _ in range(15):
            damaged = bytearray(content)
            if rng.random() < 0.2:
                damaged = damaged[: rng.integers(len(damaged))]
            else:
                damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            resign(folder)
            try:
                matrix = load_export(folder).matrix
            except ExportError:
                refused += 1
            else:
                matrix.check_format(full_check=True)
        path.write_bytes(content)
    assert refused > 5


@pytest.mark.parametrize(
    "change", [{"rows": 3}, {"count": 1}, {"parameter": 40}, {"layout": "zip"}, {"live": "9"}, {"value_bytes": 8}]
)
def test_a_storage_that_does_not_fit_is_refused(tmp_path, change):
    write(tmp_path / "e", rows_of(9, 40, 300, 0.05), "delta")
    path = tmp_path / "e/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["storage"].update(change)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ExportError):
        load_export(tmp_path / "e")


def test_an_error_while_rows_come_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), CompactWriter(tmp_path, 10, "float32", "csr") as writer:
        writer.add(np.array([1]), np.array([3]), np.ones(1, np.float32))
        raise KeyError
    assert list(tmp_path.iterdir()) == []

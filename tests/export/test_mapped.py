"""The format `mapped`: answers from its files as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hse_dist import LiveRecommender
from hse_dist.errors import ExportError
from hse_dist.export.checks import describe_file
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.recommender import Recommender
from hse_dist.native.library import library

ITEMS = 500


def write(folder: Path, dims: int, form: str, value_type: str = "float32") -> None:
    """Few columns make long lists, which get an index."""
    rng = np.random.default_rng(1)
    dense = rng.standard_normal((ITEMS, dims)) * (rng.random((ITEMS, dims)) < min(0.5, 6 / dims))
    owner, columns = np.nonzero(dense)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=ITEMS))])
    gains = rng.standard_normal(ITEMS).astype(np.float32)
    ids = pa.array([f"i{j}" for j in range(ITEMS)]) if dims > 100 else pa.array(rng.permutation(ITEMS))
    blocks = []
    for part in np.split(np.arange(ITEMS), [3, 3, 200]):
        here = slice(offsets[part[0]], offsets[part[-1] + 1]) if len(part) else slice(0, 0)
        ends = offsets[part[0] : part[-1] + 2] - offsets[part[0]] if len(part) else np.zeros(1, np.int64)
        blocks.append(RowBlock(ends, columns[here], dense[owner[here], columns[here]].astype("f4"), gains[part]))
    settings = {"item_ids": ids, "dims": dims, "row_norm": "free", "value_type": value_type}
    summary = write_export(folder, blocks, form=form, **settings)
    assert summary["format"] == form and summary["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("value_type", ["float32", "float16"])
@pytest.mark.parametrize("dims", [8, 3000])
def test_it_answers_like_any_other(tmp_path: Path, dims: int, value_type: str) -> None:
    for form in ("mapped", "csr"):
        write(tmp_path / form, dims, form, value_type)
    mapped, other = load_export(tmp_path / "mapped"), load_export(tmp_path / "csr")
    assert (mapped.postings is not None, mapped.by_column is not None) == (dims == 8, dims == 3000)
    assert mapped.content == other.content and mapped.item_ids.equals(other.item_ids)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(mapped.matrix, name), getattr(other.matrix, name))
    np.testing.assert_array_equal(mapped.gains, other.gains)
    histories = [other.item_ids.slice(j, 4).to_pylist() for j in range(0, 100, 9)]
    expected = Recommender(other).recommend_batch(histories, 6)
    for verify in (True, False):
        recommender = Recommender.load(tmp_path / "mapped", verify=verify)
        assert [recommender.recommend(history, 6) for history in histories] == expected
        assert recommender.recommend_batch(histories, 6, seen=True) == Recommender(other).recommend_batch(
            histories, 6, seen=True
        )
    if library() is not None:
        # nothing had to be built
        search = recommender._search
        assert search._index is None or search._index._postings.postings.base is not None
        assert search._sweep.turned == (dims == 3000)
    live = LiveRecommender(tmp_path / "csr")
    version = live.version
    live.reload(tmp_path / "mapped")
    assert live.version.split("-")[1] == version.split("-")[1]


def test_nothing_is_copied(tmp_path: Path) -> None:
    for dims in (8, 3000):
        write(tmp_path / "e", dims, "mapped")
        export = load_export(tmp_path / "e", verify=False)
        arrays = [export.matrix.indptr, export.matrix.indices, export.matrix.data, export.order]
        if export.postings is not None:
            arrays += [getattr(export.postings, name) for name in export.postings.__dataclass_fields__]
        else:
            arrays += [export.by_column.indptr, export.by_column.indices, export.by_column.data]
        for array in arrays:
            while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
                array = array.base
            assert isinstance(array, np.memmap) and not array.flags.writeable
        before = pa.total_allocated_bytes()
        again = load_export(tmp_path / "e", verify=False)
        assert pa.total_allocated_bytes() - before < 2000 and again.gains is not None


def test_what_is_checked_without_checksums(tmp_path: Path) -> None:
    write(tmp_path / "good", 8, "mapped")

    def said(name: str, place: int, number: int, verify: bool) -> str:
        shutil.rmtree(tmp_path / "e", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "e")
        array = np.load(tmp_path / "e" / f"{name}.npy", mmap_mode="r+")
        array[place] = number
        array.flush()
        with pytest.raises(ExportError) as caught:
            load_export(tmp_path / "e", verify=verify)
        return str(caught.value)

    for name, number, what in (
        ("columns", 8, "columns.npy has numbers that are out of range"),
        ("columns", -1, "columns.npy has numbers that are out of range"),
        ("order", ITEMS, "order.npy has numbers that are out of range"),
        ("offsets", 2**30, "offsets.npy does not rise"),
        ("ends", 2**40, "ends.npy does not rise"),
        ("block_ends", 7, "block_ends.npy does not follow"),
        ("scales", -1, "scales.npy has"),
    ):
        assert what in said(name, 3, number, False)
        assert f"{name}.npy is truncated or changed" in said(name, 3, number, True)
    shutil.copytree(tmp_path / "good", tmp_path / "short")
    manifest = json.loads((tmp_path / "short/manifest.json").read_text())
    manifest["storage"]["blocks"] = 1
    np.save(tmp_path / "short/tops.npy", np.load(tmp_path / "short/tops.npy")[:1])
    manifest["files"]["tops.npy"] = describe_file(tmp_path / "short/tops.npy")
    (tmp_path / "short/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"tops\.npy has other blocks"):
        load_export(tmp_path / "short", verify=False)
    content = (tmp_path / "good/values.npy").read_bytes()
    (tmp_path / "good/values.npy").write_bytes(content[:-4])
    with pytest.raises(ExportError, match=r"values\.npy is truncated or changed"):
        load_export(tmp_path / "good", verify=False)


def test_a_description_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "e", 8, "mapped")
    path = tmp_path / "e/manifest.json"
    good = json.loads(path.read_text())
    for change in ({"lists": 3}, {"blocks": -1}, {"live": 5}, {"layout": "csr"}, {"more": 1}, {"lists": True}):
        path.write_text(json.dumps({**good, "storage": {**good["storage"], **change}}))
        with pytest.raises(ExportError, match=r"manifest of the export .* cannot be used"):
            load_export(tmp_path / "e")
    path.write_text(json.dumps({**good, "live_entries": 10, "storage": {**good["storage"], "live": 10}}))
    with pytest.raises(ExportError, match="does not fit its manifest"):
        load_export(tmp_path / "e")

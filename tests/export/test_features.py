"""The rows of users' features as files of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.errors import ExportError, NumericError
from hse_dist.export.format import RowBlock, load_export
from hse_dist.files import write_json
from tests.export.served import VALUES, Made, block_of

FORMS = ("parquet", "smallest", "mapped")


@pytest.fixture(scope="module")
def made() -> Made:
    return Made.random(1)


@pytest.mark.parametrize("value_type", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_files_hold_the_rows_and_are_in_the_manifest(made: Made, tmp_path: Path, form: str, value_type: Any) -> None:
    folder = made.write(tmp_path / "e", form=form, value_type=value_type)
    export = load_export(folder)
    assert export.features is not None and export.features.names == ("age", "tags")
    assert [part.to_pylist() for part in export.features.values] == [
        VALUES[name].to_pylist() for name in ("age", "tags")
    ]
    dense = np.concatenate([made.features["age"], made.features["tags"]])
    np.testing.assert_array_equal(export.features.matrix.toarray(), dense)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, rows in made.features.items():
        assert manifest["features"][name] == {"rows": len(rows), "live_entries": (rows != 0).sum()}
        path = folder / f"feature-{name}.parquet"
        assert manifest["files"][path.name]["bytes"] == path.stat().st_size
        assert (
            pq.read_schema(path).field("values").type.value_type
            == {"float32": pa.float32(), "float16": pa.float16()}[value_type]
        )


def test_content_covers_features_and_is_that_of_the_items_without_any(made: Made, tmp_path: Path) -> None:
    digests = {form: load_export(made.write(tmp_path / form, form=form)).content for form in FORMS}
    assert len(set(digests.values())) == 1
    folder = tmp_path / "parquet"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["content"]
    write_json(folder / "manifest.json", manifest)
    assert load_export(folder).content == digests["parquet"]  # from the numbers
    none = load_export(made.write(tmp_path / "none", features=None))
    assert "features" not in none.manifest and none.features is None
    assert none.content == load_export(made.write(tmp_path / "empty", features={})).content
    values, rows = made.features["age"].copy(), made.sources()
    values[0, :2] += 1
    others = {
        "none": {},
        "one": {"age": rows["age"]},
        "name": {"years": rows["age"], "tags": rows["tags"]},
        "value": {**rows, "age": (pa.array([18, 24, 7]), rows["age"][1])},
        "row": {**rows, "age": (VALUES["age"], [block_of(values, np.ones(3, np.float32))])},
    }
    found = {name: load_export(made.write(tmp_path / "o", features=one)).content for name, one in others.items()}
    assert len({*found.values(), digests["parquet"]}) == 6 and found["none"] == none.content


def test_rows_that_do_not_fit_are_named(made: Made, tmp_path: Path) -> None:
    def one(columns: list[int], values: list[float]) -> dict[str, Any]:
        block = RowBlock(np.array([0, 1, len(columns)]), np.array(columns), np.array(values, np.float32), np.ones(2))
        return {"features": {"age": (pa.array([1, 2]), [block])}}

    with pytest.raises(ExportError, match="Column 300 of age value row 1 is out of range"):
        made.write(tmp_path / "e", **one([1, 300], [1, 1]))
    with pytest.raises(NumericError, match="value or gain of age value row 1 is not finite"):
        made.write(tmp_path / "e", **one([1, 3], [1, np.nan]))
    with pytest.raises(ExportError, match="3 rows, the vocabulary has 5 age values"):
        made.write(tmp_path / "e", features={"age": (pa.array(range(5)), made.sources()["age"][1])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "not described"),
        ({"../age": {"rows": 3, "live_entries": 9}}, "not described"),
        ({"Age": {"rows": 3, "live_entries": 9}}, "not described"),
        ({"x" * 65: {"rows": 3, "live_entries": 9}}, "not described"),
        ({"age": 3}, "not described"),
        ({"age": {"rows": 3}}, "3 rows and None live"),
        ({"age": {"rows": True, "live_entries": 9}}, "True rows"),
        ({"age": {"rows": 2, "live_entries": 9}}, r"feature-age\.parquet has 3 values"),
        ({"age": {"rows": 3, "live_entries": 9}}, "live entries are others"),
        ({"colour": {"rows": 3, "live_entries": 9}}, r"lacks feature-colour\.parquet"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    made: Made, tmp_path: Path, features: Any, message: str
) -> None:
    folder = made.write(tmp_path / "e")
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**manifest, "features": features})
    with pytest.raises(ExportError, match=message):
        load_export(folder)


@pytest.mark.parametrize("form", ["csr", "mapped"])
def test_a_file_that_is_changed_is_refused(made: Made, tmp_path: Path, form: str) -> None:
    folder = made.write(tmp_path / "e", form=form)
    path = folder / "feature-tags.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(ExportError, match=r"feature-tags\.parquet is truncated or changed"):
        load_export(folder)
    path.unlink()
    with pytest.raises(ExportError, match=r"lacks feature-tags\.parquet"):
        load_export(folder, verify=False)

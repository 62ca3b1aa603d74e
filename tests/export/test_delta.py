"""A delta makes exactly the full export, and nothing of any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist import LiveRecommender, Recommender
from hse_dist.errors import ExportError, HseError
from hse_dist.export.delta import KIND, apply_delta, load_delta, write_delta
from hse_dist.export.format import Export, RowBlock, load_export, write_export

Rows = list[dict[int, float]]


def block_of(rows: Rows, gains: np.ndarray) -> RowBlock:
    offsets = np.cumsum([0, *map(len, rows)])
    columns = np.array([column for row in rows for column in row], np.int64)
    values = np.array([value for row in rows for value in row.values()], np.float32)
    return RowBlock(offsets, columns, values, gains)


def made(rows: Rows, gains: list[float], ids: list[Any], dims: int, size: int = 5) -> dict[str, Any]:
    """What `write_export` and `write_delta` take; blocks of `size` rows."""
    numbers = np.array(gains, np.float32)
    parts = [slice(first, first + size) for first in range(0, len(rows), size)]
    blocks = [block_of(rows[part], numbers[part]) for part in parts]
    return {"blocks": blocks, "item_ids": pa.array(ids), "dims": dims, "row_norm": "free"}


def same(one: Export, other: Export) -> None:
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one.matrix, name), getattr(other.matrix, name))
    assert one.matrix.data.tobytes() == other.matrix.data.tobytes() and one.matrix.shape == other.matrix.shape
    assert one.gains.tobytes() == other.gains.tobytes() and one.item_ids.equals(other.item_ids)
    assert one.content == other.content
    for name in ("items", "dims", "user_entries", "live_entries", "negative_gains", "row_norm", "value_type"):
        assert one.manifest[name] == other.manifest[name], name


row = st.dictionaries(st.integers(0, 11), st.sampled_from([-1.5, 0.0, 0.25, 1.0, 3.0]), max_size=5)
tables = st.lists(row, min_size=1, max_size=12)


@settings(deadline=None)
@given(
    before=tables,
    after=tables,
    kept=st.lists(st.booleans(), min_size=12, max_size=12),
    grown=st.integers(0, 3),
    texts=st.booleans(),
    base_form=st.sampled_from(["parquet", "mapped", "delta"]),
    user_entries=st.sampled_from([None, 3]),
    reused=st.booleans(),
)
def test_it_makes_the_full_export(
    tmp_path_factory, before, after, kept, grown, texts, base_form, user_entries, reused
) -> None:
    folder = tmp_path_factory.mktemp("delta")
    after = [before[j] if j < len(before) and kept[j] else row for j, row in enumerate(after)]
    ids = [f"i{j}é" if texts else 10 * j for j in range(12)]
    new_ids = [("new" if texts else 999), *ids[1:]] if reused else ids
    old = made(before, [1.0 + j % 3 for j in range(len(before))], ids[: len(before)], 12)
    new = made(after, [1.0 + j % 3 if kept[j] else -2.0 for j in range(len(after))], new_ids[: len(after)], 12 + grown)
    write_export(folder / "old", **old, form=base_form)
    write_export(folder / "new", **new, user_entries=user_entries)
    base, full = load_export(folder / "old"), load_export(folder / "new")
    blocks = new.pop("blocks")
    told = write_delta(folder / "d", base, blocks, **new, user_entries=user_entries)
    delta = load_delta(folder / "d")
    same(apply_delta(base, delta), full)
    differ = [j for j in range(min(len(before), len(after)))
              if before[j] != after[j] or ids[j] != new_ids[j] or old_gain(j) != new_gain(j, kept)]  # fmt: skip
    assert (told["changed"], told["new"]) == (len(differ), max(0, len(after) - len(before)))
    assert delta.rows.tolist() == differ + list(range(len(before), len(after)))
    assert told["bytes"] == sum(file.stat().st_size for file in (folder / "d").iterdir())
    updated, expected = Recommender(base).update(folder / "d"), Recommender(full)
    histories = [[item] for item in [*ids, *new_ids]]
    assert updated.version == expected.version
    assert updated.recommend_batch(histories, 4, seen=True) == expected.recommend_batch(histories, 4, seen=True)


def old_gain(j: int) -> float:
    return 1.0 + j % 3


def new_gain(j: int, kept: list[bool]) -> float:
    return old_gain(j) if kept[j] else -2.0


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Exports a, b and c, and the deltas ab and bc."""
    rng = np.random.default_rng(0)
    rows: Rows = [{int(c): float(c + 1) for c in rng.permutation(9)[:3]} for _ in range(30)]
    for before, name in (("", "a"), ("a", "b"), ("b", "c")):
        table = made(rows, [1.0] * len(rows), list(range(len(rows))), 9)
        write_export(tmp_path / name, **table, form="mapped")
        if before:
            write_delta(tmp_path / (before + name), load_export(tmp_path / before), **table)
        rows = [*rows, {1: 2.0}]
        rows[4] = {2: float(len(rows))}
    return tmp_path


def test_deltas_follow_one_another_and_are_refused_elsewhere(there: Path) -> None:
    first = Recommender.load(there / "a")
    first.prepare()
    second = first.update(there / "ab")
    third = second.update(there / "bc")
    full = Recommender.load(there / "c")
    assert third.version == full.version and third._prepared
    assert third.recommend([1, 2, 31], 9) == full.recommend([1, 2, 31], 9)
    assert first.recommend([1, 2], 9) == Recommender.load(there / "a").recommend([1, 2], 9)
    for wrong, delta in ((first, "bc"), (third, "bc"), (second, "ab")):
        with pytest.raises(ExportError, match=r"is of the export \w{12}, this one is \w{12}\. Apply"):
            wrong.update(there / delta)


def test_a_live_recommender_takes_deltas(there: Path) -> None:
    live = LiveRecommender(there / "a")
    old = live.current
    version = live.reload(there / "ab")
    assert live.reload() == version == live.version
    assert version.startswith("2-") and live.current is not old
    assert live.current.recommend([1, 30], 9) == Recommender.load(there / "b").recommend([1, 30], 9)
    with pytest.raises(ExportError, match="The delta is of the export"):
        live.reload(there / "ab")
    assert live.version == version


def forge(folder: Path, table: pa.Table | None = None, **changes: Any) -> None:
    """Change the rows, and vouch for them in the manifest."""
    if table is not None:
        pq.write_table(table, folder / "items.parquet")
    content = (folder / "items.parquet").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["files"] = {"items.parquet": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_was_changed_is_refused(there: Path) -> None:
    base, folder = load_export(there / "a"), there / "ab"
    table = pq.read_table(folder / "items.parquet")
    good = (folder / "manifest.json").read_bytes()

    def column(name: str, values: list) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(place, table.schema.field(name), [pa.array(values, table.schema.field(name).type)])

    def refused(message: str, forged: pa.Table | None = None, **changes: Any) -> None:
        (folder / "manifest.json").write_bytes(good)
        pq.write_table(table, folder / "items.parquet")
        forge(folder, forged, **changes)
        with pytest.raises(ExportError, match=message):
            apply_delta(base, load_delta(folder))

    refused("its checksum is another", column("gain", [3.0, 1.0]))
    refused("its rows do not rise", column("row", [30, 4]))
    refused("its rows do not rise", column("row", [4, 31]))
    refused("lacks rows that are new", column("row", [4, 5]))
    refused("ids are missing, or there twice", column("item", [4, 5]))
    refused("has changed = 99", changed=99)
    refused("does not fit its manifest", dims=1)
    refused("live entries are others", live_entries=7)
    refused("version 9, this program reads version 1", version=9)
    refused("is not the manifest of a delta", kind="hse_dist export")
    (folder / "manifest.json").write_bytes(good)
    (folder / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(ExportError, match=r"items\.parquet is truncated or changed"):
        load_delta(folder)
    with pytest.raises(ExportError, match="There is no delta at"):
        load_delta(there / "nowhere")
    with pytest.raises(ExportError, match="not the manifest of an export"):
        load_export(folder)


def test_a_delta_replaces_a_delta_alone(there: Path) -> None:
    base = load_export(there / "a")
    table = made([{1: 1.0}], [1.0], [0], 9)
    assert KIND in (there / "ab/manifest.json").read_text()
    assert write_delta(there / "ab", base, **table)["changed"] == 1
    for folder in ("a", "."):
        with pytest.raises(ExportError, match="has content that is no delta"):
            write_delta(there / folder, base, **table)
    with pytest.raises(HseError, match="The items are string, those of the export to compare with int64"):
        write_delta(there / "x", base, **made([{1: 1.0}], [1.0], ["a"], 9))
    with pytest.raises(ExportError, match="Column 9 of item row 0"):
        write_delta(there / "x", base, **made([{9: 1.0}], [1.0], [0], 9))
    assert not (there / "x").exists()
    same_again = made([{}], [1.0], [0], 9)
    write_export(there / "one", **same_again)
    assert write_delta(there / "x", load_export(there / "one"), **same_again)["changed"] == 0
    assert sp.issparse(apply_delta(load_export(there / "one"), load_delta(there / "x")).matrix)


def test_the_job_writes_one(tmp_path: Path) -> None:
    from hse_dist.data.prepare import prepare
    from hse_dist.export.writer import export
    from hse_dist.testing.runs import small_config
    from hse_dist.train.driver import train

    first, second = (
        small_config(tmp_path / "run", tmp_path / "data", train__epochs=1, **changes)
        for changes in ({}, {"export__values": "float16", "export__folder": str(tmp_path / "full")})
    )
    prepare(first)
    train(first)
    export(first)
    export(second)
    told = export(second, since=str(tmp_path / "run/export"))
    assert told["folder"] == str(tmp_path / "run/delta") and told["new"] == 0 and told["changed"] > 0
    full = Recommender.load(tmp_path / "full")
    assert Recommender.load(tmp_path / "run/export").update(told["folder"]).version == full.version
    with pytest.raises(HseError, match="no export at"):
        export(second, since=str(tmp_path / "c"), to=str(tmp_path / "x"))

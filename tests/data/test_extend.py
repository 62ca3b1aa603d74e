"""A prepared folder that is extended holds what one of the whole log holds, and old rows keep their items."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.cli.main import main
from hse_dist.config import Config
from hse_dist.data import prepare as module
from hse_dist.data import vocabulary
from hse_dist.data.extend import INTERACTIONS, LEDGER, Extended
from hse_dist.data.generations import Generations, next_rows
from hse_dist.data.made_with import is_prepared
from hse_dist.data.popularity import thirds
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.source import find_files
from hse_dist.errors import ConfigError, DataError

Rows = dict[str, list[Any]]
TIMED = {"timestamp": "timestamp"}
MORE = {"extendable": True, "min_user_count": 2, "min_item_count": 2, "buckets": 2, "users_per_row_group": 64}


def days(random_log: Callable[..., Rows], count: int, text: bool = False) -> list[Rows]:
    """Days in each of which there are items that were not there before, and users of before."""
    found = []
    for day in range(count):
        rows = random_log(120, 30 + 15 * day, 500, seed=day)
        rows["timestamp"] = [time + 25 * day for time in rows["timestamp"]]
        found.append(
            {key: list(map(str, value)) if text and key.endswith("id") else value for key, value in rows.items()}
        )
    return found


def histories(folder: Path | str) -> dict[str, dict[Any, tuple[list[Any], list[Any]]]]:
    """split → user → (items, targets) by their ids."""
    prepared = Prepared(folder)
    ids = prepared.item_ids().to_pylist()
    found: dict[str, dict[Any, tuple[list[Any], list[Any]]]] = {}
    for split in ("train", "valid", "test"):
        of = found[split] = {}
        for path in {path for path, _, _ in prepared.row_groups(split)}:
            table = prepared.open(path).read().to_pydict()
            targets = table.get("target", [[]] * len(table["user"]))
            for user, rows, target in zip(table["user"], table["rows"], targets, strict=True):
                of[user] = ([ids[row] for row in rows], [ids[row] for row in target])
    return found


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_an_extension_is_a_preparation_of_the_whole_log(tmp_path, make_config, write_log, random_log, text, timed):
    parts = days(random_log, 3, text)
    columns = {"rating": "rating", **(TIMED if timed else {})}
    settings = {**MORE, "columns": columns, "min_rating": 2.0}
    versions = []
    for day, rows in enumerate(parts):
        write_log(tmp_path / "log" / f"day={day}" / "part.parquet", rows)
        config = make_config(tmp_path / f"data-{day}", tmp_path / "log", **settings)
        result = prepare(config, extend=versions[-1] if versions else None)
        versions.append(config.data.folder)
        if day:
            assert result["new_files"] == 1 and result["new_items"] > 0
            before, after = Prepared(versions[-2]), Prepared(versions[-1])
            assert after.item_ids()[: before.items] == before.item_ids()
            assert result["new_items"] == after.items - before.items
            added = after.counts()[before.items :]
            assert (np.diff(added) <= 0).all()
    whole = make_config(tmp_path / "whole", tmp_path / "log", **settings)
    prepare(whole)
    found, wanted = histories(versions[-1]), histories(whole.data.folder)
    if not timed:  # histories are then in the order of the rows, which differs
        for of in (*found.values(), *wanted.values()):
            of.update({user: (sorted(rows), sorted(targets)) for user, (rows, targets) in of.items()})
    assert found == wanted
    counts = [
        dict(zip(p.item_ids().to_pylist(), p.counts().tolist(), strict=True))
        for p in map(Prepared, (versions[-1], whole.data.folder))
    ]
    assert counts[0] == counts[1]
    assert not np.array_equal(Prepared(versions[-1]).item_ids(), Prepared(whole.data.folder).item_ids())
    lineage = Prepared(versions[-1]).manifest["lineage"]
    assert lineage == [{"fingerprint": p.fingerprint, "items": p.items} for p in map(Prepared, versions[:-1])]


def test_thirds_do_not_depend_on_the_order_of_rows():
    counts = np.sort(np.random.default_rng(0).integers(0, 50, 300))[::-1]
    order = np.random.default_rng(1).permutation(300)
    falling, mixed = thirds(counts), thirds(counts[order])
    assert (np.diff(falling) >= 0).all()
    for third in range(3):
        assert sorted(counts[order][mixed == third]) == sorted(counts[falling == third])


@pytest.fixture
def first(tmp_path, make_config, write_log, random_log) -> Config:
    """A prepared day, and a second one in its log that is not read yet."""
    one, two = days(random_log, 2)
    write_log(tmp_path / "log" / "day=0" / "part.parquet", one)
    config: Config = make_config(tmp_path / "data", tmp_path / "log", columns=TIMED, **MORE)
    prepare(config)
    write_log(tmp_path / "log" / "day=1" / "part.parquet", two)
    return config


def again(config: Config, folder: Path, make_config: Callable[..., Config], **changes: Any) -> Config:
    return make_config(folder, config.data.source, **{"columns": TIMED, **MORE, **changes})


def test_only_new_files_are_read_and_what_was_deleted_stays(tmp_path, first, make_config):
    before = histories(first.data.folder)
    shutil.rmtree(tmp_path / "log" / "day=0")
    second = again(first, tmp_path / "next", make_config)
    assert prepare(second, extend=first.data.folder)["new_files"] == 1
    after = histories(second.data.folder)
    assert all(set(before["train"][user][0]) <= set(after["train"][user][0]) for user in before["train"])
    assert set(Extended(second.data.folder).files) == {
        str(tmp_path / "log" / f"day={day}" / "part.parquet") for day in range(2)
    }
    assert histories(first.data.folder) == before and is_prepared(first)


def test_a_changed_file_is_read_again_and_nothing_counts_twice(tmp_path, first, make_config):
    (tmp_path / "log" / "day=1" / "part.parquet").unlink()
    path = tmp_path / "log" / "day=0" / "part.parquet"
    os.utime(path, ns=(1, 1))
    second = again(first, tmp_path / "next", make_config)
    assert prepare(second, extend=first.data.folder)["new_items"] == 0
    assert histories(second.data.folder) == histories(first.data.folder)
    third = again(first, tmp_path / "third", make_config)
    with pytest.raises(DataError, match="nothing to extend"):
        prepare(third, extend=second.data.folder)
    assert not Path(third.data.folder).exists()


def test_a_failure_in_the_middle_leaves_the_old_version(tmp_path, first, make_config, monkeypatch):
    before = histories(first.data.folder)
    second = again(first, tmp_path / "next", make_config)

    def fail(*_: Any) -> Any:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_vocabulary", fail)
        with pytest.raises(DataError, match="disk is full"):
            prepare(second, extend=first.data.folder)
    assert not Path(second.data.folder).exists() and histories(first.data.folder) == before
    prepare(second, extend=first.data.folder)
    assert is_prepared(second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_item_count": 3}, r"other settings: data\.min_item_count = 2 \(now 3\)"),
        ({"ids": "string"}, r"other settings: data\.ids"),
        ({"folder": None}, "in its own place"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, first, make_config, changes, message):
    folder = tmp_path / "next"
    if "folder" in changes:
        folder, changes = Path(first.data.folder), {}
    with pytest.raises(DataError, match=message):
        prepare(again(first, folder, make_config, **changes), extend=first.data.folder)


def test_other_types_of_ids_or_times_are_refused(tmp_path, first, make_config, write_log, random_log):
    new = tmp_path / "other" / "part.parquet"
    second = make_config(tmp_path / "next", new.parent, columns=TIMED, **MORE)
    rows = random_log(50, 10, 100)
    write_log(new, {**rows, "item_id": list(map(str, rows["item_id"]))})
    with pytest.raises(DataError, match=r"item ids of type large_string.*int64"):
        prepare(second, extend=first.data.folder)
    write_log(new, {**rows, "timestamp": np.array(rows["timestamp"], "datetime64[s]")})
    with pytest.raises(DataError, match="dates"):
        prepare(second, extend=first.data.folder)
    write_log(new, {**rows, "timestamp": [time + 0.5 for time in rows["timestamp"]]})
    prepare(second, extend=first.data.folder)


def test_a_folder_that_keeps_nothing_or_too_little_is_refused(tmp_path, first, make_config):
    second = again(first, tmp_path / "next", make_config)
    plain = again(first, tmp_path / "plain", make_config, extendable=False)
    prepare(plain)
    assert not (tmp_path / "plain" / LEDGER).exists() and not (tmp_path / "plain" / INTERACTIONS).exists()
    with pytest.raises(DataError, match=r"data\.extendable"):
        prepare(second, extend=plain.data.folder)
    files = find_files(str(Path(first.data.folder) / INTERACTIONS))
    Path(max(files, key=lambda file: file.size).path).unlink()
    with pytest.raises(DataError, match=r"its ledger says"):
        prepare(second, extend=first.data.folder)
    (Path(first.data.folder) / LEDGER).write_text("[]")
    with pytest.raises(DataError, match="no ledger"):
        prepare(second, extend=first.data.folder)


def test_a_log_that_does_not_grow_is_not_extendable(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.extendable"):
        make_config(tmp_path / "data", "catalog:ml-100k", extendable=True)


def test_the_command_line_extends(tmp_path, first, capfd):
    config = tmp_path / "mine.toml"
    config.write_text(
        f'[data]\nsource = "{first.data.source}"\nfolder = "{tmp_path / "next"}"\nextendable = true\n'
        "min_user_count = 2\nmin_item_count = 2\nbuckets = 2\nusers_per_row_group = 64\n"
        '[data.columns]\ntimestamp = "timestamp"\n[cluster]\nworkers = 0\n'
    )
    assert main(["prepare", str(config), "--extend", first.data.folder]) == 0
    assert '"new_files": 1' in capfd.readouterr().out


@pytest.mark.parametrize("block", [5, vocabulary.BLOCK_IDS])
def test_items_that_nobody_takes_any_more_lose_their_rows_and_new_ones_take_them(
    tmp_path, make_config, write_log, monkeypatch, block
):
    monkeypatch.setattr(vocabulary, "BLOCK_IDS", block)

    def write(day: int, items: list[int]) -> Rows:
        rng = np.random.default_rng(day)
        rows = {"user_id": rng.integers(0, 60, 600).tolist(), "item_id": rng.choice(items, 600).tolist()}
        rows["timestamp"] = (86_400 * 10 * day + rng.integers(0, 86_400, 600)).tolist()
        write_log(tmp_path / "log" / f"day={day}" / "part.parquet", rows)
        return rows

    catalogues = [list(range(30)), list(range(10, 33)), list(range(12, 40)), [*range(12, 40), 3]]
    versions: list[Prepared] = []
    results = []
    for day, items in enumerate(catalogues):
        write(day, items)
        config = make_config(
            tmp_path / f"data-{day}", tmp_path / "log", columns=TIMED, extendable=True, evict_after_days=5, buckets=2
        )
        results.append(prepare(config, extend=versions[-1].folder if versions else None))
        versions.append(Prepared(config.data.folder))
    known: dict[tuple[int, int], Any] = {}
    for day, version in enumerate(versions):
        ids, generations = version.item_ids().to_pylist(), version.generations()
        assert len(ids) == len(set(ids)) == len(generations.since) and generations.since.max() <= day
        for row, item in enumerate(ids):
            assert (
                known.setdefault((row, int(generations.since[row])), item) == item
            )  # a number and a version: one item
        live = {item for row, item in enumerate(ids) if not generations.evicted[row]}
        assert live == set(catalogues[day]) if day else live == set(range(30))
        used = {
            item
            for of in histories(version.folder).values()
            for rows, targets in of.values()
            for item in rows + targets
        }
        assert used == live
    # 10 items go and 3 come; 2 go and 7 come, which fills what was free; one of those that went comes back
    assert [result.get("evicted_rows") for result in results] == [None, 7, 2, 1]
    assert [len(version.counts()) for version in versions] == [30, 30, 30, 30]
    last = versions[-1]
    row = last.item_ids().to_pylist().index(3)
    assert last.generations().since[row] == 3 and last.counts()[row] > 0
    user = next(iter(histories(versions[0].folder)["train"]))
    assert user in histories(last.folder)["train"]


def test_an_item_that_comes_back_to_its_row_is_a_new_one_there():
    rows, gone = next_rows(Generations.first(3), np.array([0, -1, 1]), np.array([5, 4]), np.ones(2, bool), 1)
    assert (
        rows.tolist() == [0, 2] and gone.since.tolist() == [0, 1, 0] and gone.evicted.tolist() == [False, True, False]
    )
    # nothing happens to rows without an item as time goes by; then two come, of which one was there
    rows, still = next_rows(gone, np.array([0, -1, 1]), np.array([5, 4]), np.ones(2, bool), 2)
    assert still.since.tolist() == [0, 1, 0] and still.evicted.tolist() == [False, True, False]
    rows, back = next_rows(still, np.array([0, 1, 2]), np.array([5, 9, 4, 7]), np.ones(4, bool), 3)
    assert rows.tolist() == [0, 1, 2, 3] and back.since.tolist() == [0, 3, 0, 3] and not back.evicted.any()


def test_generations_against_a_slow_reference():
    rng = np.random.default_rng(5)
    slots: list[int | None] = []  # of each row its item
    since: list[int] = []
    generations = Generations.first(0)
    for version in range(12):
        items = np.sort(rng.choice(40, 20, replace=False))
        counts, used = rng.integers(0, 9, 20), rng.random(20) < 0.9
        remembered = [slot if slot is not None else -1 for slot in slots]
        places = np.array([list(items).index(item) if item in items else -1 for item in remembered], np.int64)
        rows, generations = next_rows(generations, places, counts, used, version)
        for row, item in enumerate(slots):
            if item is not None and item not in items:
                slots[row], since[row] = None, version
        new = sorted((-counts[i], i) for i in range(20) if used[i] and items[i] not in slots)
        for _, index in new:
            row = slots.index(None) if None in slots else len(slots)
            if row == len(slots):
                slots.append(None)
                since.append(version)
            slots[row], since[row] = int(items[index]), version
        found = [next((int(items[i]) for i in range(20) if rows[i] == row), None) for row in range(len(slots))]
        assert found == slots and generations.since.tolist() == since
        assert generations.evicted.tolist() == [slot is None for slot in slots]


def test_generations_and_lineages_that_cannot_be_true_are_one_message(tmp_path, first, make_config):
    second = again(first, tmp_path / "next", make_config)
    prepare(second, extend=first.data.folder)
    folder = Path(second.data.folder)
    table = pq.read_table(folder / "vocabulary.parquet")
    place = table.schema.get_field_index("since")
    for wrong in (pa.nulls(table.num_rows, pa.uint32()), pa.array(["x"] * table.num_rows)):
        pq.write_table(table.set_column(place, "since", wrong), folder / "vocabulary.parquet")
        with pytest.raises(DataError, match="its generations are"):
            Prepared(folder).generations()
    pq.write_table(table.drop_columns(["evicted"]), folder / "vocabulary.parquet")
    with pytest.raises(DataError, match="its generations are"):
        Prepared(folder).generations()
    manifest = json.loads((folder / "manifest.json").read_text())
    for lineage in ([{"fingerprint": "x", "items": 3}], [{"items": 3}], {"a": 1}):
        (folder / "manifest.json").write_text(json.dumps({**manifest, "lineage": lineage}))
        with pytest.raises(DataError, match="lineage"):
            Prepared(folder)
    pq.write_table(table, folder / "vocabulary.parquet")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "lineage": []}))
    with pytest.raises(DataError, match="of version 1, and the folder is version 0"):
        Prepared(folder).generations()
    larger = [{**manifest["lineage"][0], "items": manifest["items"] + 1}]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "lineage": larger}))
    with pytest.raises(DataError, match="followed each other"):
        Prepared(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    with pytest.raises(DataError, match="not made by this version"):
        Extended(folder)

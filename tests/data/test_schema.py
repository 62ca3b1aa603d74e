from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.config import DataSettings, parse_config
from hse_dist.data import schema as schema_module
from hse_dist.data.reader import read
from hse_dist.data.schema import plan
from hse_dist.data.source import find_files
from hse_dist.errors import DataError


def settings_of(source: Path, **data: Any) -> DataSettings:
    columns = {"timestamp": "timestamp", **data.pop("columns", {})}
    columns = {key: value for key, value in columns.items() if value is not None}
    return parse_config({"data": {"source": str(source), "columns": columns, **data}}, "a test").data


def load(source: Path, **data: Any) -> list[tuple[Any, ...]]:
    """Everything that the fragments of a log give, as tuples."""
    settings = settings_of(source, **data)
    schema, fragments = plan(find_files(settings.source, settings.format), settings)
    rows: list[tuple[Any, ...]] = []
    for fragment in fragments:
        for batch in read(fragment, schema, settings.columns, settings.min_rating):
            assert batch.schema == schema.arrow()
            rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return rows


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


LOG = {"user_id": [1, 2, 2], "item_id": [7, 8, 9], "timestamp": [30, 20, 10], "rating": [5.0, 1.0, 4.0]}


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.tsv", "log.jsonl"])
def test_every_format_gives_the_same_rows(tmp_path: Path, write_log: Any, name: str) -> None:
    path = write_log(tmp_path / name, LOG)
    assert load(path) == [(1, 7, 30), (2, 8, 20), (2, 9, 10)]
    assert load(path, columns={"rating": "rating"}, min_rating=4.0) == [(1, 7, 30), (2, 9, 10)]
    assert load(path, ids="string", columns={"timestamp": None}) == [("1", "7"), ("2", "8"), ("2", "9")]


def test_a_typed_header_and_extra_columns_of_recbole(tmp_path: Path) -> None:
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n5\t6\t3\t881250949\n")
    assert load(path) == [(5, 6, 881250949.0)]


def test_compressed_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"user_id,item_id,timestamp\na,b,1\n"))
    assert load(tmp_path) == [("a", "b", 1.0)]


def test_hive_folders_give_columns(tmp_path: Path) -> None:
    for day, country in ((3, "be"), (4, "nl")):
        parquet(tmp_path / f"timestamp={day}" / f"user_id={country}%20x" / "a.parquet", item_id=[1, 2])
    assert load(tmp_path) == [("be x", 1, 3), ("be x", 2, 3), ("nl x", 1, 4), ("nl x", 2, 4)]


def test_dates_become_microseconds_and_integers_of_all_widths_one_type(tmp_path: Path) -> None:
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    micros = int(moment.replace(tzinfo=datetime.UTC).timestamp()) * 10**6
    parquet(
        tmp_path / "a.parquet", user_id=pa.array([1], pa.int8()), item_id=pa.array([2], pa.uint32()), timestamp=[moment]
    )
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\n3,4,2020-01-02T03:04:05\n")
    (tmp_path / "c.jsonl").write_text('{"user_id": 5, "item_id": 6, "timestamp": "2020-01-02 03:04:05"}\n')
    assert load(tmp_path) == [(1, 2, micros), (3, 4, micros), (5, 6, micros)]
    encoded = pa.array(["x"]).dictionary_encode()
    assert load(parquet(tmp_path / "d.parquet", user_id=encoded, item_id=["y"], timestamp=[0.5])) == [("x", "y", 0.5)]


def test_large_parquet_files_are_split_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"user_id": list(range(50)), "item_id": list(range(50))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    monkeypatch.setattr(schema_module, "FRAGMENT_BYTES", 1)
    settings = settings_of(tmp_path, columns={"timestamp": None})
    fragments = plan(find_files(settings.source), settings)[1]
    assert [fragment.row_groups for fragment in fragments] == [(0,), (1,), (2,), (3,), (4,)]
    assert load(tmp_path, columns={"timestamp": None}) == [(i, i) for i in range(50)]


def test_a_missing_column_lists_those_there_are(tmp_path: Path, write_log: Any) -> None:
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        with pytest.raises(
            DataError, match=rf"{name} has no column who\. It has user_id, item_id, timestamp, rating\."
        ):
            load(write_log(tmp_path / name, LOG), columns={"user": "who"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1.5]}, "column user_id of .* is double; it must be integer or string"),
        ({"item_id": [[1]]}, "column item_id of .* is list.*; it must be integer or string"),
        ({"timestamp": ["soon"]}, "column timestamp of .* is string; it must be numeric or temporal"),
        ({"rating": ["good"]}, "column rating of .* is string; it must be numeric"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    log: dict[str, Any] = {"user_id": [1], "item_id": [1], "timestamp": [1], "rating": [1.0], **columns}
    with pytest.raises(DataError, match=message):
        load(parquet(tmp_path / "a.parquet", **log), columns={"rating": "rating"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1, None]}, r"column user_id of .* has null ids \(1 in 2"),
        ({"item_id": ["a", None]}, "column item_id of .* has null ids"),
        ({"timestamp": [1, None]}, "column timestamp of .* has null timestamps"),
        ({"timestamp": [1.0, float("nan")]}, "column timestamp of .* has null timestamps"),
    ],
)
def test_nulls_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    log: dict[str, Any] = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2], **columns}
    with pytest.raises(DataError, match=message):
        load(parquet(tmp_path / "a.parquet", **log))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user_id,item_id,timestamp\n1,2,3\n,2,3\n"),
        ("a.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"item_id": 2, "timestamp": 3}\n'),
    ],
)
def test_nulls_in_text_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"user_id of .* has null ids"):
        load(tmp_path / name)
    with pytest.raises(DataError, match=r"user_id of .* has null ids"):
        load(tmp_path / name, ids="string" if name == "a.csv" else "auto")


def test_an_id_type_that_changes_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hse_dist.data.formats.BLOCK_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,timestamp\n" + "1,2,3\n" * 1000 + "x,2,3\n")
    with pytest.raises(DataError, match=r"a\.csv cannot be read.*data\.ids"):
        load(path)
    assert load(path, ids="string")[-1] == ("x", "2", 3.0)
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\nx,2,3\n")
    with pytest.raises(DataError, match=r"user_id is integer in .*a\.csv and string in .*b\.csv.*data\.ids"):
        load(tmp_path)
    with pytest.raises(DataError, match="holds ids that are not int64"):
        load(tmp_path / "b.csv", ids="integer")


@pytest.mark.parametrize("content", [b"", b"user_id,item_id,timestamp\n", gzip.compress(b"")])
def test_an_empty_log_is_refused_and_an_empty_file_beside_others_has_no_types(tmp_path: Path, content: bytes) -> None:
    name = "a.csv.gz" if content.startswith(b"\x1f") else "a.csv"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="The log is empty"):
        load(tmp_path)
    (tmp_path / "c.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
    assert load(tmp_path) == [(1, 2, 3.0)]
    (tmp_path / "c.csv").unlink()
    empty = parquet(tmp_path / "b.parquet", user_id=pa.array([], pa.int64()), item_id=pa.array([], pa.int64()))
    with pytest.raises(DataError, match="The log is empty"):
        load(empty, columns={"timestamp": None})


@pytest.mark.parametrize("damage", ["cut", "no parquet", "empty", "page"])
def test_a_corrupt_parquet_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.parquet"
    table = pa.table({name: list(range(2000)) for name in ("user_id", "item_id", "timestamp")})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    half = len(content) // 2
    damaged = {
        "cut": content[:half],
        "no parquet": b"hello",
        "empty": b"",
        "page": content[:100] + b"\xff" * 400 + content[500:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"broken\.parquet (is not a readable Parquet file|cannot be read)"):
        load(path)


def test_text_with_uneven_lines_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2,3\n1,2\n")
    (tmp_path / "a.jsonl").write_text('{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": \n')
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            load(tmp_path / name)

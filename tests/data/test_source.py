from __future__ import annotations

from pathlib import Path

import pytest

from hse_dist.data.source import expand, find_files
from hse_dist.errors import DataError


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for name in (
        "b.csv",
        "day=1/a.parquet",
        "day=2/a.parquet",
        "_SUCCESS",
        ".hidden/x.csv",
        "README.txt",
        "deep/er/c.jsonl.gz",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(found: list, folder: Path) -> list[str]:
    return [str(Path(file.path).relative_to(folder)) for file in found]


def test_a_folder_gives_known_endings_in_order_and_passes_over_hidden_files(logs: Path) -> None:
    found = find_files(str(logs))
    assert names(found, logs) == ["b.csv", "day=1/a.parquet", "day=2/a.parquet", "deep/er/c.jsonl.gz"]
    assert [file.format for file in found] == ["csv", "parquet", "parquet", "jsonl"]
    assert [file.partition for file in found[:2]] == [{}, {"day": "1"}] and found[3].compressed


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["b.csv"]),
        ("day=*/*.parquet", ["day=1/a.parquet", "day=2/a.parquet"]),
        ("day=[!1]", ["day=2/a.parquet"]),
        ("**/*.jsonl.gz", ["deep/er/c.jsonl.gz"]),
        ("*/a.parquet", ["day=1/a.parquet", "day=2/a.parquet"]),
        ("?.csv", ["b.csv"]),
    ],
)
def test_globs(logs: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_files(f"{logs}/{pattern}"), logs) == expected
    assert names(find_files(f"file://{logs}/{pattern}"), logs) == expected


def test_an_fsspec_address_is_listed_and_opened() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/some/logs/day=3/a.csv", b"user,item\n1,2\n")
    try:
        for source in ("memory://some/logs", "memory://some/logs/*/a.csv", "memory://some/logs/day=3/a.csv"):
            (file,) = find_files(source, schemes=("memory",))
            assert file.stream().read() == b"user,item\n1,2\n" and file.partition == {"day": "3"}
            assert file.name == "memory://some/logs/day=3/a.csv"
    finally:
        system.rm("/some", recursive=True)


def test_variables_are_filled_in_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSE_TEST_LOGS", "/logs")
    monkeypatch.delenv("HSE_TEST_NOWHERE", raising=False)
    assert expand("$HSE_TEST_LOGS/${HSE_TEST_LOGS}/x.csv") == "/logs//logs/x.csv"
    for source in ("$HSE_TEST_NOWHERE/x.csv", "${HSE_TEST_NOWHERE}/x.csv"):
        with pytest.raises(DataError, match=r"variable HSE_TEST_NOWHERE is not set.*data\.source"):
            expand(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "No log is named"),
        ("{}/nothing.csv", r"There is no log at .*nothing\.csv"),
        ("{}/*.orc", r"No file matches .*\*\.orc"),
        ("{}/nowhere/*.csv", "No file matches"),
        ("{}/README.txt", r"format of .*README\.txt cannot be told"),
        ("{}/README*", r"No file matches.*one of the endings|No file matches"),
    ],
)
def test_what_is_not_there_is_named(logs: Path, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_files(source.format(logs))


def test_a_folder_without_logs_says_which_endings_count(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"endings \.parquet"):
        find_files(str(tmp_path))
    assert [file.format for file in find_files(str(tmp_path), "tsv")] == ["tsv"]


@pytest.mark.parametrize(
    "source", ["http://127.0.0.1:1/x.csv", "simplecache::s3://x/y", "memory://x", "FILE:///etc/passwd", "gs::file://x"]
)
def test_a_scheme_that_the_settings_do_not_name_is_not_opened(source: str) -> None:
    with pytest.raises(DataError, match=r"scheme is not one that may be opened.*data\.schemes"):
        find_files(source)


def test_a_scheme_that_nobody_knows_is_named() -> None:
    with pytest.raises(DataError, match="Neither pyarrow nor fsspec can open"):
        find_files("nosuchscheme://x/y", schemes=("nosuchscheme",))

"""No test here leaves the machine: archives and the wheel are made up, with a sha256 to match."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hse_dist.data import catalog, movielens
from hse_dist.errors import DataError

ROWS = np.random.default_rng(0).integers(1, 50, (200, 4))
U_DATA = "".join("\t".join(map(str, row)) + "\n" for row in ROWS.tolist())
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + U_DATA
FLAGS = [[0, 0, 0, 1, 1, 1, *[0] * 13], [0] * 19, [1, *[0] * 18]]
TITLES = ["Toy Story (1995)|01-Jan-1995", "Für (a) Elise (1996) (V)|01-Jan-1996", "unknown|"]
U_ITEM = "".join(
    f"{item}|{title}||http://x|{'|'.join(map(str, flags))}\n"
    for item, title, flags in zip((1, 3, 2), TITLES, FLAGS, strict=True)
)
ITEMS = {
    "item_id": [1, 2, 3],
    "release_year": [1995, None, None],
    "class": [["Animation", "Children's", "Comedy"], ["unknown"], []],
}
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
ITEM += "1\tToy Story\t1995\tAnimation Children's Comedy\n2\tunkonwn\tunkonwn\tunknown\n3\tFür (a) Elise (1996)\tV\t\n"
U_USER = "1|24|M|technician|85711\n2|53|F|other|01002\n3|7|M|none|T8H1N\n"
USER = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n" + U_USER.replace("|", "\t")
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> tuple[bytes, str]:
        raise DataError("not reachable in a test.")

    for name, text in (("", U_DATA), ("/users", U_USER), ("/items", U_ITEM)):
        table = movielens.TABLES["ml-100k" + name]
        content = table.digest(table.parse(text.encode("latin-1")))
        monkeypatch.setitem(movielens.TABLES, "ml-100k" + name, replace(table, content=content))
    monkeypatch.setattr(catalog, "download_archive", refused)
    monkeypatch.setattr(catalog, "download_wheel", refused)
    monkeypatch.delenv("HSE_DATA", raising=False)
    monkeypatch.delenv("HSE_DATA_ML_100K", raising=False)


def archive(path: Path, member: str, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../evil.txt", "must not be unpacked")
        file.writestr(member, text)
    return path


def fetched(root: Path) -> list[list[int]]:
    table = pq.read_table(catalog.fetch("ml-100k", root))
    assert table.column_names == ["user_id", "item_id", "rating", "timestamp"]
    return np.stack([column.to_numpy() for column in table.columns], axis=1).tolist()


def test_every_form_of_the_named_file_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "u.data").write_text(U_DATA)
    (tmp_path / "ml-100k.inter").write_text(INTER)
    archive(tmp_path / "ml-100k.zip", "ml-100k/u.data", U_DATA)
    archive(tmp_path / "recbole-1.2.1-py3-none-any.whl", MEMBER, INTER)
    for name in (*movielens.TABLES["ml-100k"].files, *catalog.ARCHIVES):
        monkeypatch.setenv("HSE_DATA_ML_100K", str(tmp_path / name))
        assert fetched(tmp_path / f"root of {name}") == ROWS.tolist()
    monkeypatch.setenv("HSE_DATA_ML_100K", str(tmp_path))
    assert fetched(tmp_path / "root of the folder") == ROWS.tolist()
    monkeypatch.delenv("HSE_DATA_ML_100K")
    monkeypatch.setenv("HSE_DATA", str(tmp_path / "all"))
    archive(tmp_path / "all" / "ml-100k" / "ml-100k.zip", "ml-100k/u.data", U_DATA)
    assert fetched(tmp_path / "root of all") == ROWS.tolist()
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path.parent / "evil.txt").exists()


def test_users_and_items_are_the_same_in_both_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MEMBER.rpartition("/")[0]
    for number, (name, members) in enumerate(
        {
            "ml-100k.zip": {"ml-100k/u.user": U_USER.encode(), "ml-100k/u.item": U_ITEM.encode("latin-1")},
            "recbole.whl": {f"{folder}/ml-100k.user": USER.encode(), f"{folder}/ml-100k.item": ITEM.encode()},
            "u.data": {},
        }.items()
    ):
        root = tmp_path / str(number)
        root.mkdir()
        if members:
            with zipfile.ZipFile(root / name, "w") as file:
                for member, content in members.items():
                    file.writestr(member, content)
        else:  # the log is named; the others lie beside it
            (root / name).write_text(U_DATA)
            (root / "ml-100k.user").write_text(USER)
            (root / "u.item").write_text(U_ITEM, encoding="latin-1")
        monkeypatch.setenv("HSE_DATA_ML_100K", str(root / name))
        users, items = (pq.read_table(catalog.fetch(f"ml-100k/{what}", root)) for what in ("users", "items"))
        assert items.to_pydict() == ITEMS
        assert [list(row.values()) for row in users.to_pylist()][1:] == [
            [2, 53, "F", "other", "01002"],
            [3, 7, "M", "none", "T8H1N"],
        ]
        assert users.column_names == ["user_id", "age", "gender", "occupation", "zip_code"]
    (root / "u.item").unlink()
    (root / "ml-100k" / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"no such file\. It may be one of u\.item, ml-100k\.item"):
        catalog.fetch("ml-100k/items", root)


def test_the_archive_comes_before_the_wheel_and_the_cache_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = archive(tmp_path / "a.whl", MEMBER, INTER).read_bytes()
    calls: list[str] = []

    def give_wheel() -> tuple[bytes, str]:
        calls.append("wheel")
        return wheel, "the wheel"

    def give_wrong_archive() -> tuple[bytes, str]:
        calls.append("archive")
        return archive(tmp_path / "b.zip", "ml-100k/u.data", U_DATA[:-20] + "1\n").read_bytes(), "the archive"

    monkeypatch.setattr(catalog, "download_wheel", give_wheel)
    assert fetched(tmp_path) == ROWS.tolist() and calls == ["wheel"]
    assert fetched(tmp_path) == ROWS.tolist() and calls == ["wheel"]
    monkeypatch.setattr(catalog, "download_archive", give_wrong_archive)
    (tmp_path / "ml-100k" / "interactions.parquet").unlink()
    assert fetched(tmp_path) == ROWS.tolist() and calls == ["wheel", "archive", "wheel"]


def test_other_content_is_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content, message in [
        ("u.data", U_DATA.replace("\t7\t", "\t8\t", 1).encode(), "have sha256 .* not"),
        ("u.data", b"<html>not found</html>", "does not hold ml-100k"),
        ("x.zip", b"PK\x03\x04 and then nothing", "does not hold ml-100k"),
        ("y.zip", archive(tmp_path / "z.zip", "other.txt", "x").read_bytes(), "none of ml-100k/u.data"),
    ]:
        (tmp_path / name).write_bytes(content)
        monkeypatch.setenv("HSE_DATA_ML_100K", str(tmp_path / name))
        with pytest.raises(DataError, match=message):
            catalog.fetch("ml-100k", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_what_was_tried_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"(?s)could not be fetched:.*not reachable.*not reachable.*HSE_DATA_ML_100K"):
        catalog.fetch("ml-100k", tmp_path)
    with pytest.raises(DataError, match="no data set 'ml-7'"):
        catalog.fetch("ml-7", tmp_path)
    monkeypatch.setenv("HSE_DATA_ML_100K", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"HSE_DATA_ML_100K names .*nowhere"):
        catalog.fetch("ml-100k", tmp_path)


def test_the_wheel_is_downloaded_by_pip_and_failures_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    folder = tmp_path / "wheels"
    wheel = archive(folder / "recbole-1.2.1-py3-none-any.whl", MEMBER, INTER)
    with zipfile.ZipFile(wheel, "a") as file:
        metadata = "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"
        file.writestr("recbole-1.2.1.dist-info/METADATA", metadata)
        file.writestr("recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(folder)), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    content, origin = catalog.download_wheel()
    assert content == wheel.read_bytes() and "recbole-1.2.1" in origin
    with pytest.raises(DataError, match="pip download recbole==9: "):
        catalog.download_wheel("recbole==9")
    with pytest.raises(DataError, match="nowhere"):
        catalog.download_archive(f"file://{tmp_path}/nowhere.zip")
    assert catalog.download_archive(f"file://{wheel}")[0] == wheel.read_bytes()

"""An export of six items whose neighbours and columns are known."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from hse_dist.cli.main import main
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.inspect.look import histogram, inspect, nearest

ROWS = [{0: 1.0, 1: 0.5}, {0: 2.0, 1: 1.0}, {0: -1.0}, {3: 1.0}, {3: 1.0, 4: 1.0, 5: 1.0, 0: 0.1}, {}]


@pytest.fixture
def folder(tmp_path):
    offsets = np.cumsum([0, *map(len, ROWS)])
    columns = np.array([column for row in ROWS for column in row])
    values = np.array([value for row in ROWS for value in row.values()], np.float32)
    block = RowBlock(offsets, columns, values, np.ones(6, np.float32))
    ids = pa.array(["a", "b", "[bold]", "d", "e", "f"])
    write_export(tmp_path / "export", [block], item_ids=ids, dims=6, row_norm="free")
    return tmp_path / "export"


def test_nearest_items_and_columns_are_those_of_the_matrix(folder):
    found = inspect(load_export(folder), "a", 3)
    assert [one["item"] for one in found["nearest"]] == ["b", "e"]
    assert found["nearest"][0]["cosine"] == pytest.approx(1.0)
    assert found["nearest"][1]["cosine"] == pytest.approx(0.1 / np.sqrt(1.25 * 3.01))
    first, second = found["columns"]
    assert (first["column"], first["item"], first["items"]) == (0, "a", 4)
    assert [one["item"] for one in first["sharing"]] == ["b", "[bold]", "e"]
    assert second["sharing"] == [{"item": "b", "value": 1.0}]
    assert (found["live_entries"], found["rows"], found["dims"]) == (10, 6, 6)
    rows = {one["entries"]: one["rows"] for one in found["histogram"]}
    assert rows == {"0": 1, "1": 2, "2–3": 2, "4–7": 1}


def test_gains_below_zero_turn_the_order_around(folder):
    export = load_export(folder)
    found = nearest(export.matrix, -np.ones(6, np.float32), 0, 3)
    assert found == [(2, pytest.approx(1 / np.sqrt(1.25)))]


def test_histogram_of_nothing():
    assert histogram(np.empty(0, np.int64)) == []


def test_the_command_shows_ids_as_they_are(folder, capfd):
    assert main(["inspect", str(folder), "-k", "4"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["item"] == "a"
    assert "[bold]" in shown.err and "+1.000" in shown.err


@pytest.mark.parametrize("words", [["--item", "z"], []])
def test_what_is_not_there_is_the_users_mistake(folder, words, capfd):
    place = folder if words else folder.parent
    assert main(["inspect", str(place), *words]) == 2
    assert "Traceback" not in capfd.readouterr().err

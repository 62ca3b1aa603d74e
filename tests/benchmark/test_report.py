"""How a benchmark's findings are shown."""

from __future__ import annotations

import json
import math
import struct

import pytest

from hse_dist.benchmark.report import Chart, Curve, Panels, Report, as_text, finish, open_folder, spread
from hse_dist.errors import UserError


def report(**changes) -> Report:
    parts = {
        "kind": "wire",
        "figures": {"ratio": 0.01},
        "rows": [{"table": "packed", "ms": spread([2.0, 1.0, 9.0])}, {"table": "dense", "ms": None}],
        "shape": {"rows": 10},
        "notes": ["an estimate"],
    }
    return Report(**{**parts, **changes})


def test_spread_is_the_median_with_the_extremes():
    assert spread([5, 1, 2, 9]) == {"median": 3.5, "lowest": 1, "highest": 9}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (spread([38.123, 36.94, 41.2]), "38.1 (36.9 – 41.2)"),
        (spread([1234.5, 0.5, 9876543.2]), "1 234 (0 – 9 876 543)"),
        (1_000_000, "1 000 000"),
        (1234.6, "1 235"),
        (0.01234, "0.0123"),
        (-12.34, "-12.3"),
        (1.5e-6, "1.5e-06"),
        (0.0, "0"),
        (math.nan, "–"),
        (None, "–"),
        ("packed", "packed"),
        (True, "True"),
    ],
)
def test_cells_show_three_digits_and_whole_thousands(value, text):
    assert as_text(value) == text


def test_result_has_the_figures_at_its_top_and_says_where_they_come_from(capsys):
    result = finish(report(), None)
    assert (result["kind"], result["ratio"], result["notes"]) == ("wire", 0.01, ["an estimate"])
    assert result["table"][0]["ms"] == {"median": 2.0, "lowest": 1.0, "highest": 9.0}
    assert set(result["versions"]) == {"torch", "torchrec", "fbgemm", "ray", "pyarrow", "numpy"}
    assert all(result["versions"].values())
    assert result["cores"] >= 1 and result["processor"] and result["device"] == "cpu"
    shown = capsys.readouterr()
    assert shown.out == "" and "2.00 (1.00 – 9.00)" in shown.err and "- an estimate" in shown.err


def test_file_holds_what_is_printed(tmp_path):
    result = finish(report(), tmp_path)
    assert json.loads((tmp_path / "wire.json").read_text()) == result
    assert [path.name for path in tmp_path.iterdir()] == ["wire.json"]


@pytest.mark.parametrize(
    "chart",
    [
        Chart("t", "bytes", "", {"a": [1e3, 2e3], "b": [1e6, math.nan]}, ["2 ranks", "4 ranks"], "bars", log_y=True),
        Chart("t", "bytes", "ranks", {"a": [0.0, 0.0]}, [2.0, 4.0], "bars", target=3.0),
        Chart("t", "s", "ranks", {"a": [1.0, 2.0, 3.0]}, [2.0, 32.0, 1024.0], "lines", log_x=True, target=20.0),
        Chart("t", "s", "stage", {"a": [1.0, 2.0]}, ["first", "second"], "lines"),
    ],
)
def test_pictures_of_every_kind(chart, tmp_path):
    finish(report(chart=chart), tmp_path)
    head = (tmp_path / "wire.png").read_bytes()[:24]
    assert head.startswith(b"\x89PNG") and struct.unpack(">II", head[16:]) == (1200, 720)


def test_further_tables_are_shown_and_records_are_not(capsys):
    more = {"tables": {"bytes_needed": [{"method": "hse", "bytes": 128}], "none": []}}
    result = finish(report(**more, records={"cells": [{"seed": 17}]}), None)
    assert result["bytes_needed"] == [{"method": "hse", "bytes": 128}] and result["none"] == []
    assert result["cells"] == [{"seed": 17}]
    shown = capsys.readouterr().err
    assert "bytes needed" in shown and "128" in shown and "17" not in shown


def test_panels_draw_what_can_be_compared(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    texts = []
    original = Axes.text
    monkeypatch.setattr(Axes, "text", lambda *words, **more: texts.append(words[3]) or original(*words, **more))
    good = Curve("ours", [(64.0, 0.40, 0.38, 0.42), (128.0, 0.5, 0.5, 0.5)], strong=True)
    level = Curve("full", [(6728.0, 0.52, 0.52, 0.52)], level=True)
    poor = Curve("popular", [(4.0, 0.1, 0.1, 0.1)], level=True)
    panels = {"a": [good, level, poor], "b": [good], "c": [poor]}
    finish(report(chart=Panels("t", "nDCG", "bytes", panels, [64.0, 128.0])), tmp_path)
    assert (tmp_path / "wire.png").read_bytes().startswith(b"\x89PNG")
    assert texts == ["full, 6 728 bytes", "below the picture: popular 0.100", "popular, 4 bytes"]


def test_folder_that_cannot_be_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (lambda path: open_folder(path), lambda path: finish(report(), path)):
        with pytest.raises(UserError, match=r"--folder = '.*file"):
            act(tmp_path / "file")

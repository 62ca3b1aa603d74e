"""What lies between the command line's words and the functions that do the work."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from hse_dist.benchmark.report import Chart, Report
from hse_dist.cli import benchmarks
from hse_dist.cli.main import main
from hse_dist.export.format import RowBlock, write_export


@pytest.fixture
def folder_of(tmp_path):
    """`folder_of(ids)` writes an export of four items; items 0 and 1 share a column, and so do 2 and 3."""

    def write(ids: pa.Array) -> str:
        block = RowBlock(np.arange(5), np.array([0, 0, 1, 1]), np.ones(4, np.float32), np.ones(4, np.float32))
        write_export(tmp_path / "export", [block], item_ids=ids, dims=4, row_norm="unit")
        return str(tmp_path / "export")

    return write


@pytest.mark.parametrize(
    ("ids", "asked", "history", "items", "unknown"),
    [
        (pa.array([10, -3, 30, 40]), "10, 99,x,", [10, 99, "x"], [-3, 30], [99, "x"]),
        (pa.array([10, -3, 30, 40]), "-3", [-3], [10, 30], []),
        (pa.array(["a", "7", "c", "d"]), "7,99", ["7", "99"], ["a", "c"], ["99"]),
    ],
)
def test_recommend_takes_ids_of_the_exports_own_type(folder_of, capfd, ids, asked, history, items, unknown):
    assert main(["recommend", folder_of(ids), f"--items={asked}", "-k", "2"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer == {"history": history, "items": items, "scores": [1.0, 0.0], "unknown": unknown}


def test_recommend_from_a_folder_that_is_no_export_is_the_users_mistake(tmp_path, capfd):
    assert main(["recommend", str(tmp_path), "--items", "1"]) == 2
    shown = capfd.readouterr()
    assert shown.out == "" and str(tmp_path) in shown.err and "Traceback" not in shown.err


def test_benchmark_prints_its_figures_and_leaves_a_file_and_a_picture(tmp_path, capfd, monkeypatch):
    asked = {}

    def measure(kind, options, folder):
        asked.update(kind=kind, **options)
        chart = Chart("title", "milliseconds", "", {"packed": [1.0]}, ["here"], "bars")
        return Report("step", {"speedup": 2.5}, [{"table": "packed"}], {"rows": 7}, ["missed"], chart)

    monkeypatch.setattr(benchmarks, "measure", measure)
    assert main(["benchmark", "step", "--rows", "7", "--folder", str(tmp_path / "out")]) == 0
    shown = capfd.readouterr()
    answer = json.loads(shown.out)
    assert (asked["kind"], asked["rows"], asked["device"]) == ("step", 7, "cpu") and "folder" not in asked
    assert answer["speedup"] == 2.5 and "packed" in shown.err and "missed" in shown.err
    assert json.loads((tmp_path / "out" / "step.json").read_text()) == answer
    assert (tmp_path / "out" / "step.png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_refuses_a_folder_that_cannot_be_before_it_measures(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(benchmarks, "measure", lambda *words: pytest.fail("it measured"))
    (tmp_path / "file").write_text("")
    assert main(["benchmark", "step", "--folder", str(tmp_path / "file")]) == 2
    shown = capfd.readouterr()
    assert shown.out == "" and "--folder" in shown.err and "Traceback" not in shown.err


def test_a_baseline_leaves_its_metrics_beside_those_of_the_run(tmp_path, capfd):
    log, settings = tmp_path / "log.csv", tmp_path / "run.toml"
    generator = np.random.default_rng(0)
    users = [f"{user},{item}" for user in range(60) for item in np.unique(generator.zipf(1.6, 25) % 30)]
    log.write_text("user_id,item_id\n" + "\n".join(users) + "\n")
    settings.write_text(
        f'[run]\nfolder = "{tmp_path}/run"\n[data]\nsource = "{log}"\nfolder = "{tmp_path}/data"\n'
        "[data.split]\nvalid = 0.2\ntest = 0.2\n[cluster]\nworkers = 0\n"
    )
    assert main(["prepare", str(settings)]) == 0
    for words, stem in [(["ease"], "test-ease"), (["hse", "--bytes", "40"], "test-hse-40")]:
        capfd.readouterr()
        assert main(["evaluate", str(settings), "--baseline", *words]) == 0
        answer = json.loads(capfd.readouterr().out)
        assert answer["baseline"] == words[0] and (tmp_path / "run" / "evaluation" / f"{stem}-users.parquet").exists()
        assert json.loads((tmp_path / "run" / "evaluation" / f"{stem}.json").read_text()) == answer
    assert answer["bytes_per_item"] <= 40
    assert main(["evaluate", str(settings), "--baseline", "hse"]) == 2
    assert "needs a budget of bytes" in capfd.readouterr().err

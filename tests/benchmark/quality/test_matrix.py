"""The matrix on a made-up log: everything is measured once, what fails is kept, and other commands may help."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from hse_dist.benchmark.quality import benchmark_quality, matrix, plan, settings, worker
from hse_dist.benchmark.quality.plan import Request
from hse_dist.benchmark.quality.store import Store
from hse_dist.benchmark.report import finish
from hse_dist.cli.main import main
from hse_dist.config import load_config
from hse_dist.errors import ConfigError, DataError

TOML = """
[data]
source = "synthetic"
buckets = 1

[data.synthetic]
users = 300
items = 90
mean_history = 14

[tables.item]
live = 8

[sparsity.budget]
ceiling = 24

[sparsity.schedule]
interval = 6

[sparsity.local_inverse]
regularization = 10.0
entries = 20

[train]
epochs = 1
batch_size = 32
negatives = 40
"""


@pytest.fixture
def configs(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    return str(tmp_path)


def load_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def run(tmp_path: Path, configs: str, **options):
    return benchmark_quality(**{"data": ("tiny",), "configs": configs, "folder": tmp_path / "out", **options})


class Counting(worker.Worker):
    """A worker that counts, and that makes up what it would have computed."""

    computed: list[str]
    outcome = staticmethod(lambda cell: {"state": "failed", "error": "no luck", "seconds": 0.1})

    def compute(self, cell):
        self.computed.append(f"{cell.method} {cell.budget} {cell.seed}")
        return self.outcome(cell)


@pytest.fixture
def counting(monkeypatch) -> type[Counting]:
    monkeypatch.setattr(Counting, "computed", [], raising=False)
    monkeypatch.setattr(matrix, "Worker", Counting)
    return Counting


def made_up(cell):
    """A result that JSON and the tables take."""
    numbers = {"ndcg@100": 0.5, "recall@20": 0.4, "recall@50": 0.4, "coverage": 0.9, "bytes_per_item": 64.0}
    return {"state": "done", "result": numbers, "seconds": 0.1}


def test_from_a_command_to_a_table_a_picture_and_one_line(tmp_path, configs, capfd):
    line = "benchmark quality --data tiny --methods popularity,ease,item-knn,ours,ours-start --bytes 64"
    line += f" --configs {configs} --folder {tmp_path}/out"
    assert main(line.split()) == 0
    first = json.loads(capfd.readouterr().out)
    assert (first["measured"], first["kept"], first["failed"], first["left"]) == (5, 0, 0, 0)
    cells = {cell["method"]: cell for cell in first["cells"]}
    assert set(cells) == {"popularity", "ease", "item-knn", "ours", "ours-start"}
    assert {"data", "method", "bytes_per_item", "ndcg@100", "recall@20", "seconds", "seed"} <= set(cells["ours"])
    assert cells["ours"]["bytes_per_item"] <= 64 and cells["ease"]["bytes_per_item"] > 64
    assert all(0 < cell["ndcg@100"] <= 1 and cell["seconds"] > 0 for cell in cells.values())
    out = tmp_path / "out"
    assert (out / "quality.png").stat().st_size > 0 and len(list((out / "quality/cells").iterdir())) == 5
    assert len(list((out / "quality/users").iterdir())) == 5, "metrics of users, for paired comparisons"
    assert list((out / "quality/runs").iterdir()) == [], "a run is removed when its cell is done"
    assert {row["method"] for row in first["table"]} == set(cells)

    assert main(line.split()) == 0
    again = json.loads(capfd.readouterr().out)
    assert (again["measured"], again["kept"]) == (0, 5) and again["cells"] == first["cells"]


def test_nothing_is_computed_twice_and_failures_only_when_asked(tmp_path, configs, counting, capfd):
    options = {"methods": ("popularity", "ours-start"), "bytes": (64, 128), "seeds": (0, 1)}
    report = run(tmp_path, configs, **options)
    whole = ["popularity None", "ours-start 64", "ours-start 128"]
    assert counting.computed == [f"{name} {seed}" for seed in (0, 1) for name in whole], (
        "first seeds first, cheap first"
    )
    assert report.figures["failed"] == 6 and report.records["cells"] == [] and "no luck" in report.notes[0]
    assert "table" in finish(report, None)

    run(tmp_path, configs, **options)
    assert len(counting.computed) == 6, "a failure was tried again without being asked"
    counting.outcome = staticmethod(made_up)
    report = run(tmp_path, configs, retry=True, **options)
    assert len(counting.computed) == 12 and report.figures["failed"] == 0
    assert len(report.records["cells"]) == 6
    run(tmp_path, configs, retry=True, **options)
    assert len(counting.computed) == 12, "what is done was computed again"
    run(tmp_path, configs, **{**options, "bytes": (64, 256)})
    assert counting.computed[12:] == ["ours-start 256 0", "ours-start 256 1"]


def test_what_the_picture_leaves_out_makes_no_picture(tmp_path, configs, counting):
    counting.outcome = staticmethod(made_up)
    report = run(tmp_path, configs, methods=("ours-row",), bytes=(64,))
    assert report.chart is None and len(report.rows) == 1 and finish(report, tmp_path)["measured"] == 1


def test_time_ends_between_cells_and_what_is_left_is_said(tmp_path, configs, counting, monkeypatch):
    clock = iter(range(0, 10_000, 50))  # 50 s pass between two looks
    monkeypatch.setattr(matrix, "monotonic", lambda: next(clock))
    counting.outcome = staticmethod(made_up)
    report = run(tmp_path, configs, methods=("ours-start",), bytes=(64, 128, 256), minutes=2)
    assert (report.figures["measured"], report.figures["left"]) == (2, 1)
    assert any("1 of 3 cells are left" in note for note in report.notes)
    shown = run(tmp_path, configs, methods=("ours-start",), bytes=(64, 128, 256), show=True)
    assert (shown.figures["measured"], shown.figures["kept"], shown.figures["left"]) == (0, 2, 1)


def test_a_result_holds_for_its_settings_alone(tmp_path, configs, counting, monkeypatch):
    counting.outcome = staticmethod(made_up)
    options = {"methods": ("ours", "popularity"), "bytes": (64,)}
    run(tmp_path, configs, **options)
    assert len(counting.computed) == 2
    monkeypatch.setitem(settings.OURS, "tiny", {64: ("train.learning_rate=0.02",), 128: ("train.epochs=9",)})
    run(tmp_path, configs, **options)
    assert counting.computed[2:] == ["ours 64 0"], "another rate is another cell; of popularity nothing changed"
    monkeypatch.setitem(settings.OURS, "tiny", {})
    (tmp_path / "tiny.toml").write_text(TOML + "log_every = 3\n[cluster]\ncpus_per_worker = 2\n", encoding="utf-8")
    run(tmp_path, configs, **options)
    assert len(counting.computed) == 3, "settings that change no result"
    (path,) = (path for path in (tmp_path / "out/quality/cells").glob("tiny.ours.*") if "0.02" not in path.read_text())
    kept = json.loads(path.read_text())
    kept["settings"]["model.input_dropout"] = 0.5  # as if the default had been another one then
    kept["settings"]["model.gone"] = 1
    path.write_text(json.dumps(kept))
    run(tmp_path, configs, **options)
    assert counting.computed[3:] == ["ours 64 0"]


def test_a_cell_learns_from_a_wide_start_that_is_made_once(tmp_path, configs, monkeypatch):
    for budget in (64, 128):
        monkeypatch.setitem(settings.TAUGHT, ("tiny", budget), ("train.negatives=100",))
    monkeypatch.setattr(plan, "TEACHER_BYTES", 256)
    options = {"methods": ("ours",), "bytes": (64, 128, 256)}
    report = run(tmp_path, configs, **options)
    assert report.figures["failed"] == 0 and len(report.records["cells"]) == 3
    (teacher,) = (tmp_path / "out/quality/teachers").iterdir()
    assert load_json(teacher / "config.json")["tables"]["item"]["live"] == 32
    cells = [load_json(path)["settings"] for path in sorted((tmp_path / "out/quality/cells").iterdir())]
    lives = [cell.get("teacher.tables.item.live") for cell in cells]
    assert sorted(lives, key=str) == [32, 32, None], "the teacher's own budget has none"
    monkeypatch.setitem(settings.OURS, "tiny", {256: ("sparsity.local_inverse.regularization=20.0",)})
    assert run(tmp_path, configs, show=True, **options).figures["left"] == 3, "another teacher gives other results"


def test_cells_of_another_command_are_left_to_it(tmp_path, configs, counting):
    counting.outcome = staticmethod(made_up)
    options = {"methods": ("popularity", "ours-start"), "bytes": (64,)}
    request = Request(("tiny",), options["methods"], (64,), None, Path(configs))
    store = Store(tmp_path / "out/quality")
    cells = matrix.make_cells(request, store, matrix.open_data(request, store))
    with store.lock(cells[0].name) as mine:
        assert mine
        report = run(tmp_path, configs, **options)
    assert counting.computed == ["ours-start 64 0"] and report.figures["left"] == 1
    run(tmp_path, configs, **options)
    assert counting.computed[1:] == ["popularity None 0"]


@pytest.fixture
def cell(tmp_path, configs):
    request = Request(("tiny",), ("popularity",), (64,), None, Path(configs))
    store = Store(tmp_path / "out/quality")
    (cell,) = matrix.make_cells(request, store, matrix.open_data(request, store))
    return cell


def dies(folder, cell):
    os._exit(7)


def sleeps(folder, cell):
    time.sleep(60)


@pytest.mark.parametrize(("act", "message"), [(dies, "code 7"), (sleeps, "longer than 1 s")])
def test_a_cell_cannot_take_the_matrix_with_it(tmp_path, cell, monkeypatch, act, message):
    with worker.Worker(tmp_path / "out/quality", 1.0) as mine:
        monkeypatch.setattr(worker, "compute", act)
        mine._context = worker.mp.get_context("fork")  # so that the process has what was put in place here
        outcome = mine.compute(cell)
        assert outcome["state"] == "failed" and message in outcome["error"]
        monkeypatch.setattr(worker, "compute", lambda folder, cell: made_up(cell))
        assert mine.compute(cell)["state"] == "done", "the next cell gets a new process"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ("ours", "magic")}, ConfigError, r"no method magic.*ours-start.*ease"),
        ({"bytes": (64, 100)}, ConfigError, "100 is no multiple"),
        ({"data": ("tiny", "gone", "lost")}, DataError, r"(?s)gone: There is no configuration.*lost: .*/nowhere"),
    ],
)
def test_mistakes_come_before_anything_runs(tmp_path, configs, counting, options, error, message):
    (tmp_path / "lost.toml").write_text('[data]\nsource = "/nowhere/log.parquet"\n', encoding="utf-8")
    with pytest.raises(error, match=message):
        run(tmp_path, configs, **options)
    assert counting.computed == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("budget", settings.BYTES)
@pytest.mark.parametrize("name", list(settings.OURS))
def test_settings_of_ours_hold_together_at_every_size(name, budget):
    path = Path(__file__).resolve().parents[3] / "configs" / f"{name}.toml"
    base = load_config(path)
    for method in settings.METHODS:
        config = load_config(path, settings.overrides(base, name, method, budget))
        assert 8 * config.tables.item.live == budget


def test_the_configuration_that_learns_is_the_cell_that_was_measured():
    folder = Path(__file__).resolve().parents[3] / "configs"
    base = load_config(folder / "ml-100k.toml")
    cell = load_config(folder / "ml-100k.toml", settings.overrides(base, "ml-100k", "ours", 64))
    (mine, _), (its, _) = (
        plan.settings_that_decide(one) for one in (load_config(folder / "ml-100k-64-bytes.toml"), cell)
    )
    assert mine == {**its, "train.teacher": "runs/ml-100k-wide"}


def test_the_command_line_offers_the_same_budgets():
    from hse_dist.cli.benchmarks import BENCHMARKS

    (found,) = (option.default for option in BENCHMARKS["quality"][1] if option.name == "bytes")
    assert found == settings.BYTES

"""Evaluation of an export: what the run's own gives, the bytes that are told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hse_dist.cli.main import main
from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import DataError, ExportError, RunFolderError
from hse_dist.evaluate.bootstrap import compare
from hse_dist.evaluate.driver import evaluate
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.held_out import evaluate_export
from hse_dist.export.sizes import LAYOUTS, offset_bytes
from hse_dist.export.writer import export
from hse_dist.testing.runs import as_toml, small_config
from hse_dist.train.driver import train

HEADER = 128
"""Of a .npy file."""
TIMES = ("seconds", "export")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data, and a run on them with free rows."""
    folder = tmp_path_factory.mktemp("held-out")
    config = settings_in(folder)
    prepare(config)
    train(config)
    return folder


def settings_in(folder: Path, **changes: Any) -> Config:
    changes = {"train__epochs": 1, "model__row_norm": "free", **changes}
    return small_config(folder / "run", folder / "data", **changes)


def exported(folder: Path, name: str, form: str, values: str = "float32") -> Config:
    config = settings_in(folder, export__folder=str(folder / name), export__format=form, export__values=values)
    export(config)
    return config


@pytest.mark.parametrize("split", ["test", "valid"])
def test_an_export_has_the_metrics_of_its_run(run: Path, split: str) -> None:
    config = exported(run, "csr", "csr")
    wanted, found = evaluate(config, split), evaluate_export(config, split)
    for name in ("ndcg@100", "recall@20", "recall@50"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-6) and 0 < found[name] < 1
    for name in ("split", "seed", "users", "items", "coverage", "live_entries"):
        assert found[name] == wanted[name], name
    assert found["thirds"].keys() == wanted["thirds"].keys()
    users = run / "run/evaluation"
    ours, theirs = ([users / f"{stem}-users.parquet"] for stem in (f"{split}-export", split))
    assert compare(ours, theirs, metric="ndcg@100").users == found["users"]
    assert json.loads((users / f"{split}-export.json").read_text())["stored_bytes_per_item"] > 0


def test_every_format_is_evaluated_and_halves_change_little(run: Path) -> None:
    whole = {form: evaluate_export(exported(run, form, form)) for form in ("parquet", "mapped", "smallest", *LAYOUTS)}
    for form, found in whole.items():
        assert {k: v for k, v in found.items() if k not in TIMES and "bytes" not in k and k != "format"} == {
            k: v for k, v in whole["csr"].items() if k not in TIMES and "bytes" not in k and k != "format"
        }, form
    halves = evaluate_export(exported(run, "half", "csr", "float16"))
    assert halves["value_type"] == "float16" and halves["ndcg@100"] == pytest.approx(whole["csr"]["ndcg@100"], abs=0.01)
    saved = (whole["csr"]["stored_bytes_per_item"] - halves["stored_bytes_per_item"]) * halves["items"]
    assert saved == pytest.approx(
        2 * halves["live_entries"], abs=64
    )  # the same files otherwise; metadata differ by bytes


def test_stored_bytes_are_those_of_the_matrix_without_the_ids(tmp_path: Path, run: Path) -> None:
    """The same matrix under ids of two letters and of twenty takes the same bytes."""
    generator, items, found = np.random.default_rng(0), 40, {}
    offsets = np.arange(items + 1) * 3
    columns = np.concatenate([np.sort(generator.permutation(50)[:3]) for _ in range(items)])
    block = RowBlock(offsets, columns, generator.random(3 * items, np.float32), generator.random(items, np.float32))
    for form in ("csr", "parquet", "mapped"):
        for letters in (1, 10):
            ids = pa.array([f"{item:02d}" * letters for item in range(items)])
            folder = tmp_path / f"{form}{letters}"
            write_export(folder, [block], item_ids=ids, dims=50, row_norm="free", form=form)
            found[form, letters] = stored(folder)
    assert found["mapped", 1] == found["mapped", 10]
    assert all(abs(found[form, 1] - found[form, 10]) < 300 for form in ("csr", "parquet"))  # statistics in the footer
    arrays = 3 * HEADER + (items + 1) * offset_bytes(3 * items) + 3 * items * (1 + 4)
    assert arrays + 4 * items <= found["csr", 1] <= arrays + 4 * items + 1500


def stored(folder: Path) -> int:
    from hse_dist.export.held_out import stored_bytes

    return stored_bytes(load_export(folder), folder)


def test_what_does_not_fit_is_told(tmp_path: Path, run: Path) -> None:
    config = settings_in(run)
    with pytest.raises(ExportError, match=r"no export at .*nowhere"):
        evaluate_export(config, folder=str(tmp_path / "nowhere"))
    ids = Prepared(config.data.folder).item_ids()
    block = RowBlock(np.zeros(len(ids) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32),
                     np.ones(len(ids), np.float32))  # fmt: skip
    write_export(tmp_path / "turned", [block], item_ids=ids[::-1], dims=4, row_norm="free")
    with pytest.raises(ExportError, match=r"turned has other items than.*setting data\.folder"):
        evaluate_export(config, folder=str(tmp_path / "turned"))
    age = {"age": (pa.array([18]), [RowBlock(np.array([0, 1]), np.zeros(1, np.int64), *(np.ones(1, np.float32),) * 2)])}
    write_export(tmp_path / "known", [block], item_ids=ids, dims=4, row_norm="free", features=age)
    with pytest.raises(ExportError, match="features of users"):
        evaluate_export(config, folder=str(tmp_path / "known"))
    with pytest.raises(RunFolderError, match="made with other settings"):
        evaluate_export(settings_in(run, train__epochs=2))
    with pytest.raises(DataError, match="no prepared histories"):
        evaluate_export(settings_in(tmp_path))


def test_the_command_takes_overrides_behind_the_option(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = exported(run, "other", "delta")
    (run / "run.toml").write_text(as_toml(config))
    words = ["evaluate", str(run / "run.toml"), "--export"]
    assert main([*words, f"export.folder={run}/other"]) == 0
    own = json.loads(capfd.readouterr().out)
    assert main([*words, str(run / "other"), "--split", "test", f"export.folder={run}/csr"]) == 0
    named = json.loads(capfd.readouterr().out)
    assert {**own, "seconds": 0} == {**named, "seconds": 0} and own["format"] == "delta"
    assert (run / "run/evaluation/test-export-other-users.parquet").exists()
    assert main([*words, str(run / "nowhere")]) == 2
    shown = capfd.readouterr()
    assert "no export at" in shown.err and "Traceback" not in shown.err and not shown.out

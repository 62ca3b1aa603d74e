"""The demo types commands that the command line understands, and shows what they answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hse_dist.cli import demo as module
from hse_dist.cli.parser import parse
from hse_dist.config import Config, load_config
from hse_dist.errors import TrainingError, UserError

CONFIG = str(Path(__file__).parents[2] / "configs" / "ml-100k.toml")
METRICS = {"ndcg@100": 0.5, "recall@20": 0.25, "recall@50": 0.75, "coverage": 1.0, "users": 90, "seconds": 2.0}
ANSWERS = {
    "prepare": {"items": 1682},
    "train": {"seconds": 31.0, "start_valid": 0.123, "best_valid": 0.456, "best_step": 77},
    "export": {"folder": "somewhere"},
    "recommend": {"items": [1]},
}


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list:
    """The commands that the demo would have run."""
    typed = []

    def run(*words: str) -> dict:
        typed.append(words)
        if words[0] != "evaluate":
            return ANSWERS[words[0]]
        return {**METRICS, "bytes_per_item": 6728.0 if "ease" in words else 256.0}

    class Vocabulary:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / "data"

        def item_ids(self) -> pa.Array:
            return pa.array(np.arange(50, 60))

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "Prepared", Vocabulary)
    return typed


def test_commands_are_valid_and_fit_together(commands, tmp_path, capsys):
    module.demo(CONFIG, ["tables.item.live=16", "cluster.workers=1"], tmp_path)
    configs: dict[str, list[Config]] = {}
    for command in commands:
        words = parse(command)
        if words.job == "recommend":
            assert (words.export, words.items) == ("somewhere", "50,51,52")
            continue
        config = load_config(words.config, words.overrides)
        assert config.cluster.workers == 1 and config.data.folder == str(tmp_path / "data")
        configs.setdefault(words.job, []).append(config)
    packed, dense = configs["train"]
    assert packed.tables.item.kind == "packed" and packed.tables.item.live == 16
    # 16 entries of 8 bytes
    assert dense.tables.item.kind == "dense" and dense.tables.item.dims == 32
    assert packed.run.folder != dense.run.folder
    assert configs["evaluate"] == [packed, packed, dense] and configs["export"] == [packed]
    shown = capsys.readouterr().err.splitlines()
    assert any("0.123 at the start" in line for line in shown)
    assert [line.split()[1] for line in shown[-4:-1]] == ["packed", "dense", "full"]
    assert "6728" in shown[-2] and "0.500" in shown[-2]


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (1, TrainingError), (-9, TrainingError)])
def test_failing_command_ends_the_demo(code, kind, monkeypatch):
    done = module.subprocess.CompletedProcess([], code, stdout="")
    monkeypatch.setattr(module.subprocess, "run", lambda *words, **options: done)
    with pytest.raises(kind, match=f"train ended with exit code {code}"):
        module._run("train", "x.toml")
